"""Measured runs that others published, as jobs: what the planner is held to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneloop.core.files import read_yaml
from tuneloop.models.nn.shape import ModelShape, target_modules
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of

FIGURES = (
    "gib",
    "gb",
    "nvidia_gib",
    "reserved_gib",
    "card_gib",
    "tokens_per_second",
    "fits",
)  # what was measured; all else was set
# Models of published runs that are not bundled, from their config.json.
OTHERS = {
    "mistral-7b": ModelShape(32000, 4096, 14336, 32, 32, 8, 128, False, 32768),
    "qwen-1.8b": ModelShape(151936, 2048, 5504, 24, 16, 16, 128, False, 32768, qkv_bias=True),
    "qwen-7b": ModelShape(151936, 4096, 11008, 32, 32, 32, 128, False, 32768, qkv_bias=True),
    "qwen-14b": ModelShape(152064, 5120, 13696, 40, 40, 40, 128, False, 32768, qkv_bias=True),
    "qwen3-8b": ModelShape(151936, 4096, 12288, 36, 32, 8, 128, False, 40960, qk_norm=True),
    # LitGPT has Gemma's tied head as a second matrix
    "gemma-2b-untied": ModelShape(256000, 2048, 16384, 18, 8, 1, 256, False, 8192),
    "gemma-7b-untied": ModelShape(256000, 3072, 24576, 28, 16, 16, 256, False, 8192),
    "gemma-2-9b-untied": ModelShape(256000, 3584, 14336, 42, 16, 8, 256, False, 8192, norms=4),
    "yi-34b": ModelShape(64000, 7168, 20480, 60, 56, 8, 128, False, 4096),
    "powerlm-3b": ModelShape(49152, 2304, 9216, 40, 36, 36, 64, True, 4096),
    # MPT's feed-forward has two matrices of four widths: here three with as many parameters
    "mpt-1b": ModelShape(50368, 2048, 5461, 24, 16, 16, 128, True),
    "mpt-3b": ModelShape(50368, 2560, 6827, 32, 20, 20, 128, True),
    "mpt-7b": ModelShape(50368, 4096, 10923, 32, 32, 32, 128, True),
    "mpt-13b": ModelShape(50368, 5120, 13653, 40, 40, 40, 128, True),
    "mpt-30b": ModelShape(50368, 7168, 19115, 48, 56, 56, 128, True),
    "mpt-70b": ModelShape(50368, 8192, 21845, 80, 64, 64, 128, True),
    # their positions stretched
    "llama-2-7b-long": ModelShape(32000, 4096, 11008, 32, 32, 32, 128, False, 131072),
    "llama-2-70b-long": ModelShape(32000, 8192, 28672, 80, 64, 8, 128, False, 131072),
    "yi-34b-200k": ModelShape(64000, 7168, 20480, 60, 56, 8, 128, False, 200000),
    "codellama-34b": ModelShape(32000, 8192, 22016, 48, 64, 8, 128, False, 16384),
}


@dataclass(frozen=True)
class Point:
    """A measured run: `gib` is its peak of allocated memory, None where only the speed or only `fits` is known; `nvidia_gib` what `nvidia-smi` showed,
    `reserved_gib` torch's `max_memory_reserved`, without the driver's context; `card_gib` the memory of a card that the run just fits.

    `half`: `fit` where constants were set by it, `held out`, or `blind` where it was written down after the constants stood.
    """

    half: str
    source: str  # who published it, with all that is theirs
    seen: bool  # whether something of the source's settings or rows was changed after its error had been seen
    job: TrainingSetup
    gib: float | None
    nvidia_gib: float | None
    reserved_gib: float | None
    card_gib: float | None
    tokens_per_second: float | None
    fits: bool

    @property
    def reserve_error(self) -> float | None:
        """What is planned as reserved over what was measured, less one; None where neither figure is known."""
        memory = memory_of(self.job)
        if self.nvidia_gib:
            return memory.reserved / self.nvidia_gib - 1
        return (memory.reserved - memory.context) / self.reserved_gib - 1 if self.reserved_gib else None


def read_points(path: Path) -> list[Point]:
    """The runs of a file. Its `half` is theirs; `split` deals them out by their settings, so that no one chooses."""
    file = read_yaml(path)
    first = {"source": file.get("source", path.stem), "seen": file.get("seen", False)}
    rows = [{**first, **file["defaults"], **row} for row in file["points"]]
    return [_point(dict(row), _half(row) if file["half"] == "split" else file["half"]) for row in rows]


def _half(row: Mapping[str, object]) -> str:
    """`fit` or `held out`: by the hash of what was set, so that a run keeps its half and its repetitions share it."""
    settings = sorted((name, str(value)) for name, value in row.items() if name not in (*FIGURES, "source", "seen"))
    return "held out" if hashlib.sha256(repr(settings).encode()).digest()[0] % 2 else "fit"


def _point(row: dict[str, object], half: str) -> Point:
    figures = {name: row.pop(name, None) for name in FIGURES}
    source, seen = str(row.pop("source")), bool(row.pop("seen"))
    fits = figures["fits"] is not False
    gib = figures["gib"] or (float(str(figures["gb"])) * 1e9 / 1024**3 if figures["gb"] else None)
    name = str(row.pop("model"))
    if row.get("gpus", 1) == 1:
        row.pop("sharding", None)
    if "targets" in row:
        row["targets"] = target_modules(str(row["targets"]))
    row["gpu"] = find_gpu(str(row["gpu"]))
    job = make_job(model=name, shape=OTHERS.get(name) or find_model(name)[1], **row)
    nvidia, reserved, card, speed = (
        _number(figures[name]) for name in ("nvidia_gib", "reserved_gib", "card_gib", "tokens_per_second")
    )
    return Point(half, source, seen, job, _number(gib), nvidia, reserved, card, speed, fits)


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
