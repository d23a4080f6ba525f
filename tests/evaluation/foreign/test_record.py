"""Scores, inputs and metric names of other tools."""

from __future__ import annotations

import math

import pytest

from tuneloop.evaluation.foreign.record import is_cost, key_of, less_is_better, score_value, text_of


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1.0), ("C", 1.0), ("P", 0.5), (" incorrect ", 0.0), ("0.25", 0.25), (3, 3.0), ("pass", 1.0)],
)
def test_scores_are_numbers(value: object, number: float) -> None:
    assert score_value(value) == number


@pytest.mark.parametrize("value", [None, "maybe", [1], math.inf, "nan", {"a": 1}])
def test_what_is_no_number_is_no_score(value: object) -> None:
    assert math.isnan(score_value(value))


def test_the_same_input_has_the_same_key_whatever_wrote_it() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hello  you"}]}]
    assert text_of(turns) == "hello  you" and key_of(turns) == key_of("hello you") != key_of("hello", "doc")
    assert key_of("") == key_of(None) == ""


def test_names_say_of_what_less_is_better() -> None:
    assert less_is_better("val_loss") and less_is_better("Toxicity") and not less_is_better("accuracy")
    assert not less_is_better("closeness") and is_cost("latency_ms") and not is_cost("val_loss")
