"""One rule for further tries: what a busy server names is waited for, and fewer requests are made at the same time."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from tuneloop.core.http.timeouts import Throttle, backoff, is_busy, seconds_to_wait


def test_retry_after_in_both_forms() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert seconds_to_wait("2.5") == 2.5 and seconds_to_wait("-3") == 0
    assert seconds_to_wait("Tue, 01 Jan 2030 00:01:00 GMT", lambda: now) == 60
    assert seconds_to_wait("soon") is None and seconds_to_wait(None) is None and seconds_to_wait("inf") is None


def test_only_a_rate_or_a_named_time_says_busy() -> None:
    assert is_busy(429, None) and is_busy(503, 1.0)
    assert not is_busy(503, None) and not is_busy(503, 0.0) and not is_busy(500, 1.0)


def test_pauses_double_up_to_the_longest() -> None:
    assert all(0.5 <= backoff(0, 1.0, 60.0) <= 1.0 and 30.0 <= backoff(40, 1.0, 60.0) <= 60.0 for _ in range(100))


def test_requests_that_are_refused_together_halve_their_number_once() -> None:
    throttle, began = Throttle(8, pause=0.01), time.monotonic()
    assert [throttle.refused(began, 5.0) for _ in range(3)] == [0.0] * 3
    assert throttle.at_once == 4 and 4.0 < throttle.left <= 5.0
    throttle.refused(time.monotonic(), 1.0)
    assert throttle.at_once == 2 and throttle.left > 4.0, "a shorter time does not end a longer one"
    for _ in range(100):
        throttle.answered()
    assert throttle.at_once == 8


@pytest.mark.parametrize("patience", [1.0, float("inf")])
def test_a_time_beyond_the_patience_is_given_back(patience: float) -> None:
    throttle = Throttle(2, patience=patience)
    assert throttle.refused(time.monotonic(), 3600.0) == (3600.0 if patience == 1.0 else 0.0)
