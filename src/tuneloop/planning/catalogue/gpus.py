"""The GPUs of `gpus.yaml`: capacity, speed, links."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core import machine
from tuneloop.core.device import Backend, backend
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.files import cache_folder
from tuneloop.core.foreign import file_bytes, packaged_yaml, parse_json

TABLE = Path(__file__).with_name("gpus.yaml")
CPU = "cpu"
COUNTS = (1, 2, 4, 8)  # of GPUs in a machine, that are planned for
# Floating-point operations a core does in a second when it trains, of those it could do: a number from experience
# (benchmarks/records/results.md: 135M parameters at about 400 tokens a second on two cores).
CPU_TFLOPS_PER_CORE = 0.1


@dataclass(frozen=True)
class Gpu:
    """What training sees of a GPU (or of this machine's processor)."""

    key: str  # as on the command line and in `prices.yaml`
    name: str
    gib: float  # memory that the driver reports
    tflops: float  # dense 16-bit peak
    bf16: bool  # whether it has bfloat16
    flash: bool  # whether it has FlashAttention 2
    gb_s: float  # bandwidth of its memory, in 10^9 bytes a second
    link_gb_s: float  # to a neighbour
    host_gb_s: float
    matmul: float  # share of the peak that wide matrix products reach, see `gpus.yaml`
    share_of: str  # where that comes from
    source: str
    p2p: bool = True  # whether two of them in a machine read each other's memory; else all goes through the host's

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
    usual = {"bf16": True, "flash": True}
    table = packaged_yaml(TABLE)["gpus"]
    rows = {key: {name: value for name, value in row.items() if name != "called"} for key, row in table.items()}
    return {key: Gpu(key=key, **{**usual, **row}) for key, row in rows.items()}


@functools.cache
def _names() -> dict[str, str]:
    table = packaged_yaml(TABLE)["gpus"]
    keys = {"".join(c for c in key if c.isalnum()): key for key in table}
    return keys | {str(name): key for key, row in table.items() for name in row.get("called", ())}


PROCESSOR: dict[str, Any] = {
    "key": CPU, "bf16": True, "flash": False, "gb_s": 20, "link_gb_s": 1, "host_gb_s": 20, "matmul": 1.0,
    "share_of": "a number from experience on two cores; `tuneloop plan DATASET` measures", "source": "this machine",
}  # fmt: skip


def this_cpu() -> Gpu:
    """This machine without a GPU."""
    cores = machine.cores()
    name = f"cpu: {machine.processor()}, {cores} cores"
    return Gpu(name=name, gib=machine.memory_capacity(), tflops=cores * CPU_TFLOPS_PER_CORE, **PROCESSOR)


FIELDS = {"memory": "gib", "tflops": "tflops", "bandwidth": "gb_s", "link": "link_gb_s"}  # by the names of the options
LIMITS = {"memory": (1.0, 2048.0), "tflops": (0.1, 100_000.0), "bandwidth": (1.0, 1e6), "link": (0.01, 1e5)}


def own_card(name: str | None, **numbers: float | None) -> Gpu:
    """A card of the user's own: a listed one with other numbers, or one that the table does not know.

    What is not said of the latter, as the share of the peak that it reaches and whether it has bfloat16, is as of the
    listed card that is nearest in what is said.

    `numbers`: `memory` (GiB), `tflops` (dense, 16-bit), `bandwidth` of its memory and `link` to a neighbour (GB/s);
    None: as the table has it. Raises UserError: a number that can't be, or too few of them.
    """
    specs = {key: float(value) for key, value in numbers.items() if value is not None}
    for key, value in specs.items():
        least, most = LIMITS[key]
        if not least <= value <= most:
            step = f"give a number from {least:g} to {most:,.0f}"
            raise UserError(f"--gpu-{key} is {value:g}; no card has that", where=f"--gpu-{key}", next_step=step)
    if name is None and not {"memory", "tflops"} <= set(specs):
        step = "give --gpu-memory (GiB) and --gpu-tflops (dense bf16 or fp16), or name a listed card with --gpu"
        raise UserError("A card of your own needs its memory and its speed", where="--gpu-memory", next_step=step)
    base = find_gpu(name) if name else _nearest_card(specs)
    if base.is_cpu:
        step = "leave --gpu out, or the numbers of a card"
        raise UserError("The processor is not a GPU", where="--gpu", next_step=step)
    changed: dict[str, Any] = {FIELDS[key]: value for key, value in specs.items()}
    if "link" in specs:
        changed["p2p"] = True
    if name is None:
        label, share_of = f"{specs['memory']:g}", f"as of the {base.name}, the nearest listed card"
        changed |= {"key": f"own-{label}gb", "name": f"own card, {label} GB", "share_of": share_of, "source": "given"}
    return replace(base, **changed)


def _nearest_card(specs: Mapping[str, float]) -> Gpu:
    def distance(card: Gpu) -> float:
        return sum(abs(math.log(value / getattr(card, FIELDS[key]))) for key, value in specs.items())

    return min(all_gpus().values(), key=distance)


def measured_file() -> Path:
    """Where `tuneloop doctor --self-test` keeps the speeds of this machine's card."""
    return cache_folder() / "device.json"


def _as_measured(card: Gpu) -> Gpu:
    """A card with the speeds that the self-test measured on this machine, where it is the one that was measured."""
    try:
        measured = parse_json(file_bytes(measured_file(), "json"))
        if measured["version"] != 1 or find_gpu(measured["name"], measured=False).key != card.key:
            return card
        matmul, gb_s = float(measured["tflops"]) / card.tflops, float(measured["gb_s"])
        host, source = float(measured.get("host_gb_s", card.host_gb_s)), f"measured here on {measured['date'][:10]}"
        return replace(card, matmul=matmul, gb_s=gb_s, host_gb_s=host, share_of=source)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return card


def find_gpu(name: str | Gpu, *, measured: bool = True) -> Gpu:
    """A GPU by its key (`h100-sxm`) or what people call it (`RTX 4090`, `A100 80GB`); a `Gpu` is returned as it is.
    `measured`: take the speeds that the self-test measured on such a card here, in place of the table's. Raises
    UserError: no such GPU, with the nearest names."""
    if isinstance(name, Gpu):
        return name
    key = "".join(c for c in name.lower() if c.isalnum())
    for maker in ("nvidia", "geforce", "tesla", "amd", "instinct"):
        key = key.removeprefix(maker)
    if key == CPU:
        return this_cpu()
    table, names = all_gpus(), _names()
    if key in names:
        card = table[names[key]]
        return _as_measured(card) if measured else card
    choices = f"choose one of {', '.join(table)}, {CPU};"
    step = did_you_mean(key, names, choices, most=3, shown=names.__getitem__)
    step += " for another card give --gpu-memory and --gpu-tflops"
    raise UserError(f"No GPU named {name!r} in the table", where="gpu", next_step=step)


def card_in_use(name: str, gib: float) -> Gpu:
    """The card that a driver calls so, with the memory that it reports: a part of a card (MIG) has less. One that the
    table does not know is planned as the listed one that is nearest in memory."""
    try:
        card = find_gpu(name)
    except UserError:
        card = _nearest_card({"memory": gib})
        card = replace(card, key="unlisted", name=name, share_of=f"as of the {card.name}, the nearest listed card")
    return replace(card, gib=gib) if gib else card
