"""How long an engine is waited for, in seconds, and when a request is tried again: one rule for all that send requests.

That a server is busy is no failure: all requests wait for the time that it names, and half as many are made at the same
time from then on. Each answer lets that number grow again.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

# A connection.
CONNECT_WITHIN: Final = 5.0  # while a client waits for its answer
CONNECT_FAR_WITHIN: Final = 15.0  # for rows of a file, which no one waits for one by one
ANSWER_WITHIN: Final = 120.0  # the whole answer to a row; `--timeout` says otherwise

# An engine's life.
START_WITHIN: Final = 120.0  # the packaged model is there in three, 8 GB from a slow disk take minutes
STOP_WITHIN: Final = 30.0  # a forward pass may take so long to end
READY_PAUSE: Final = 0.5  # between two looks whether a server is ready
MODELS_WITHIN: Final = 10.0  # the list of a server's models
METRICS_WITHIN: Final = 5.0  # the metrics of a server
TOKENS_WITHIN: Final = 60.0  # the tokens of a long prompt, which a server counts

# What hangs.
HEALTHY_WITHIN: Final = 5.0  # an answer to a question about health; of a child on this machine see below
CHILD_HEALTHY_WITHIN: Final = 2.0
HANGS_AFTER: Final = 5.0  # silence, or no processor time used, after which a child is taken to hang
CHILD_ANSWERS_WITHIN: Final = 600.0  # a model that loads from a slow disk takes minutes
LOOK_EVERY: Final = 0.25  # between two looks whether a child has ended
REVIVE_PAUSE: Final = 5.0  # before it is tried again to start a child that has ended

# Further tries.
PAUSE: Final = 1.0  # before the first of them; doubled each time
LONGEST_PAUSE: Final = 60.0  # between two tries, where the server names no time
PATIENCE: Final = 600.0  # for a busy server that gives no answer at all

# Answers of a server, by the status of HTTP.
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
    """How many requests may be under way, and from when on."""

    most: float  # requests at the same time
    pause: float = PAUSE  # this and `longest`: seconds between two tries where no time is named, see `backoff`
    longest: float = LONGEST_PAUSE
    patience: float = PATIENCE  # seconds for which a busy server is waited for without a single answer
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
