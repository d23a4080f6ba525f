"""When a request is tried again, and how many are under way at a server that is busy: one rule for all who ask.

That a server is busy is no failure: everybody waits for the time that it names, and half as many requests are made at the
same time from then on. Each answer lets that number grow again.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tuneloop.inference.timeouts import LONGEST_PAUSE, PATIENCE, PAUSE

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
REFUSED = frozenset({401, 403, 404, 405})  # wrong for one request, wrong for all
NO_QUOTA = "insufficient_quota"  # in an answer with 429 that no time helps


def is_busy(status: int, wait: float | None) -> bool:
    """Whether a server with this status of HTTP takes requests later; 503 says so only where it names a time."""
    return status == 429 or (status == 503 and bool(wait))


def backoff(before: int, pause: float = PAUSE, longest: float = LONGEST_PAUSE) -> float:
    """Seconds before the next try, after some tries: `pause`, doubled each time, with chance."""
    return min(pause * 2.0 ** min(before, 16), longest) * random.uniform(0.5, 1.0)


def seconds_to_wait(header: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """`Retry-After`, in seconds or as a date (RFC 9110, 10.2.3); None where it says nothing that can be read."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(header) - now()).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds == seconds and seconds != float("inf") else None


@dataclass
class Throttle:
    """How many requests may be under way, and from when on.

    Args:
        most: requests at the same time.
        pause, longest: seconds between two tries where no time is named, see `backoff`.
        patience: seconds for which a busy server is waited for without a single answer.
    """

    most: float
    pause: float = PAUSE
    longest: float = LONGEST_PAUSE
    patience: float = PATIENCE
    at_once: float = field(init=False)  # requests that may be under way now
    _resume_at: float = 0.0  # of the monotonic clock
    _shrunk: float = 0.0
    _refusals: int = 0  # without an answer between them
    _busy_since: float = float("inf")

    def __post_init__(self) -> None:
        self.at_once = self.most

    @property
    def left(self) -> float:
        """Seconds in which no request may begin."""
        return max(self._resume_at - time.monotonic(), 0.0)

    def answered(self) -> None:
        """Count an answer."""
        self._refusals, self._busy_since = 0, float("inf")
        self.at_once = min(self.most, self.at_once + 1 / self.at_once)

    def refused(self, began: float, wait: float | None) -> float:
        """Hold all requests, because the server is busy.

        Args:
            began: when the request did, of the monotonic clock: those that were refused together count once.
            wait: seconds that the server names.

        Returns:
            0; or the time that it wants, where that is longer than it is waited for.
        """
        now = time.monotonic()
        wait = wait or backoff(self._refusals, self.pause, self.longest)
        self._busy_since = min(self._busy_since, now)
        if now + wait - self._busy_since > self.patience:
            return wait
        self._resume_at = max(self._resume_at, now + wait)
        if began >= self._shrunk:
            self.at_once, self._shrunk = max(self.at_once / 2, 1.0), now
            self._refusals += 1
        return 0.0
