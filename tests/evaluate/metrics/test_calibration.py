import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tuneloop.evaluate.metrics.calibration import (
    BINS,
    calibration_statistics,
    confidences,
    label_probabilities,
    reliability,
)
from tuneloop.records.completion import Answer


def made(n=4000, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.2, 1.0, n)
    right = (rng.random(n) < np.clip(sure - shift, 0, 1)).astype(float)
    return sure.tolist(), right.tolist()


def test_confidence_is_the_softmax_of_the_scores():
    scores = {"a": math.log(0.7), "b": math.log(0.2), "c": math.log(0.1)}
    assert confidences([Answer("a", scores=scores), Answer("x")]) == [
        pytest.approx(0.7),
        pytest.approx(math.nan, nan_ok=True),
    ]
    assert math.isnan(confidences([Answer("a", scores={"a": -math.inf})])[0])
    assert confidences([Answer("a", scores={"a": -800.0, "b": -900.0})]) == [pytest.approx(1.0)]


def test_the_probability_of_a_label_is_that_of_all_its_tokens():
    # "a b" 0.5 * 0.8, "c" 0.1: the model writes something else half of the time.
    scores = {"a b": (math.log(0.5) + math.log(0.8)) / 2, "c": math.log(0.1)}
    tokens = {"a b": 2, "c": 1}
    answers = [Answer("a b", scores=scores), Answer("c", scores=scores), Answer("x")]
    sure = label_probabilities(answers, tokens)
    assert sure[:2] == pytest.approx([0.8, 0.2]) and math.isnan(sure[2])


def test_upper_bounds_of_cut_labels_leave_a_lower_bound_that_is_no_less_than_the_label_s_own_probability():
    cut = {f"label {i}": math.log(0.9) / 8 for i in range(20)}  # known: the first token is shared and has 0.9
    scores = cut | {"label 0": math.log(0.85) / 8}
    assert label_probabilities([Answer("label 0", scores=scores)], dict.fromkeys(scores, 8)) == [pytest.approx(0.85)]


def test_rounding_makes_no_label_surer_than_sure():
    assert label_probabilities([Answer("a", scores={"a": 0.004, "b": -5.0})], {"a": 8, "b": 8}) == [1.0]


def test_calibrated_scores_are_normalised_over_the_labels():
    scores = {"a": 3.0, "b": 3.0 - math.log(3) / 2}
    assert label_probabilities([Answer("a", scores=scores)], {"a": 2, "b": 2}, shifted=True) == [pytest.approx(0.75)]
    assert label_probabilities([Answer("a", scores={"a": 3.0, "b": 3.0})], {"a": 2, "b": 2}, shifted=True) == [0.5]


def test_bins_are_scikit_learns_and_ece_is_their_weighted_gap():
    sure, right = made()
    bins = reliability(sure, right)
    shares, means = calibration_curve(right, sure, n_bins=BINS, strategy="uniform")
    assert [b["accuracy"] for b in bins] == pytest.approx(list(shares), abs=1e-6)
    assert [b["confidence"] for b in bins] == pytest.approx(list(means), abs=1e-6)
    expected = sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / len(sure)
    assert calibration_statistics(sure, right).point_values()["ece"] == pytest.approx(expected, abs=1e-9)


def test_too_much_confidence_shows():
    assert calibration_statistics(*made()).point_values()["ece"] < 0.05
    assert calibration_statistics(*made(shift=0.2)).point_values()["ece"] == pytest.approx(0.2, abs=0.03)


def test_the_ends_have_their_bins_and_rows_without_confidence_do_not_count():
    bins = reliability([0.0, 1.0, math.nan], [0.0, 1.0, 1.0])
    assert [(b["low"], b["n"]) for b in bins] == [(0.0, 1), (14 / 15, 1)]
    assert math.isnan(calibration_statistics([math.nan], [1.0]).point_values()["ece"])
