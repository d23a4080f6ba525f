"""What serving a model takes, as the planner says it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A format on a machine.

    Args:
        gpus: of which all are needed.
        weights_gib, cache_gib, peak_gib: of all GPUs together.
        capacity_gib: that they have.
        one, all, prompt: tokens a second: written to a single request, written to all of them together, read of a prompt.
    """

    format: str
    engine: str
    machine: str
    gpus: int
    fits: bool
    weights_gib: float
    cache_gib: float
    peak_gib: float
    capacity_gib: float
    one: float | None = None
    all: float | None = None
    prompt: float | None = None
