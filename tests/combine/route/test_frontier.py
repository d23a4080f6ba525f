"""Quality against cost, compared with what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from routed import outcomes, record, tasks

from tuneloop.combine.route.router import (
    calibration_error,
    fit_router,
    frontier,
    gap_recovered,
    judge_router,
    price_for,
    singles,
)

COSTS = np.array([1.0, 9.0])


def test_an_oracle_takes_the_cheapest_of_the_best() -> None:
    quality = np.array([[1, 1], [0, 1], [0, 0], [1, 0.0]])
    found = {single.name: single for single in singles(quality, COSTS, ["small", "large"])}
    assert found["oracle"].quality == 0.75 and found["oracle"].cost == (1 + 9 + 1 + 1) / 4
    assert (found["small"].quality, found["small"].cost) == (0.5, 1.0)


def test_knowing_the_outcomes_recovers_most_of_the_gap_and_noise_half_of_it() -> None:
    rng = np.random.default_rng(0)
    quality = np.stack([rng.random(4000) < 0.5, rng.random(4000) < 0.9], 1).astype(float)
    points, knows = frontier(quality, quality, COSTS)
    assert knows is not None and knows.value > 0.8 and knows.low <= knows.value <= knows.high
    assert points[0].quality == pytest.approx(quality.max(1).mean()) and points[-1].cost == 1.0
    noise = np.stack([np.zeros(4000), rng.standard_normal(4000) + 1], 1)
    _, blind = frontier(noise, quality, COSTS)
    assert blind is not None and blind.value == pytest.approx(0.5, abs=0.05)


def test_the_gap_of_a_straight_line_is_half_and_without_a_gap_there_is_none() -> None:
    cost, worth = np.array([1.0, 5.0, 9.0]), np.array([0.2, 0.5, 0.8])
    assert gap_recovered(cost, worth, COSTS, np.array([0.2, 0.8])) == pytest.approx(0.5)
    assert gap_recovered(cost, worth, COSTS, np.array([0.8, 0.2])) is None


def test_the_price_keeps_the_mean_cost_below_what_is_allowed() -> None:
    sure = np.random.default_rng(0).random((500, 2)) * np.array([0.7, 1.0])
    for most in (1.5, 4.0, 8.0):
        price = price_for(sure, COSTS, most)
        assert COSTS[(sure - price * COSTS).argmax(1)].mean() <= most
    assert price_for(sure, COSTS, 9.0) == 0.0 and price_for(sure, COSTS, 0.5) == float("inf")


def test_figures_of_a_router_for_tasks_and_for_outcomes() -> None:
    router = fit_router(tasks(150, 0), tasks(60, 1), record())
    far = np.tile(np.array([[0, 0, 0, 9.0]], dtype=np.float32), (20, 1))
    found = judge_router(router, tasks(300, 2), far)
    assert found.quality.low < found.quality.value < found.quality.high and set(found.recall) == {"m0", "m1", "m2"}
    assert found.caught == 1.0 and found.auroc is not None and found.auroc > 0.95 and found.gap_recovered is None
    priced = fit_router(outcomes(300, 0), outcomes(100, 1), record(2, False, (1.0, 10.0)))
    other = judge_router(priced, outcomes(300, 2))
    assert other.gap_recovered is not None and other.gap_recovered.value > 0.6
    assert other.singles[-1].quality >= other.quality.value >= other.singles[0].quality


def test_no_share_is_told_of_a_gap_that_may_not_be_there() -> None:
    rng = np.random.default_rng(5)
    costs = np.array([1.0, 3.0])
    alike = (rng.random((250, 2)) < [0.53, 0.54]).astype(np.float64)
    better = (rng.random((250, 2)) < [0.3, 0.7]).astype(np.float64)
    sure = rng.random((250, 2))
    assert alike.mean(0)[1] != alike.mean(0)[0] and frontier(sure, alike, costs)[1] is None
    gap = frontier(sure, better, costs)[1]
    assert gap is not None and gap.low < gap.value < gap.high


def test_the_calibration_error_is_that_of_bins() -> None:
    assert calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0.0])) == pytest.approx(0.15)
