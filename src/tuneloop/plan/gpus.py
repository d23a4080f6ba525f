"""The GPUs of `gpus.yaml`: capacity, speed, links."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path

from tuneloop.types import UserError

TABLE = Path(__file__).with_name("gpus.yaml")
CPU = "cpu"
# Floating-point operations a core does in a second when it trains, of those it could do: a figure of experience
# (docs/results.md: 135M parameters at about 400 tokens a second on two cores).
CPU_TFLOPS_PER_CORE = 0.1


@dataclass(frozen=True)
class Gpu:
    """What training sees of a GPU (or of this machine's processor).

    Args:
        key: as on the command line and in `prices.yaml`.
        gib: memory that the driver reports.
        tflops: dense 16-bit peak.
        bf16, flash: whether it has bfloat16 and FlashAttention 2.
        gb_s, link_gb_s, host_gb_s: bandwidth of its memory, to a neighbour, to the host, in 10^9 bytes a second.
        p2p: whether two of them in a machine read each other's memory; else all goes through the host's.
        matmul: share of the peak that wide matrix products reach, see `gpus.yaml`.
        share_of: where that comes from.
    """

    key: str
    name: str
    gib: float
    tflops: float
    bf16: bool
    flash: bool
    gb_s: float
    link_gb_s: float
    host_gb_s: float
    matmul: float
    share_of: str
    source: str
    p2p: bool = True

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's processor."""
        return self.key == CPU


@functools.cache
def all_gpus() -> dict[str, Gpu]:
    """The table by key."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table = yaml.load(TABLE.read_text(encoding="utf-8"), Loader=loader)["gpus"]
    found = {}
    for key, row in table.items():
        found[key] = Gpu(key=key, **{"bf16": True, "flash": True, **row})
    return found


def this_cpu() -> Gpu:
    """This machine without a GPU."""
    from tuneloop import machine

    cores = machine.cores()
    return Gpu(
        key=CPU,
        name=f"cpu: {machine.processor()}, {cores} cores",
        gib=machine.memory_capacity(),
        tflops=cores * CPU_TFLOPS_PER_CORE,
        bf16=True,
        flash=False,
        gb_s=20,
        link_gb_s=1,
        host_gb_s=20,
        matmul=1.0,
        share_of="a figure of experience on two cores; `tuneloop plan DATASET` measures",
        source="this machine",
    )


def find_gpu(name: str) -> Gpu:
    """A GPU by its key (`h100-sxm`) or what people call it (`RTX 4090`, `A100 80GB`).

    Raises:
        UserError: no such GPU, with the nearest names.
    """
    key = "".join(c for c in name.lower() if c.isalnum())
    for maker in ("nvidia", "geforce", "tesla", "amd", "instinct"):
        key = key.removeprefix(maker)
    if key == CPU:
        return this_cpu()
    table = all_gpus()
    plain = {"".join(c for c in k if c.isalnum()): k for k in table}
    called = {"a100": "a100-80gb", "h100": "h100-sxm", "a10080": "a100-80gb", "a10040": "a100-40gb", "rtxa6000": "a6000",
              "h100sxm5": "h100-sxm", "h10080gb": "h100-sxm", "a100sxm80gb": "a100-80gb", "a100sxm40gb": "a100-40gb",
              "a100sxm480gb": "a100-80gb", "a100sxm440gb": "a100-40gb", "a100pcie40gb": "a100-40gb", "a10080gbpcie": "a100-80gb",
              "h10080gbhbm3": "h100-sxm", "4090": "rtx4090", "3090": "rtx3090", "5090": "rtx5090", "rtxa5000": "a5000", "5080": "rtx5080",
              "rtx6000adageneration": "rtx6000-ada", "6000ada": "rtx6000-ada", "rtxa6000ada": "rtx6000-ada", "v100": "v100-16gb", "3060": "rtx3060", "rtx306012gb": "rtx3060",
              "v100sxm216gb": "v100-16gb", "v100sxm232gb": "v100-32gb", "v100pcie16gb": "v100-16gb", "v100pcie32gb": "v100-32gb", "rtx3080": "rtx3080-12gb",
              "4070": "rtx4070", "4070ti": "rtx4070-ti", "rtx407012gb": "rtx4070", "4080": "rtx4080", "5070": "rtx5070"}  # fmt: skip
    found = plain.get(key) or called.get(key)
    if found:
        return table[found]
    near = difflib.get_close_matches(key, [*plain, *called], 3, 0.5)
    keys = dict.fromkeys(plain.get(n) or called[n] for n in near)
    raise UserError(
        f"No GPU named {name!r} in the table",
        where="gpu",
        next_step=f"did you mean {' or '.join(keys)}?" if keys else f"choose one of {', '.join(table)}, {CPU}",
    )
