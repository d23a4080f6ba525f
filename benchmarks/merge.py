"""Time and memory of merging three adapters of rank 16 of the packaged model, next to PEFT's `add_weighted_adapter` and mergekit.

    python benchmarks/merge.py [METHOD ...] [--mergekit VENV]

Each merge runs in a process of its own. Seconds, and those of the processor, are those of the merge: for tuneloop with reading
the adapters and writing the result, for PEFT without either (its model and adapters are loaded before), for mergekit its whole command: it puts each adapter into a
copy of the model and writes a whole model, in fp32. It is installed into an environment of its own. Memory is the process's
peak, with all it has imported and loaded. The last column is how far the merged updates are from the exact weighted sum, as a share of its length: 0 for `cat`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import peers_python

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
MODEL, RANK, ADAPTERS = "smollm2-135m", 16, 3
OURS = ("svd", "linear", "cat")
PEFTS = {"svd": "svd", "cat": "cat", "linear": "linear"}
MERGEKITS = {"cat": "task_arithmetic", "linear": "linear"}
MERGEKIT = ("mergekit==0.1.4", "transformers<5")  # its records break under transformers 5


def write_adapters(path: Path) -> None:
    """Adapters of all linear layers with random matrices, as training leaves them."""
    import torch

    from tuneloop.models.load import load_model
    from tuneloop.training.config import TrainConfig
    from tuneloop.training.methods import attach

    model = load_model(MODEL)
    for seed in range(ADAPTERS):
        trainable = attach(model, TrainConfig(rank=RANK, alpha=2.0 * RANK), seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter += torch.randn(parameter.shape, generator=generator) * 0.02
        trainable.save(path / str(seed))
        trainable.detach()


def ours(path: Path, method: str) -> dict[str, Any]:
    """Merge by tuneloop."""
    from tuneloop.combine.merge.adapters import MergeSettings, open_adapter
    from tuneloop.combine.merge.merge import base_shapes, merge_adapters
    from tuneloop.models.files.names import resolve

    base = (MODEL, base_shapes(resolve(MODEL)))
    began, used = time.monotonic(), time.process_time()
    adapters = [open_adapter(str(seed), path / str(seed)) for seed in range(ADAPTERS)]
    found = merge_adapters(adapters, MergeSettings(method), base, path / f"ours-{method}")
    took = {"seconds": time.monotonic() - began, "cpu": time.process_time() - used}
    return {**took, "rank": found.rank, "apart": apart(path, path / f"ours-{method}")}


def pefts(path: Path, method: str) -> dict[str, Any]:
    """Merge by PEFT, on the model that it needs for that."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tuneloop.models.files.names import resolve

    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(resolve(MODEL)), path / "0", adapter_name="0"
    )
    for seed in range(1, ADAPTERS):
        model.load_adapter(path / str(seed), adapter_name=str(seed))
    names = [str(seed) for seed in range(ADAPTERS)]
    began, used = time.monotonic(), time.process_time()
    model.add_weighted_adapter(names, [1.0] * ADAPTERS, "merged", combination_type=PEFTS[method])
    took = {"seconds": time.monotonic() - began, "cpu": time.process_time() - used}
    model.save_pretrained(path / f"peft-{method}", selected_adapters=["merged"])
    folder = path / f"peft-{method}" / "merged"
    rank = json.loads((folder / "adapter_config.json").read_text())["r"]
    return {**took, "rank": rank, "apart": apart(path, folder)}


def mergekits(path: Path, method: str, venv: Path) -> dict[str, Any]:
    """Merge by mergekit's command, into weights."""
    import yaml

    from tuneloop.models.files.names import resolve

    base, out = resolve(MODEL), path / f"mergekit-{method}"
    inputs = [{"model": f"{base}+{path / str(seed)}", "parameters": {"weight": 1.0}} for seed in range(ADAPTERS)]
    settings: dict[str, Any] = {"merge_method": MERGEKITS[method], "models": inputs, "dtype": "float32"}
    if method != "linear":
        settings |= {"base_model": str(base), "parameters": {"normalize": False}}
    file = path / f"{method}.yaml"
    file.write_text(yaml.safe_dump(settings))
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [str(peers_python(venv, MERGEKIT).parent / "mergekit-yaml"), str(file), str(out), "--quiet"]
    subprocess.run(
        [*command, "--lora-merge-cache", str(path / f"copies-{method}")],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = {"seconds": time.monotonic() - began, "cpu": used, "gib": after.ru_maxrss / 2**20}
    return {**took, "rank": 0, "apart": weights_apart(path, Path(base), out)}


def weights_apart(path: Path, base: Path, merged: Path) -> float:
    """As `apart`, of merged weights."""
    import torch
    from safetensors.torch import load_file

    from tuneloop.combine.merge.adapters import open_adapter

    before, after = (
        {k: v for f in item.glob("*.safetensors") for k, v in load_file(f).items()} for item in (base, merged)
    )
    sources = [open_adapter(str(seed), path / str(seed)) for seed in range(ADAPTERS)]
    gap = whole = 0.0
    for module in sources[0].modules[::15]:
        total = sum(product.b @ product.a for product in (source.update(module) for source in sources))
        name = next(name for name in before if name.endswith(f"{module}.weight"))
        found = after[name].double() - before[name].double()
        gap, whole = gap + float(torch.sum((found - total) ** 2)), whole + float(torch.sum(total**2))
    return float((gap / whole) ** 0.5)


def apart(path: Path, merged: Path) -> float:
    """Distance of some merged updates from the sum of the adapters' products, as a share of the sum's length."""
    from tuneloop.combine.merge.adapters import open_adapter
    from tuneloop.combine.merge.methods import Product, squared_length, stacked

    result = open_adapter("merged", merged, "any")
    sources = [open_adapter(str(seed), path / str(seed)) for seed in range(ADAPTERS)]
    gap = whole = 0.0
    for module in result.modules[::15]:
        total = stacked([source.update(module) for source in sources], [1.0] * ADAPTERS)
        both: Product = stacked([total, result.update(module)], [1.0, -1.0])
        gap, whole = gap + squared_length(both), whole + squared_length(total)
    return float((gap / whole) ** 0.5)


def measured(path: Path, who: str, method: str) -> dict[str, Any]:
    """One merge in a process of its own."""
    command = [sys.executable, __file__, "--child", who, method, str(path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=OURS, metavar="METHOD")
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="measure mergekit, installed into this folder")
    chosen = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        write_adapters(path)
        print(f"{'method':<12} {'who':<9} {'seconds':>8} {'CPU s':>6} {'GiB':>6} {'rank':>5} {'from the sum':>13}")
        for method in chosen.methods:
            found = {"tuneloop": measured(path, "tuneloop", method)}
            if method in PEFTS:
                found["PEFT"] = measured(path, "PEFT", method)
            if method in MERGEKITS and chosen.mergekit:
                found["mergekit"] = mergekits(path, method, chosen.mergekit)
            for who, match in found.items():
                print(
                    f"{method:<12} {who:<9} {match['seconds']:>8.1f} {match['cpu']:>6.1f} {match['gib']:>6.2f} {match['rank'] or 'whole':>5} {match['apart']:>13.3f}",
                    flush=True,
                )


def child(who: str, method: str, path: str) -> None:
    """What a process of its own does: a merge, and its figures as JSON."""
    found = (ours if who == "tuneloop" else pefts)(Path(path), method)
    found["gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5])
    else:
        main()
