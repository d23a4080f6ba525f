"""The metric that decides about a data set follows from its rows and the settings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import deciding_metric, is_number
from tuneloop.records.rows import Row


def rows_of(answers: list[Any], labelled: bool = False) -> list[Row]:
    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    return [
        Row(
            f"r{i}", [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": t}], t if labelled else None
        )
        for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("answers", "settings", "metric"),
    [
        ([{"queue": "a", "note": ""}] * 9, {}, "filled_f1"),
        ([{"queue": "", "tags": []}] * 9, {}, "object_accuracy"),
        ([{"queue": "a"}] * 9, {"structured": False}, "rougeL"),
        ([{"queue": "a"}] * 9, {"primary": "object_accuracy"}, "object_accuracy"),
        (["12", "3.5", "-1", "1,200"], {}, "exact_match"),
        (["12", "about 3"], {}, "rougeL"),
        (["荷物が遅れています", "返品です"], {}, "chrf"),
        (["Queue: a\nIssue: x", "Queue: b\nIssue: y"] * 6, {"fields": {"queue": "^Queue: (.+)$"}}, "queue.accuracy"),
        (["Queue: a"] * 20 + ["Queue: b"], {"fields": {"queue": "^Queue: (.+)$"}}, "queue.macro_f1"),
    ],
)
def test_answers_are_judged_by_what_fits_them(answers: list[Any], settings: dict[str, Any], metric: str) -> None:
    config = EvaluateConfig.model_validate(settings)
    assert deciding_metric(rows_of(answers), "generation", config) == metric


def test_labels_are_judged_by_how_even_they_are_in_the_whole_data_set() -> None:
    rows, config = rows_of(["a", "b"] * 10, labelled=True), EvaluateConfig()
    assert deciding_metric(rows, "classification", config) == "accuracy"
    assert deciding_metric(rows, "classification", config, {"a": 900, "b": 40}) == "macro_f1"
    several = [Row(row.id, row.messages, row.label, meta={"labels": ["a"]}) for row in rows]
    assert deciding_metric(several, "classification", config) == "micro_f1"
    assert deciding_metric([], "classification", config) == ""


def test_a_number_is_a_number_and_nothing_else() -> None:
    assert all(map(is_number, ("3", " -2.5 ", "1,200", "1e3"))) and not any(map(is_number, ("", "nan", "3 kg", "x")))
