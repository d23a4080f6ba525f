"""Ids that sort by the time at which they were made, and times as records hold them.

For simulations the clock of stored events can run faster, in all processes alike: `TUNELOOP_CLOCK=ORIGIN,SPEED` lets
it stand at ORIGIN (seconds since 1970) when the real one does, and then go SPEED times as fast. Durations and
deadlines stay real.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tuneloop.core.errors import UserError

CLOCK = "TUNELOOP_CLOCK"

_lock = threading.Lock()
_last = 0


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562): milliseconds since 1970, then random bits.

    Those of one process grow strictly, also where the clock stands still or jumps back: the 12 bits behind the
    milliseconds count on then.
    """
    global _last
    now = int(clock() * 1000) << 12
    with _lock:
        _last = now = max(now, _last + 1)
    value = (now >> 12) << 80 | 7 << 76 | (now & 0xFFF) << 64 | 2 << 62 | int.from_bytes(os.urandom(8)) >> 2
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def utc_now() -> str:
    """The time as ISO 8601 in UTC with milliseconds: `2026-01-31T12:00:00.123Z`."""
    return utc(clock())


def clock() -> float:
    """Seconds since 1970 by the clock of stored events, see above."""
    now, setting = time.time(), os.environ.get(CLOCK, "")
    if not setting:
        return now
    try:
        origin, speed = map(float, setting.split(","))
    except ValueError:
        step = "ORIGIN,SPEED, as in 1767225600,10000"
        raise UserError(f"Not a clock: {setting!r:.60}", where=CLOCK, next_step=step) from None
    return origin + (now - origin) * speed


def _since_boot() -> float:
    """Seconds that never jump, with those in which the machine slept where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass
class ClockWatch:
    """Notices jumps of the system's clock: what waits for days must not believe one that has just jumped."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = _since_boot
    _seen: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self.wall(), self.steady()

    def ahead(self) -> float:
        """Seconds that the clock gained on real time since the last call; negative: it lost them."""
        wall, steady = self._seen
        self._seen = self.wall(), self.steady()
        return (self._seen[0] - wall) - (self._seen[1] - steady)


def utc(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def since_time(text: str, now: float | None = None) -> str:
    """`7d`, `24h`, `30m` before now, or an ISO time, as an ISO time; empty: the beginning; UserError: it is neither."""
    if match := re.fullmatch(r"(\d{1,6})([mhd])", text):
        seconds = int(match[1]) * {"m": 60, "h": 3600, "d": 86400}[match[2]]
        return utc((time.time() if now is None else now) - seconds)
    if text and not re.match(r"\d{4}-\d{2}-\d{2}($|T)", text):
        raise UserError(f"Not a time: {text!r:.40}", where="--since", next_step="write it as 24h, 7d or 2026-01-31")
    return text
