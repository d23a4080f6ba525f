"""Perplexity of answers."""

import math

import pytest

from tuneloop.evaluation.metrics.probabilities import loss_statistics


def test_perplexity_comes_from_all_tokens_and_not_from_the_mean_of_rows():
    values = loss_statistics([2.0, 30.0], [2, 10]).point_values()
    assert values["loss"] == pytest.approx(32 / 12)
    assert values["perplexity"] == pytest.approx(math.exp(32 / 12))
