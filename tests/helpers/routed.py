"""Rows of made-up features for routers: tasks with a centre each, and outcomes of a cheap and a dear model."""

from __future__ import annotations

import numpy as np

from tuneloop.combine.route.router import Outcomes
from tuneloop.records.router import RouterRecord, RouteTarget

CENTRES = np.array([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]], dtype=np.float32)


def record(models: int = 3, exclusive: bool = True, costs: tuple[float, ...] = ()) -> RouterRecord:
    routes = [RouteTarget(name=f"m{i}", cost=costs[i] if costs else 0.0) for i in range(models)]
    return RouterRecord(kind="constant", features="words", exclusive=exclusive, routes=routes)


def tasks(n: int, seed: int, noise: float = 1.0) -> Outcomes:
    rng = np.random.default_rng(seed)
    own = np.arange(n) % 3
    return Outcomes((CENTRES[own] + noise * rng.standard_normal((n, 4))).astype(np.float32), np.eye(3)[own])


def outcomes(n: int, seed: int) -> Outcomes:
    """A cheap model that is right where the first feature is positive, and a dear one that is nearly always right."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4)).astype(np.float32)
    return Outcomes(x, np.stack([x[:, 0] > 0, rng.random(n) < 0.95], 1).astype(np.float32))
