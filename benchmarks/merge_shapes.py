"""Merging three adapters of rank 16 with the shapes of Llama 3 8B, next to writing as many bytes to the same disk.

    python benchmarks/merge_shapes.py [--layers 32] [METHOD ...]

Random matrices, in float32, as training leaves them: 168 MB each. Only adapters are read; the base is not needed. A merge of a
method runs in a process of its own. Memory is what the process takes beyond what it has with its libraries loaded; beside it is what
one layer of three adapters takes in float64, in which merges are computed. `disk` reads as many bytes as the adapters have and writes
as many as the result has, synced.
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

from merge import ENVIRONMENT

RANK, ADAPTERS = 16, 3
WIDTH, FEED, KEYS = 4096, 14336, 1024
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (KEYS, WIDTH), "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (FEED, WIDTH), "mlp.up_proj": (FEED, WIDTH), "mlp.down_proj": (WIDTH, FEED),
}  # fmt: skip
METHODS = ("cat", "svd")


def shapes(layers: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer."""
    return {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in LAYER.items()}


def write(path: Path, layers: int) -> int:
    """The adapters; returns the bytes of one."""
    import torch
    from safetensors.torch import save_file

    for number in range(ADAPTERS):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for module, (outputs, inputs) in shapes(layers).items():
            for end, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                name = f"base_model.model.{module}.lora_{end}.weight"
                tensors[name] = 0.02 * torch.randn(shape, generator=generator)
        folder = path / str(number)
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        names = sorted({name.rpartition(".")[2] for name in LAYER})
        settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": names, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    return (path / "0" / "adapter_model.safetensors").stat().st_size


def child(path: Path, method: str, layers: int) -> None:
    """What a process of its own does: a merge, and its figures as JSON."""
    import torch

    from tuneloop.combine.merge.adapters import MergeSettings, open_adapter
    from tuneloop.combine.merge.merge import merge_adapters
    from tuneloop.combine.merge.methods import Product, svd_of

    svd_of(
        Product(torch.ones(64, 2, dtype=torch.float64), torch.ones(2, 64, dtype=torch.float64))
    )  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.monotonic(), time.process_time()
    adapters = [open_adapter(str(n), path / str(n), "random") for n in range(ADAPTERS)]
    found = merge_adapters(adapters, MergeSettings(method), ("random", shapes(layers)), path / method)
    took = {"seconds": time.monotonic() - began, "cpu": time.process_time() - used, "rank": found.rank}
    took["mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({**took, "bytes": (path / method / "adapter_model.safetensors").stat().st_size}))


def disk(path: Path, size: int) -> float:
    """Seconds of reading the adapters and writing so many bytes, synced."""
    began = time.monotonic()
    chunk = b""
    for number in range(ADAPTERS):
        with (path / str(number) / "adapter_model.safetensors").open("rb") as file:
            while data := file.read(2**24):
                chunk = data if len(data) == 2**24 else chunk
    with (path / "plain").open("wb") as file:
        for start in range(0, size, 2**24):
            file.write(chunk[: min(2**24, size - start)])
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=[])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--child", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child[0]), options.child[1], options.layers)
        return
    with tempfile.TemporaryDirectory(dir=".") as name:
        path = Path(name)
        item = write(path, options.layers)
        layer = ADAPTERS * 8 * RANK * sum(outputs + inputs for outputs, inputs in LAYER.values()) / 2**20
        print(
            f"{ADAPTERS} adapters of {item / 1e6:.0f} MB, {options.layers} layers; one layer of all in float64: {layer:.0f} MiB"
        )
        print(
            "| method | rank | seconds | processor's | the disk alone | memory beyond the libraries |\n|---|---|---|---|---|---|"
        )
        for method in options.methods or METHODS:
            command = [sys.executable, __file__, "--child", str(path), method, "--layers", str(options.layers)]
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
            found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            alone = disk(path, found["bytes"])
            print(
                f"| {method} | {found['rank']} | {found['seconds']:.1f} | {found['cpu']:.1f} | {alone:.1f} | {found['mib']:.0f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
