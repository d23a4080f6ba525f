"""A small model first, a larger one where it is unsure: the threshold follows from rows, the figures from others."""

from __future__ import annotations

import numpy as np
import pytest

from tuneloop.combine.route.cascade import CascadeRows, choose_threshold, judged_cascade, thresholds_of
from tuneloop.combine.route.router import gap_recovered


def rows(n: int = 2000, seed: int = 0, informed: bool = True, large: float = 0.9) -> CascadeRows:
    """A small model that is right as often as it says, or whose confidence says nothing."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.2, 1.0, n)
    right = rng.random(n) < (confidence if informed else 0.6)
    return CascadeRows(confidence, np.stack([right, rng.random(n) < large], 1).astype(float), (1.0, 10.0))


def test_only_unsure_rows_go_on_and_the_small_model_is_always_paid() -> None:
    found = rows()
    grid = thresholds_of(found)
    assert found.cost(grid[0]) == 1.0 and found.cost(grid[-1]) == pytest.approx(11.0)
    below = found.below(0.5)
    assert found.confidence[below].max() < 0.5 <= found.confidence[~below].min()
    assert found.cost(0.5) == pytest.approx(1.0 + 10.0 * below.mean())
    assert np.array_equal(found.worth(0.5), np.where(below, found.quality[:, 1], found.quality[:, 0]))


def test_the_threshold_is_where_the_large_model_is_no_more_likely_to_be_right() -> None:
    assert choose_threshold(rows(20000)) == pytest.approx(0.9, abs=0.06)
    useless = rows(20000, large=0.1)
    assert useless.cost(choose_threshold(useless)) < 1.1


def test_a_most_cost_holds_where_it_was_chosen() -> None:
    found = rows()
    threshold = choose_threshold(found, most=4.0)
    assert 3.0 < found.cost(threshold) <= 4.0
    assert choose_threshold(found, most=1.0) == thresholds_of(found)[0]


def test_a_confidence_that_means_something_recovers_more_than_one_that_does_not() -> None:
    good, idle = (judged_cascade(rows(informed=told), 0.7, ("s", "l"), "accuracy") for told in (True, False))
    assert good.gap_recovered is not None and idle.gap_recovered is not None
    assert good.gap_recovered.low > 0.6 and idle.gap_recovered.high < 0.5
    assert good.gap_recovered.low <= good.gap_recovered.value <= good.gap_recovered.high
    assert [single.name for single in good.singles] == ["s", "l", "oracle"]
    assert good.singles[2].quality >= good.quality.value
    costs = [point.cost for point in good.frontier]
    assert costs == sorted(costs) and costs[0] == 1.0


def test_the_figures_are_those_of_the_rows() -> None:
    found = rows(300)
    record = judged_cascade(found, 0.7, ("s", "l"), "accuracy")
    assert record.quality.value == pytest.approx(found.worth(0.7).mean())
    assert record.over_large.value == pytest.approx(found.worth(0.7).mean() - found.quality[:, 1].mean())
    grid = thresholds_of(found)
    whole = gap_recovered(
        np.array([found.cost(t) for t in grid]), np.array([found.worth(t).mean() for t in grid]),
        np.array(found.costs), found.quality.mean(0),
    )  # fmt: skip
    assert record.gap_recovered is not None and record.gap_recovered.value == pytest.approx(whole)
    assert judged_cascade(rows(large=0.1), 0.7, ("s", "l"), "accuracy").gap_recovered is None
