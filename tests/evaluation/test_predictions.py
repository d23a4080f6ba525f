"""Answers from a file find their rows, or the file is refused with the place of the mistake."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.evaluation.predictions import MatchedPredictions, answers_from
from tuneloop.records.rows import Row

ROWS = [Row(f"r{i}", [{"role": "assistant", "content": "x"}], meta={"id": f"own-{i}"}) for i in range(3)]


def texts(records: list[Any]) -> list[str]:
    return [texts[0] for texts in answers_from(records, ROWS, "f.jsonl").answers]


@given(st.permutations(range(3)))
def test_ids_and_numbers_find_rows_in_any_order(order: list[int]) -> None:
    assert texts([{"id": f"r{i}", "prediction": f"p{i}"} for i in order]) == ["p0", "p1", "p2"]
    assert texts([{"id": f"own-{i}", "prediction": f"p{i}"} for i in order]) == ["p0", "p1", "p2"]
    for first in (0, 1):
        assert texts([{"row": i + first, "prediction": f"p{i}"} for i in order]) == ["p0", "p1", "p2"]


def test_without_ids_the_order_counts() -> None:
    assert texts([{"prediction": "a"}, {"prediction": "b"}, {"prediction": None}]) == ["a", "b", ""]


def test_objects_are_json_and_several_labels_one_answer() -> None:
    assert texts([{"prediction": {"a": 1}}, {"prediction": 2}, {"prediction": ["x", "y"]}]) == ['{"a": 1}', "2", "x"]
    assert answers_from([{"prediction": ["x", "y"]}] * 3, ROWS, "f").answers[0] == ["x", "y"]
    labelled = [Row("r", [{"role": "assistant", "content": "a, b"}], "a, b", meta={"labels": ["a", "b"]})]
    assert answers_from([{"prediction": ["b", "a"]}], labelled, "f").answers == [["b, a"]]
    for nothing in ([], "", None):
        assert answers_from([{"prediction": nothing}], labelled, "f").answers == [["none"]]


def test_numbers_count_records_of_the_file_and_ids_that_are_numbers_too() -> None:
    order = ["left out", "r0", "r1", "r2"]
    records = [{"row": i, "prediction": f"p{i}"} for i in range(4)]
    assert answers_from(records, ROWS, "f", order=order).answers == [["p1"], ["p2"], ["p3"]]
    for number in (int, str, float):
        assert texts([{"id": number(i), "prediction": f"p{i}"} for i in range(3)]) == ["p0", "p1", "p2"]


def test_predictions_of_rows_that_are_not_evaluated_are_passed_over() -> None:
    records = [{"id": f"r{i}", "prediction": f"p{i}"} for i in range(3)]
    assert answers_from(records, ROWS[1:2], "f", all_rows=ROWS) == MatchedPredictions([["p1"]], [])


def test_several_records_of_a_program_are_several_answers() -> None:
    row = Row("H/0", [{"role": "assistant", "content": ""}], meta={"test_list": ["assert f() == 1"]})
    records = [{"task_id": "H/0", "completion": text} for text in ("a", "b")]
    assert answers_from(records, [row], "f").answers == [["a", "b"]]


def test_rows_left_out_and_ids_that_no_row_has_are_reported() -> None:
    found = answers_from([{"id": "r1", "prediction": "a"}, {"id": "zz", "prediction": "b"}], ROWS, "f")
    assert found.answers == [[], ["a"], []] and found.unknown == ["zz"]
    assert found.missing(ROWS) == ["r0", "r2"]


def test_numbers_with_gaps_are_taken_where_an_end_tells_how_they_count() -> None:
    assert answers_from([{"row": i, "prediction": str(i)} for i in (0, 2)], ROWS, "f").answers == [["0"], [], ["2"]]
    assert answers_from([{"row": i, "prediction": str(i)} for i in (1, 3)], ROWS, "f").answers == [["1"], [], ["3"]]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no predictions"),
        ([{"id": "r0", "prediction": "a"}] * 2, "Two predictions for row r0"),
        ([{"id": "zz", "prediction": "a"}], "None of its predictions is about the 3 rows .the first: 'zz'"),
        ([{"row": i, "prediction": "a"} for i in (1, 2)], "from 0 or from 1"),
        ([{"row": 7, "prediction": "a"}], "no row 7"),
        ([{"row": True, "prediction": "a"}], "Not a row's number"),
        ([{"prediction": "a"}], "1 predictions without ids for 3 rows"),
        ([{"id": "r0", "prediction": "a"}, {"prediction": "b"}], "Some predictions have an id"),
        (["a"], "Not an object"),
        ([{"id": "r0"}, {"id": "r1"}, {"id": "r2"}], "No prediction"),
    ],
)
def test_what_is_wrong_is_said(records: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        texts(records)
