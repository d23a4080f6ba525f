"""A router learns from answers of which one model's worth is known, and its figures are what it would have been worth."""

from __future__ import annotations

import numpy as np
import pytest

from tuneloop.combine.bandit import Logged, fit_bandit, judged_bandit, worth_of_choices
from tuneloop.combine.router import Router
from tuneloop.core.errors import UserError
from tuneloop.records.router import RouterRecord, RouteTarget

GOOD, BAD, FLOOR = 0.9, 0.3, 0.3


def in_use() -> Router:
    """Sends everything to the first model, but for what goes by chance."""
    routes = [RouteTarget(name="a"), RouteTarget(name="b")]
    record = RouterRecord(
        kind="constant", features="words", exclusive=True, routes=routes, threshold=-0.5, explore=FLOOR
    )
    return Router(
        record,
        {"mean": np.zeros(2, np.float32), "rows": np.eye(2, dtype=np.float32), "outcomes": np.array([[1.0, 0.0]])},
    )


def logged(count: int, seed: int) -> tuple[Logged, np.ndarray]:
    """Requests of two kinds; each model is good at one. Returns them with the right model of each."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 2, count)
    features = np.stack([right == 0, right == 1], 1) + 0.2 * rng.standard_normal((count, 2))
    chosen = np.where(rng.random(count) < FLOOR, rng.integers(0, 2, count), 0)
    chance = FLOOR / 2 + (1 - FLOOR) * (chosen == 0)
    worth = (rng.random(count) < np.where(chosen == right, GOOD, BAD)).astype(float)
    return Logged(features.astype(np.float32), chosen, chance, worth), right


def test_the_worth_of_other_choices_is_found_without_making_them() -> None:
    rows, right = logged(20_000, 0)
    assert worth_of_choices(rows, right) == pytest.approx(GOOD, abs=0.02)
    assert worth_of_choices(rows, 1 - right) == pytest.approx(BAD, abs=0.02)
    assert worth_of_choices(rows, np.zeros(len(rows), int)) == pytest.approx((GOOD + BAD) / 2, abs=0.02)
    assert np.isnan(worth_of_choices(rows.part(rows.chosen == 0), np.ones(int((rows.chosen == 0).sum()), int)))


def test_a_router_learns_which_model_is_good_at_what() -> None:
    train, _ = logged(800, 1)
    val, _ = logged(300, 2)
    test, right = logged(600, 3)
    router = fit_bandit(train, val, in_use())
    assert router.record.kind == "logreg" and not router.record.exclusive and router.record.threshold == -0.5
    assert (router.choose(test.features) == right).mean() > 0.95
    found = judged_bandit(router, test)
    assert found.in_use is not None and found.in_use.high < found.quality.low <= GOOD <= found.quality.high
    assert found.singles[0].quality == pytest.approx((GOOD + BAD) / 2, abs=0.1)
    assert {one.kind for one in router.record.candidates} == {"constant", "logreg"}


def test_one_model_that_is_always_better_is_always_chosen() -> None:
    train, _ = logged(400, 4)
    rows = Logged(train.features, train.chosen, train.chance, (train.chosen == 1).astype(float))
    router = fit_bandit(rows, rows, in_use())
    assert (router.choose(rows.features) == 1).all()


def test_a_model_that_nobody_has_rated_is_named() -> None:
    rows, _ = logged(400, 5)
    with pytest.raises(UserError, match="People have rated 0 of its answers") as caught:
        fit_bandit(rows.part(rows.chosen == 0), rows, in_use())
    assert caught.value.where == "b"
