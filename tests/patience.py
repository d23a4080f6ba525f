"""How long tests wait: limits that hold on any machine.

A limit in plain seconds fails on an old or a busy machine. So a test that guards against a process that hangs waits for `HANG` seconds, and
a test of speed multiplies its limit by `slowness()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

HANG = 1800.0  # seconds: a process that takes longer hangs; not a limit on its speed
REFERENCE = 0.012  # seconds that `_work` takes on a quiet core of 2024


def _work() -> int:
    total = 0
    for i in range(200_000):
        total += i % 7
    return total


def slowness() -> float:
    """How many times as long as on the reference machine plain Python takes here and now, at least 1: the median of five runs."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        _work()
        times.append(time.perf_counter() - start)
    return max(1.0, sorted(times)[2] / REFERENCE)


def until(met: Callable[[], object]) -> None:
    """Wait for what another thread or process does."""
    deadline = time.monotonic() + HANG
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)
