"""Bounds of a bounded mean: those of Clopper and Pearson for two values, and right about losses not seen yet."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tuneloop.core.stats.bounded import bounded_interval, cluster_values


@pytest.mark.parametrize("n", [2, 5, 20, 200])
def test_equal_rows_give_the_rule_of_three(n: int) -> None:
    low, high = bounded_interval([0.0] * n, 1.0)
    assert low == pytest.approx(-(1 - 0.025 ** (1 / n)), rel=0.01) and high == pytest.approx(-low, abs=1e-6)


@pytest.mark.parametrize(("lost", "n"), [(1, 50), (4, 200), (10, 40)])
def test_two_values_give_the_interval_of_clopper_and_pearson(lost: int, n: int) -> None:
    low, _ = bounded_interval([-1.0] * lost + [0.0] * (n - lost), 1.0)
    assert low == pytest.approx(-stats.binomtest(lost, n).proportion_ci().high, rel=0.01)


def test_against_0_it_is_the_exact_test_of_mcnemar() -> None:
    low, _ = bounded_interval([1.0] * 6 + [0.0] * 14, 1.0)
    assert low > 0 and bounded_interval([1.0] * 5 + [0.0] * 15, 1.0)[0] < 0


def test_many_rows_give_the_normal_interval() -> None:
    rows = np.random.default_rng(0).normal(0.1, 0.5, 4000).clip(-1, 1)
    theirs = stats.ttest_1samp(rows, 0).confidence_interval()
    assert bounded_interval(rows, 1.0) == pytest.approx((theirs.low, theirs.high), abs=1e-3)


def test_rare_losses_are_shown_to_be_harmless_as_seldom_as_the_level_says() -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(400):
        rows = np.where(rng.random(50) < 0.05, -1.0, rng.normal(0, 0.02, 50))
        shown += bounded_interval(rows, 1.0)[0] > -0.05
    assert shown <= 400 * 0.04


def test_rows_without_a_value_do_not_count_and_clusters_count_once() -> None:
    assert bounded_interval([0.0, math.nan, 0.0], 1.0) == bounded_interval([0.0, 0.0], 1.0)
    assert all(map(math.isnan, bounded_interval([math.nan], 1.0)))
    values, times = cluster_values(np.array([0.2, 0.4, 0.0, math.nan]), [0, 0, 1, 1])
    assert float(values.mean()) == pytest.approx(0.2) and times == pytest.approx(4 / 3)
