"""Measured runs that others published, as jobs: what the planner is held to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tuneloop.files import read_yaml
from tuneloop.plan.gpus import find_gpu
from tuneloop.plan.job import Job, make_job
from tuneloop.plan.shape import ModelShape, find_model, target_modules

# Models of published runs that are not bundled, from their config.json.
OTHERS = {
    "mistral-7b": ModelShape(32000, 4096, 14336, 32, 32, 8, 128, False, 32768),
    "qwen-1.8b": ModelShape(151936, 2048, 5504, 24, 16, 16, 128, False, 32768, qkv_bias=True),
    "qwen-7b": ModelShape(151936, 4096, 11008, 32, 32, 32, 128, False, 32768, qkv_bias=True),
    "qwen-14b": ModelShape(152064, 5120, 13696, 40, 40, 40, 128, False, 32768, qkv_bias=True),
    "yi-34b": ModelShape(64000, 7168, 20480, 60, 56, 8, 128, False, 4096),
    "llama-2-7b-long": ModelShape(32000, 4096, 11008, 32, 32, 32, 128, False, 131072),  # its positions stretched
}


@dataclass(frozen=True)
class Point:
    """A measured run: `gib` is its peak of allocated memory, None where only the speed or only `fits` is known."""

    job: Job
    gib: float | None
    nvidia_gib: float | None
    tokens_per_second: float | None
    fits: bool


def read_points(path: Path) -> tuple[str, list[Point]]:
    """The half (`fit`, `held out` or `blind`) and the runs of a file."""
    file = read_yaml(path)
    return file["half"], [_point({**file["defaults"], **row}) for row in file["points"]]


def _point(row: dict[str, object]) -> Point:
    figures = {name: row.pop(name, None) for name in ("gib", "gb", "nvidia_gib", "tokens_per_second")}
    fits = bool(row.pop("fits", True))
    gib = figures["gib"] or (float(str(figures["gb"])) * 1e9 / 1024**3 if figures["gb"] else None)
    name = str(row.pop("model"))
    if row.get("gpus", 1) == 1:
        row.pop("sharding", None)
    if "targets" in row:
        row["targets"] = target_modules(str(row["targets"]))
    row["gpu"] = find_gpu(str(row["gpu"]))
    job = make_job(model=name, shape=OTHERS.get(name) or find_model(name)[1], **row)
    return Point(job, _number(gib), _number(figures["nvidia_gib"]), _number(figures["tokens_per_second"]), fits)


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
