"""Evaluations of different samples of a data set are compared on the rows that all of them hold."""

from __future__ import annotations

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.comparison import paired_with_first
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate, on_shared_rows
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

CONFIG = EvaluateConfig(bootstrap=100, embedding=False)


def of_rows(numbers: range, wrong: int = 0) -> ScoredAnswers:
    labels = {i: "ab"[i % 2] for i in numbers}
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"text {i}"}, {"role": "assistant", "content": label}], label)
        for i, label in labels.items()
    ]
    answers = [Completion("b" if k < wrong else labels[i]) for k, i in enumerate(numbers)]
    return evaluate(rows, answers, task="classification", labels=["a", "b"], config=CONFIG, seed=0)


def test_all_are_scored_again_on_the_rows_that_they_share() -> None:
    before = {"A": of_rows(range(40), wrong=20), "B": of_rows(range(10, 34))}
    after = on_shared_rows(before)
    assert after is not None
    assert (
        [row.id for row in after["A"].rows] == [row.id for row in after["B"].rows] == [f"r{i}" for i in range(10, 34)]
    )
    assert after["A"].metrics["accuracy"].value == pytest.approx(19 / 24)  # of the rows 10 to 19 the five "a" are wrong
    assert (
        paired_with_first(before)[0]["A"].notes[0]
        == "Compared on the 24 rows that all of them answered (A: 40, B: 24)."
    )


def test_equal_rows_are_left_as_they_are_in_whatever_order() -> None:
    assert on_shared_rows({"A": of_rows(range(20)), "B": of_rows(range(19, -1, -1))}) is None


def test_too_few_shared_rows_are_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match="different rows \\(30 and 30, 19 shared; at least 20") as caught:
        on_shared_rows({"A": of_rows(range(30)), "B": of_rows(range(11, 41))})
    assert "tuneloop evaluate RUN --data FILE" in str(caught.value)
