from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from tuneloop.data.checks.drift import (
    auc_estimate,
    chi_square,
    compare_with,
    kolmogorov_smirnov,
    level_of,
    total_variation,
)
from tuneloop.records.evaluation import Estimate

CARD = ["card", "pin", "chip", "lost", "stolen", "blocked", "expired"]
LOAN = ["loan", "mortgage", "rate", "credit", "house", "interest", "years"]


def texts(words: list[str], n: int, seed: int = 0, size: int = 4) -> list[str]:
    rng = random.Random(seed)
    return [f"please my {' '.join(rng.choices(words, k=size))} {rng.randrange(1000)}" for _ in range(n)]


def test_texts_of_one_source_are_alike() -> None:
    drift = compare_with(texts(CARD, 300), texts(CARD, 200, seed=1))
    assert drift.level == "ok" and drift.auc.low < 0.5 and drift.examples
    assert 0.9 < drift.length_ratio < 1.1
    assert drift.new_words == 0 and drift.label_distance is None


def test_texts_of_another_subject_are_told_apart_and_named() -> None:
    train = texts(CARD, 300)
    production = [*texts(CARD, 10, seed=5), *texts(LOAN, 150, seed=1, size=8)]
    drift = compare_with(train, production, ["a"] * 300, ["a"] * 80 + ["b"] * 80)
    assert drift.level == "error" and drift.auc.value > 0.9
    assert set(drift.words_b) == set(LOAN) and set(drift.words_a) <= set(CARD)
    assert drift.length_ratio > 1.3 and drift.new_words > 0.5 and drift.usual_new_words == 0
    assert drift.label_distance == pytest.approx(0.5)
    assert len(drift.examples) == 10 and all(i >= 10 for i in drift.examples)


def test_a_partial_shift_is_a_warning() -> None:
    production = [*texts(CARD, 120, seed=5), *texts(LOAN, 120, seed=1)]
    assert compare_with(texts(CARD, 300), production).level == "warn"


def test_copies_on_both_sides_or_on_one_fool_nobody() -> None:
    some = texts(CARD, 200)
    both = compare_with(some, some)
    assert both.auc.value == pytest.approx(0.5, abs=0.02)
    repeated = compare_with(some, texts(CARD, 100, seed=1) * 9)
    assert repeated.level == "ok" and repeated.rows == (200, 100)


def test_halves_of_one_set_are_found_alike_as_often_as_the_interval_promises() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(300)]
    held = 0
    for seed in range(20):
        some = [" ".join(rng.choice(words, 8)) for _ in range(160)]
        auc = compare_with(some[:80], some[80:], seed=seed).auc
        held += auc.low <= 0.5 <= auc.high
    assert held >= 17


def test_few_texts_say_nothing() -> None:
    drift = compare_with(texts(CARD, 5), texts(LOAN, 300))
    assert drift.level == "ok" and drift.auc.low != drift.auc.low and drift.examples == []
    assert compare_with([], []).rows == (0, 0)


@pytest.mark.parametrize(
    ("auc", "level"),
    [((0.9, 0.8, 1.0), "error"), ((0.9, 0.7, 1.0), "warn"), ((0.7, 0.5, 0.9), "ok"), ((0.6, 0.59, 0.61), "ok")],
)
def test_the_level_needs_a_difference_that_is_large_and_certain(auc: tuple[float, float, float], level: str) -> None:
    assert level_of(Estimate(*auc)) == level


def test_the_auc_has_its_known_values() -> None:
    assert auc_estimate(np.array([0.0, 1.0]), np.array([2.0, 3.0])).value == 1.0
    assert auc_estimate(np.array([1.0, 1.0]), np.array([1.0, 1.0])).value == 0.5
    rng = np.random.default_rng(0)
    found = auc_estimate(rng.normal(0, 1, 400), rng.normal(1, 1, 300))
    assert found.low < stats.norm.cdf(0.5**0.5) < found.high and 0.03 < found.high - found.low < 0.1


def test_the_tests_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 300), rng.normal(0.2, 1, 200)
    theirs = stats.ks_2samp(a, b, method="asymp")
    distance, p = kolmogorov_smirnov(a, b)
    assert distance == pytest.approx(theirs.statistic) and p == pytest.approx(theirs.pvalue, rel=0.25)
    theirs = stats.chi2_contingency([[10, 20, 30], [20, 20, 20]], correction=False)
    p, size = chi_square([10, 20, 30, 0], [20, 20, 20, 0])
    assert p == pytest.approx(theirs.pvalue) and 0 < size < 1
    assert chi_square([1], [2]) == (1.0, 0.0) == chi_square([1, 2], [0, 0])


def test_total_variation_is_the_share_that_must_change() -> None:
    assert total_variation(Counter("aab"), Counter("aab" * 3)) == 0
    assert total_variation(Counter("a"), Counter("b")) == 1
