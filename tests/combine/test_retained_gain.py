"""Shares of an expert's gain, with paired intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tuneloop.combine.retained_gain import Score, difference, holds, kept_share, point_share, ratio
from tuneloop.records.merge import Share


def scores(*shares: float, n: int = 400, seed: int = 0) -> list[Score]:
    """Models that are right on these shares of the same rows; whoever is better is right where a worse one is."""
    rng = np.random.default_rng(seed)
    right = [np.arange(n) < share * n for share in shares]
    picks = rng.integers(0, n, (1000, n))
    return [Score(float(r.mean()), r[picks].mean(1)) for r in right]


def test_the_share_is_that_of_the_gain_and_its_interval_holds_it() -> None:
    base, expert, merged = scores(0.4, 0.9, 0.8)
    kept = kept_share(base, expert, merged)
    assert kept is not None and kept.value == pytest.approx(0.8)
    assert 0.7 < kept.low < 0.8 < kept.high < 0.9
    all_of_it = kept_share(base, expert, expert)
    assert all_of_it is not None and (all_of_it.value, all_of_it.low, all_of_it.high) == (1.0, 1.0, 1.0)
    nothing = kept_share(base, expert, base)
    assert nothing is not None and nothing.value == nothing.high == 0.0


def test_an_expert_without_a_sure_gain_has_no_share() -> None:
    base, expert, merged = scores(0.5, 0.505, 0.4)
    assert kept_share(base, expert, merged) is None
    assert kept_share(expert, base, merged) is None


def test_a_metric_of_which_less_is_better_changes_its_sign() -> None:
    base, expert, merged = (Score(-v, np.full(50, -v)) for v in (3.0, 1.0, 2.0))
    kept = kept_share(base, expert, merged)
    assert kept is not None and kept.value == 0.5


def test_a_task_holds_by_its_share_or_without_one_by_not_being_surely_worse() -> None:
    none = Share(value=0.0, low=-0.1, high=0.1)
    assert holds(Share(value=0.95, low=0.92, high=1.0), none, 0.1) == (True, True)
    assert holds(Share(value=0.95, low=0.8, high=1.0), none, 0.1) == (True, False)
    assert holds(Share(value=0.5, low=0.3, high=0.7), none, 0.1) == (False, True)
    assert holds(None, none, 0.1) == (True, False)
    assert holds(None, Share(value=-0.3, low=-0.4, high=-0.2), 0.1) == (False, False)


def test_a_difference_is_paired() -> None:
    base, expert, merged = scores(0.4, 0.9, 0.8)
    delta = difference(expert, merged)
    assert delta.value == pytest.approx(-0.1) and -0.14 < delta.low < delta.high < -0.06
    assert difference(merged, merged).high == 0.0 and base.value == 0.4


def test_a_search_goes_by_the_gain_and_without_one_by_the_difference() -> None:
    assert point_share(0.2, 0.8, 0.5) == pytest.approx(0.5)
    assert point_share(0.8, 0.7, 0.6) == pytest.approx(0.9)


def test_a_ratio_is_paired_and_of_something() -> None:
    teacher, student, nothing = scores(0.9, 0.45, 0.0)
    found = ratio(teacher, student)
    assert found is not None and found.value == pytest.approx(0.5) and 0.4 < found.low < 0.5 < found.high < 0.6
    assert ratio(nothing, student) is None
    assert ratio(Score(-2.0, np.array([-2.0])), Score(-3.0, np.array([-3.0]))) is None


def test_so_few_rows_that_no_test_could_show_a_difference_show_none() -> None:
    right = np.array([[0.0, 0, 0, 0, 0, 1], [1.0, 1, 1, 1, 1, 1]])  # five rows apart
    picks = np.random.default_rng(0).integers(0, 6, (1000, 6))
    base, expert = (Score(float(r.mean()), r[picks].mean(1), r[:, None]) for r in right)
    assert difference(base, expert).low == 0 < difference(replace(base, rows=None), expert).low
    assert kept_share(base, expert, expert) is None
