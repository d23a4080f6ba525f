"""The GPUs of `gpus.yaml`: capacity, speed, links."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core import machine
from tuneloop.core.device import Backend, backend
from tuneloop.core.errors import UserError

TABLE = Path(__file__).with_name("gpus.yaml")
CPU = "cpu"
# Floating-point operations a core does in a second when it trains, of those it could do: a figure of experience
# (docs/records/results.md: 135M parameters at about 400 tokens a second on two cores).
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

    @property
    def backend(self) -> Backend:
        """How the loop computes there."""
        return backend("cpu" if self.is_cpu else "cuda")


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
    cores = machine.cores()
    return Gpu(
        key=CPU, name=f"cpu: {machine.processor()}, {cores} cores", gib=machine.memory_capacity(),
        tflops=cores * CPU_TFLOPS_PER_CORE, bf16=True, flash=False, gb_s=20, link_gb_s=1, host_gb_s=20, matmul=1.0,
        share_of="a figure of experience on two cores; `tuneloop plan DATASET` measures", source="this machine",
    )  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What a user says of a card of their own: GiB, TFLOPS (dense, 16-bit), GB/s of its memory and to a neighbour. None: as the table has it."""

    memory: float | None = None
    tflops: float | None = None
    bandwidth: float | None = None
    link: float | None = None


FIGURE_LIMITS = {"memory": (1.0, 2048.0), "tflops": (0.1, 100_000.0), "bandwidth": (1.0, 1e6), "link": (0.01, 1e5)}


def own_card(name: str | None, figures: Figures) -> Gpu:
    """A card of the user's own: a listed one with other figures, or one that the table does not know.

    What is not said of the latter, as the share of the peak that it reaches and whether it has bfloat16, is as of the listed card that is nearest
    in what is said.

    Raises:
        UserError: a figure that can't be, or too few of them.
    """
    given = {key: value for key, value in vars(figures).items() if value is not None}
    for key, value in given.items():
        least, most = FIGURE_LIMITS[key]
        if not least <= value <= most:
            raise UserError(f"--gpu-{key} is {value:g}; no card has that", where=f"--gpu-{key}",
                            next_step=f"give a number from {least:g} to {most:,.0f}")  # fmt: skip
    if name is None and not {"memory", "tflops"} <= set(given):
        raise UserError("A card of your own needs its memory and its speed", where="--gpu-memory",
                        next_step="give --gpu-memory (GiB) and --gpu-tflops (dense bf16 or fp16), or name a listed card with --gpu")  # fmt: skip
    base = find_gpu(name) if name else _nearest_card(given)
    if base.is_cpu:
        raise UserError(
            "The processor is no card", where="--gpu", next_step="leave --gpu out, or the figures of a card"
        )
    fields = {"memory": "gib", "tflops": "tflops", "bandwidth": "gb_s", "link": "link_gb_s"}
    changed: dict[str, Any] = {fields[key]: float(value) for key, value in given.items()}
    if figures.link is not None:
        changed["p2p"] = True
    if name:
        return replace(base, **changed)
    label = f"{given['memory']:g}"
    return replace(base, key=f"own-{label}gb", name=f"own card, {label} GB", share_of=f"as of the {base.name}, the nearest listed card",
                   source="given", **changed)  # fmt: skip


def _nearest_card(given: Mapping[str, float]) -> Gpu:
    def distance(card: Gpu) -> float:
        listed = {"memory": card.gib, "tflops": card.tflops, "bandwidth": card.gb_s, "link": card.link_gb_s}
        return sum(abs(math.log(value / listed[key])) for key, value in given.items())

    return min(all_gpus().values(), key=distance)


def find_gpu(name: str | Gpu) -> Gpu:
    """A GPU by its key (`h100-sxm`) or what people call it (`RTX 4090`, `A100 80GB`); one that is found already is itself.

    Raises:
        UserError: no such GPU, with the nearest names.
    """
    if isinstance(name, Gpu):
        return name
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
        next_step=(f"did you mean {' or '.join(keys)}?" if keys else f"choose one of {', '.join(table)}, {CPU};")
        + " for another card give --gpu-memory and --gpu-tflops",
    )
