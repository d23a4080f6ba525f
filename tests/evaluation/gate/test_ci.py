"""The line for CI: worse, not worse, or not enough evidence, with a margin or without."""

from __future__ import annotations

import pytest

from tuneloop.evaluation.gate.ci import not_worse
from tuneloop.records.evaluation import Claim, EvaluationManifest, Standing, VerdictPart


def manifest(*claims: Claim, needed: int | None = None) -> EvaluationManifest:
    first = claims[0]
    standing = Standing("b", "a", "prompt", "not enough evidence", first.gain, first.low, first.high, first.p, first.p,
                        rows_needed=needed, claims=list(claims))  # fmt: skip
    verdict = VerdictPart(
        sentence="", name="b", outcome="not enough evidence", metric=first.metric, standings=[standing]
    )
    return EvaluationManifest(n=100, metrics={}, verdict=verdict)


def claim(gain: float, low: float, high: float, metric: str = "accuracy") -> Claim:
    return Claim(metric, "", gain, low, high, 0.01)


@pytest.mark.parametrize(
    ("gain", "low", "high", "margin", "status"),
    [
        (-0.06, -0.09, -0.03, 0, "fail"),
        (-0.06, -0.09, -0.03, 2, "fail"),
        (-0.03, -0.05, -0.01, 2, "inconclusive"),
        (-0.01, -0.015, -0.005, 2, "pass"),
        (0.0, -0.05, 0.05, 2, "inconclusive"),
        (0.0, -0.01, 0.01, 2, "pass"),
        (0.02, -0.01, 0.05, 0, "inconclusive"),
        (0.05, 0.01, 0.09, 0, "pass"),
    ],
)
def test_the_interval_decides(gain: float, low: float, high: float, margin: float, status: str) -> None:
    ci = not_worse(manifest(claim(gain, low, high)), margin)
    assert ci.status == status and ci.message.startswith(f"{status}: b against a ")
    assert "on 100 items" in ci.message and "\n" not in ci.message


def test_a_loss_in_another_headline_metric_fails_it_too() -> None:
    ci = not_worse(manifest(claim(0.05, 0.01, 0.09), claim(-0.2, -0.3, -0.1, "macro_f1")))
    assert ci.status == "fail" and "macro-F1" in ci.message


def test_what_would_settle_it_is_in_the_line() -> None:
    assert "about 1,200 items would settle it" in not_worse(manifest(claim(0, -0.1, 0.1), needed=1200)).message
    assert not_worse(EvaluationManifest(n=3, metrics={})).status == "inconclusive"
