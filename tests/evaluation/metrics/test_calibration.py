"""The calibration error of `metrics.probabilities`."""

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from tuneloop.evaluation.metrics.probabilities import BINS, calibration_statistics, confidences, reliability
from tuneloop.records.completion import Completion


def made(n=4000, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.2, 1.0, n)
    right = (rng.random(n) < np.clip(sure - shift, 0, 1)).astype(float)
    return sure.tolist(), right.tolist()


def test_confidence_is_the_softmax_of_the_scores():
    scores = {"a": math.log(0.7), "b": math.log(0.2), "c": math.log(0.1)}
    assert confidences([Completion("a", label_scores=scores), Completion("x")]) == [
        pytest.approx(0.7),
        pytest.approx(math.nan, nan_ok=True),
    ]
    assert confidences([Completion("a", label_probability=0.25, label_scores=scores)]) == [0.25]
    assert math.isnan(confidences([Completion("a", label_scores={"a": -math.inf})])[0])
    assert confidences([Completion("a", label_scores={"a": -800.0, "b": -900.0})]) == [pytest.approx(1.0)]


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
