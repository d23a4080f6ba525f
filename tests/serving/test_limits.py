"""What a key has used is what its requests used, and nobody spends a dollar twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuneloop.core.ids import utc_now, uuid7
from tuneloop.records.request import StoredRequest
from tuneloop.serving.admission import Ledger, Refusal
from tuneloop.serving.http.feedback import FeedbackLimit
from tuneloop.serving.keys import ApiKey, Limits, add_key, read_keys, revoke_key
from tuneloop.serving.server import _spent
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.store import opened


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(**limits: object) -> ApiKey:
    return ApiKey(id="0" * 8, name="anna", sha256="", created="", limits=Limits(**limits))  # type: ignore[arg-type]


def test_a_budget_holds_for_requests_that_run_at_the_same_time() -> None:
    ledger = Ledger()
    first = ledger.reserve(key(budget_usd=1.0), 10, 0.6)
    with pytest.raises(Refusal) as refused:
        ledger.reserve(key(budget_usd=1.0), 10, 0.6)
    assert refused.value.code == "insufficient_quota" and refused.value.retry_after is None
    ledger.settle(first, 5, 0.3)
    ledger.settle(first, 5, 0.3)
    with pytest.raises(Refusal, match=r"has spent 0\.3000 of its 1\.0000 USD, 0\.0000 are reserved"):
        ledger.reserve(key(budget_usd=1.0), 10, 0.8)
    ledger.settle(ledger.reserve(key(budget_usd=1.0), 10, 0.6), 10, 0.6)
    with pytest.raises(Refusal, match=r"has spent 0\.9000 of its 1\.0000 USD"):
        ledger.reserve(key(budget_usd=1.0), 10, 0.6)


def test_what_was_spent_before_a_restart_counts() -> None:
    with pytest.raises(Refusal):
        Ledger({"0" * 8: 0.9}).reserve(key(budget_usd=1.0), 10, 0.2)


def test_a_name_that_is_used_again_starts_at_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.settle(ledger.reserve(key(budget_usd=1.0), 10, 0.9), 10, 0.9)
    ledger.reserve(key(budget_usd=1.0).model_copy(update={"id": "1" * 8}), 10, 0.9)
    for usd in (0.4, 0.3):
        _, made = add_key(tmp_path, "anna", Limits(budget_usd=1.0))
        with opened(tmp_path, create=True) as store:
            insert(store, [StoredRequest(id=uuid7(), time=utc_now(), key="anna", model="m", prompt=[], usd=usd)])
        assert _spent(str(tmp_path), read_keys(tmp_path)) == ({made.id: usd}, True)
        revoke_key(tmp_path, "anna")
        time.sleep(0.01)  # times have milliseconds
    assert _spent(str(tmp_path), read_keys(tmp_path)) == ({}, True)


def test_requests_a_minute_come_back_with_time() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    for _ in range(3):
        ledger.reserve(key(rpm=3), 1, 0)
    with pytest.raises(Refusal) as refused:
        ledger.reserve(key(rpm=3), 1, 0)
    assert refused.value.retry_after == pytest.approx(20)
    clock.now += 20
    ledger.reserve(key(rpm=3), 1, 0)
    clock.now -= 50  # a clock that jumps back gives nothing and takes nothing
    with pytest.raises(Refusal):
        ledger.reserve(key(rpm=3), 1, 0)


def test_what_is_left_is_said_as_openai_says_it() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    anna = key(rpm=4, tpm=1000)
    assert ledger.headers(None) == ledger.headers(key(budget_usd=1.0)) == {}
    full = {f"x-ratelimit-{name}" for name in ("limit-tokens", "remaining-tokens", "reset-tokens")}
    assert set(ledger.headers(key(tpm=5))) == full
    for _ in range(3):
        ledger.reserve(anna, 200, 0)
    assert ledger.headers(anna) == {
        "x-ratelimit-limit-requests": "4", "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "45s",
        "x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "400", "x-ratelimit-reset-tokens": "36s",
    }  # fmt: skip
    clock.now += 44.99
    assert ledger.headers(anna)["x-ratelimit-reset-requests"] == "10ms"
    ledger.reserve(anna, 1000, 0)
    with pytest.raises(Refusal) as refused:
        ledger.reserve(anna, 1000, 0)
    said = refused.value.headers
    assert said["Retry-After"] == "61" and said["x-ratelimit-reset-tokens"] == "1m0s"
    assert said["x-ratelimit-remaining-tokens"] == "0" and said["x-ratelimit-remaining-requests"] == "2"


def test_tokens_that_were_not_used_are_given_back() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    held = ledger.reserve(key(tpm=100, rpm=10), 90, 0)
    with pytest.raises(Refusal):
        ledger.reserve(key(tpm=100, rpm=10), 50, 0)
    ledger.settle(held, 10, 0)
    ledger.reserve(key(tpm=100, rpm=10), 50, 0)
    ledger.settle(ledger.reserve(None, 10**9, 10**9), 1, 1)  # without a key there are no limits


def test_a_request_larger_than_the_rate_waits_for_a_full_minute_and_goes_through() -> None:
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.reserve(key(tpm=100), 1000, 0)
    with pytest.raises(Refusal) as refused:
        ledger.reserve(key(tpm=100), 1000, 0)
    clock.now += refused.value.retry_after or 0
    ledger.reserve(key(tpm=100), 1000, 0)


def test_feedback_comes_back_with_time_and_few_users_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.serving.http.feedback.MOST_SENDERS", 3)
    clock = Clock()
    limit = FeedbackLimit(2, 1000, clock)
    for _ in range(2):
        limit.take("anna", page=False)
    with pytest.raises(Refusal) as refused:
        limit.take("anna", page=True)
    assert refused.value.retry_after == pytest.approx(30.0)
    clock.now += 30
    limit.take("anna", page=False)
    for who in "abcdef":
        limit.take(who, page=False)
    assert len(limit._senders) == 3
