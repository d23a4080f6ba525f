"""Ids that sort by the time at which they were made, and times as records hold them."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime

_lock = threading.Lock()
_last = 0


def uuid7() -> str:
    """A UUID of version 7 (RFC 9562): milliseconds since 1970, then random bits.

    Those of one process grow strictly, also where the clock stands still or jumps back: the 12 bits behind the
    milliseconds count on then.
    """
    global _last
    now = (time.time_ns() // 1_000_000) << 12
    with _lock:
        _last = now = max(now, _last + 1)
    value = (now >> 12) << 80 | 7 << 76 | (now & 0xFFF) << 64 | 2 << 62 | int.from_bytes(os.urandom(8)) >> 2
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def utc_now() -> str:
    """The time as ISO 8601 in UTC with milliseconds: `2026-01-31T12:00:00.123Z`."""
    return utc(time.time())


def utc(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
