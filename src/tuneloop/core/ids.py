"""Ids that sort by the time at which they were made, and times as records hold them.

For simulations the clock of stored events can run faster, in all processes alike: `TUNELOOP_CLOCK=ORIGIN,SPEED` lets
it stand at ORIGIN (seconds since 1970) when the real one does, and then go SPEED times as fast. Durations and
deadlines stay real.
"""

from __future__ import annotations

import os
import threading
import time
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


def utc(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
