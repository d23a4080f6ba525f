"""Memory of merging three adapters of rank 16 and of writing the result into the weights of a random base of a billion parameters.

    python benchmarks/merge_weights.py [GIGABYTES]

The base is written in bf16, in 12 shards. The adapters have random matrices for all linear layers. Both steps run in a process of
their own: `tuneloop merge` to one adapter by `svd`, then what `tuneloop export --format merged` does with it. Memory is that which is
not pages of files, beyond what the process has with its libraries loaded; beside it is the largest tensor of the base.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from merge import ENVIRONMENT

from release import anonymous, disk_seconds, write_random

RANK, ADAPTERS = 16, 3


def write_adapters(base: Path, path: Path) -> None:
    """Adapters with random matrices, as training leaves them."""
    import torch
    from safetensors.torch import save_file

    from tuneloop.combine.merge.merge import base_shapes

    modules = {name: shape for name, shape in base_shapes(base).items() if ".layers." in name}
    for number in range(ADAPTERS):
        generator, tensors = torch.Generator().manual_seed(number), {}
        for module, (outputs, inputs) in modules.items():
            for end, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                tensors[f"base_model.model.{module}.lora_{end}.weight"] = 0.02 * torch.randn(shape, generator=generator)
        folder = path / str(number)
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        settings = {
            "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none", "base_model_name_or_path": str(base),
            "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(settings))


def child(base: Path, path: Path) -> None:
    """Both steps, each with its seconds and the most memory that it added, as JSON."""
    import torch

    from tuneloop.combine.merge.adapters import MergeSettings, open_adapter
    from tuneloop.combine.merge.merge import base_shapes, merge_adapters
    from tuneloop.combine.merge.methods import Product, svd_of
    from tuneloop.models.load import fingerprint
    from tuneloop.release.tuned_weights import merge

    ones = torch.ones(64, 2, dtype=torch.float64)
    svd_of(Product(ones, ones.T.contiguous()))  # libraries are loaded
    torch.zeros(8, 8).to(torch.bfloat16) @ torch.zeros(8, 8).to(torch.bfloat16)
    mark, shapes = fingerprint(base), base_shapes(base)
    adapters = [open_adapter(str(n), path / str(n), mark) for n in range(ADAPTERS)]
    steps = {
        "adapter": lambda: merge_adapters(adapters, MergeSettings("svd"), (mark, shapes), path / "merged"),
        "weights": lambda: merge(str(base), path / "merged", path / "model"),
    }
    found = {}
    for name, step in steps.items():
        before, peak, over = anonymous(), [0], threading.Event()

        def watch(peak: list[int] = peak, over: threading.Event = over) -> None:
            while not over.wait(0.002):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        began = time.perf_counter()
        step()
        seconds = time.perf_counter() - began
        over.set()
        watcher.join()
        found[name] = (seconds, peak[0] - before)
    print(json.dumps(found))


def main() -> None:
    """Measure and print the table."""
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory(dir=".") as name:
        path = Path(name).resolve()
        largest = write_random(path / "base", float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
        write_adapters(path / "base", path)
        os.sync()
        command = [sys.executable, __file__, "--child", str(path / "base"), str(path)]
        done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = sum(file.stat().st_size for file in (path / "model").glob("*.safetensors"))
        disk = disk_seconds(path / "plain", size)
        print(f"a base of {size / 1e9:.2f} GB, its largest tensor of {largest / 1e6:.0f} MB")
        print("| step | seconds | memory | in largest tensors |\n|---|---|---|---|")
        for step, (seconds, memory) in found.items():
            print(f"| {step} | {seconds:.1f} | {memory / 1e6:.0f} MB | {memory / largest:.2f} |")
        print(f"the disk alone writes as many bytes in {disk:.1f} s: {disk / found['weights'][0]:.2f} of it")


if __name__ == "__main__":
    main()
