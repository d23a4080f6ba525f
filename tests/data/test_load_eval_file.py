"""A file by itself: every record is a row or counted, each under an id of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tuneloop.data.config import PrepareConfig
from tuneloop.data.load_eval_file import WholeFile, read_whole, row_of_problem


def read(folder: Path, records: list[Any], *, array: bool = False, prompts: bool = False) -> WholeFile:
    file = folder / ("f.json" if array else "f.jsonl")
    file.write_text(json.dumps(records) if array else "".join(json.dumps(record) + "\n" for record in records))
    return read_whole(str(file), PrepareConfig(), prompts=prompts)


def test_an_array_on_one_line_gives_ids_of_their_own(tmp_path: Path) -> None:
    found = read(tmp_path, [{"instruction": f"Say {i}.", "output": str(i)} for i in range(3)], array=True)
    assert [row.id for row in found.rows] == ["f.json:1", "f.json:2", "f.json:3"] == found.order


def test_records_that_are_no_rows_keep_their_place(tmp_path: Path) -> None:
    found = read(tmp_path, [{"id": "a", "reference": None}, {"id": "b", "reference": "x"}])
    assert ([row.id for row in found.rows], found.order) == (["b"], ["a", "b"])
    assert found.skipped == {"missing_field": 1}


@pytest.mark.parametrize(
    ("record", "answers"),
    [
        ({"reference": {"queue": "a"}}, ['{"queue": "a"}']),
        ({"reference": True}, ["true"]),
        ({"reference": 3}, ["3"]),
        ({"reference": [{"a": 1}]}, ['[{"a": 1}]']),
        ({"references": ["x", "y"]}, ["x", "y"]),
        ({"prompt": "p", "reference": {"queue": "a"}}, ['{"queue": "a"}']),
        ({"prompt": "p", "note": "n", "expected": "x"}, ["x"]),
        ({"ground_truth": "x"}, ["x"]),
        ({"instruction": "i", "output": {"queue": "a"}}, ['{"queue": "a"}']),
    ],
)
def test_references_of_any_kind(tmp_path: Path, record: dict[str, Any], answers: list[str]) -> None:
    (row,) = read(tmp_path, [{"id": 1, **record}]).rows
    assert row.meta.get("references", [row.answer]) == answers


def test_lists_of_labels_alone_with_empty_ones(tmp_path: Path) -> None:
    found = read(tmp_path, [{"id": 1, "labels": ["b", "a"]}, {"id": 2, "labels": []}])
    assert found.task == "classification"
    assert [(row.label, row.meta["labels"]) for row in found.rows] == [("a, b", ["a", "b"]), ("none", ["none"])]


def test_a_prompt_and_facts_beside_a_reference_are_kept(tmp_path: Path) -> None:
    record = {"id": "a", "dialogue": "A: hi", "references": ["x", "y"], "channel": "mail", "answer": "z"}
    (row,) = read(tmp_path, [record]).rows
    assert row.prompt == [{"role": "user", "content": "A: hi"}] and row.answer == "x" and row.meta["channel"] == "mail"


HUMANEVAL = {"task_id": "H/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(c):\n    assert c() == 1"}


def test_published_programs_become_rows_and_others_do_not(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [{**HUMANEVAL, "canonical_solution": "    return 1"}], prompts=True).rows
    assert (row.id, row.answer, row.meta["entry_point"]) == ("H/0", "    return 1", "f")
    mbpp = row_of_problem({"task_id": 1, "text": "Write f.", "code": "def f(): pass", "test_list": ["f()"]})
    assert mbpp and (mbpp.id, mbpp.prompt[0]["content"]) == ("1", "Write f.")
    without = row_of_problem(HUMANEVAL)
    assert without and without.answer == ""
    assert row_of_problem({"id": 3, "prompt": "hello", "code": "x"}) is None
