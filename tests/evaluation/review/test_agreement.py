"""Agreement and ranking against published examples; estimates against simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.evaluation.review.results import (
    Duel,
    alpha_with_interval,
    bradley_terry,
    krippendorff_alpha,
    ranking,
    stratified_mean,
)

# Krippendorff 2011, section E: 4 observers, 12 units, missing values.
_ = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
UNITS = [[row[i] for row in OBSERVERS if row[i] is not None] for i in range(12)]

# Agresti, "Categorical Data Analysis": baseball, American League East 1987; wins of a row's team over a column's.
BASEBALL = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
BASEBALL_STRENGTHS = [1.58, 1.44, 1.29, 1.25, 1.11, 0.68, 0.0]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(level: str, published: float) -> None:
    assert krippendorff_alpha(UNITS, level) == pytest.approx(published, abs=5e-4)  # type: ignore[arg-type]


def test_alpha_of_two_observers_is_the_published_one() -> None:
    """Krippendorff 2011, section A (binary, 2 observers): 0.095."""
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha([list(pair) for pair in zip(meg, owen, strict=True)]) == pytest.approx(0.095, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=5), max_size=20))
def test_alpha_is_at_most_one_and_depends_on_no_order(units: list[list[str]]) -> None:
    alpha = krippendorff_alpha(units)
    assert math.isnan(alpha) or alpha <= 1 + 1e-12
    again = krippendorff_alpha([list(reversed(unit)) for unit in reversed(units)])
    assert again == pytest.approx(alpha, nan_ok=True)


def test_the_interval_of_alpha_holds_it() -> None:
    estimate = alpha_with_interval(UNITS, "nominal")
    assert estimate.low < estimate.value < estimate.high


def test_bradley_terry_gives_the_published_strengths() -> None:
    strengths = bradley_terry(np.array(BASEBALL, dtype=float))
    assert strengths - strengths[-1] == pytest.approx(BASEBALL_STRENGTHS, abs=0.012)


def test_a_system_that_always_wins_has_a_finite_strength() -> None:
    strengths = bradley_terry(np.array([[0.0, 30.0], [0.0, 0.0]]))
    assert np.isfinite(strengths).all() and strengths[0] > strengths[1] + 3


def test_the_ranking_puts_the_stronger_first_with_an_interval_that_narrows() -> None:
    rng = random.Random(1)

    def duels(n: int) -> list[Duel]:
        return [Duel((0, 1), (1.0, 0.0, 0.0) if rng.random() < 0.3 else (0.0, 1.0, 0.0), 1.0) for _ in range(n)]

    few, many = ranking(["a", "b"], duels(30)), ranking(["a", "b"], duels(600))
    assert list(many) == ["b", "a"]
    gap = many["b"].value - many["a"].value
    assert gap == pytest.approx(math.log(0.7 / 0.3), abs=0.3)
    assert many["b"].low < many["b"].value < many["b"].high
    assert many["b"].high - many["b"].low < few["b"].high - few["b"].low


def test_weights_make_a_skewed_sample_unbiased_and_intervals_keep_their_promise() -> None:
    """900 easy rows (90 % good) and 100 hard ones (10 % good), of which half of all reviews come."""
    rng = random.Random(3)
    truth = (900 * 0.9 + 100 * 0.1) / 1000
    covered, values = 0, []
    for _ in range(400):
        scores = {
            "easy": [float(rng.random() < 0.9) for _ in range(40)],
            "hard": [float(rng.random() < 0.1) for _ in range(40)],
        }
        estimate = stratified_mean(scores, {"easy": 900, "hard": 100})
        values.append(estimate.value)
        covered += estimate.low <= truth <= estimate.high
    assert sum(values) / 400 == pytest.approx(truth, abs=0.01)
    assert covered / 400 >= 0.92


def test_votes_that_all_agree_are_not_certainty() -> None:
    estimate = stratified_mean({"g": [1.0, 1.0, 1.0]}, {"g": 100})
    assert estimate.value == 1.0 and estimate.low < 0.8
