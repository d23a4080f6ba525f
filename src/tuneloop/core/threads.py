"""How many threads torch computes with: all cores of a quiet machine, fewer where other programs need them.

The threads of an operation spin until the last one is done: on two cores with four busy programs, training with two
threads ran at 1 % of its speed, with one at 15 %. Another count rounds sums in another order, so a run's
`metrics.jsonl` says when it changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from dataclasses import dataclass

from tuneloop.core.machine import cores

SHAPES_KEPT = 128  # a layer and its gradient have 40 to 60
# Seconds between two looks at how long this thread has waited for a core, and between two measurements; the shares of
# time waited above which fewer threads are tried, and below which more are.
LOOK_EVERY, MEASURE_EVERY = 1.0, 15.0
CONTENDED, QUIET = 0.1, 0.03
# Seconds in which a thread count is measured, in turns; and how much faster fewer threads must be.
TURN, TURNS, FASTER = 0.06, 2, 1.2


@dataclass
class _Watched(threading.local):
    """What one thread knows of its waiting: torch's thread count is each thread's, too."""

    next_look: float = 0.0
    looked: float = 0.0
    waited: float = 0.0
    next_measurement: float = 0.0


_watched = _Watched()


def use_threads() -> int:
    """Set torch's threads to the cores that this process may use, and hold memory where that pays and only there.

    glibc gives every large free block back at once, and each new one then costs page faults; holding on to them took 7
    % off a training step. oneDNN keeps half a MiB for each shape that it has multiplied, of 1,024 shapes: rows of many
    lengths fill that with what is never used again. Its two caches are read from the environment when it first
    computes.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(SHAPES_KEPT))

    import torch

    torch.set_num_threads(most_threads())
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for threshold in (-3, -1):  # of mmap and trim
            libc.mallopt(threshold, 1 << 30)
    return torch.get_num_threads()


def most_threads() -> int:
    """Threads of a quiet machine: those of `OMP_NUM_THREADS`, else one for each core."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())


def adapt_threads() -> None:
    """Measure the thread counts again where this thread has begun to wait for a core, or no longer does.

    For the places between which a model computes: a call costs a clock reading. Only on Linux, where the kernel counts
    the waiting, and not where `OMP_NUM_THREADS` says how many threads there are.
    """
    now = time.monotonic()
    if now < _watched.next_look:
        return
    if "OMP_NUM_THREADS" in os.environ or cores() == 1 or (waited := _seconds_waited()) is None:
        _watched.next_look = float("inf")
        return
    share = (waited - _watched.waited) / (now - _watched.looked)
    first = not _watched.looked
    _watched.next_look, _watched.looked, _watched.waited = now + LOOK_EVERY, now, waited
    if first or now < _watched.next_measurement:
        return
    import torch

    threads = torch.get_num_threads()
    if (share > CONTENDED and threads > 1) or (share < QUIET and threads < most_threads()):
        torch.set_num_threads(fastest_threads())
        _watched.next_measurement = time.monotonic() + MEASURE_EVERY
        _watched.looked, _watched.waited = time.monotonic(), _seconds_waited() or 0.0


def fastest_threads() -> int:
    """The thread count, from all cores down by halves to one, with which small operations are fastest here and now.

    Takes about a tenth of a second for each count. Fewer threads than there are cores must be `FASTER` times as fast.
    """
    counts = [most_threads()]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    rates = dict.fromkeys(counts, 0.0)
    for _ in range(TURNS):  # in turns, for a machine's load changes
        for count in counts:
            rates[count] += _rate(count)
    rates[counts[0]] *= FASTER
    return max(counts, key=rates.__getitem__)


def _rate(threads: int) -> float:
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        x, w = torch.full((128, 512), 1e-3), torch.full((512, 512), 1e-3)
        number, start = 0, time.monotonic()
        while (took := time.monotonic() - start) < TURN:
            torch.nn.functional.silu(x @ w)
            number += 1
    return number / took


def _seconds_waited() -> float | None:
    """Seconds for which this thread was ready to run and had no core; None where the system does not count them."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/thread-self/schedstat") as file:
        return int(file.read().split()[1]) / 1e9
    return None
