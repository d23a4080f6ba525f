"""Rows that must pass go from a page into a suite, whose own text stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.gate.suite import load_suite
from tuneloop.web.suites import add_to_suite

TEXT = "# ours\nversion: 1\nmust_pass:\n  - id: abc # the one that matters\nmetrics:\n  - metric: accuracy\n    margin: 0.1\n"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(TEXT)
    return path


def test_a_row_is_added_once_and_the_suite_reads_it(suite: Path) -> None:
    row = {"prompt": "Wo ist mein Paket \U0001f4e6?", "equals": "delivery", "request": "r1", "system": ""}
    assert add_to_suite(suite, row) and not add_to_suite(suite, row)
    assert add_to_suite(suite, {**row, "request": "r2"})
    assert suite.read_text().startswith(TEXT.rstrip())
    assert [item.request for item in load_suite(suite).must_pass] == ["", "r1", "r2"]


def test_a_suite_with_a_file_of_its_own_keeps_it(suite: Path) -> None:
    (suite.parent / "rows.jsonl").write_text(json.dumps("xyz") + "\n")
    suite.write_text(TEXT + "must_pass_file: rows.jsonl\n")
    assert add_to_suite(suite, {"prompt": "a", "contains": "b"})
    assert len((suite.parent / "rows.jsonl").read_text().splitlines()) == 2 and len(load_suite(suite).must_pass) == 3


def test_a_row_that_demands_nothing_and_a_file_of_someone_else_are_refused(suite: Path) -> None:
    with pytest.raises(UserError, match="needs equals"):
        add_to_suite(suite, {"prompt": "a"})
    (suite.parent / "must_pass.jsonl").write_text('"xyz"\n')
    with pytest.raises(UserError, match="does not name"):
        add_to_suite(suite, {"prompt": "a", "equals": "b"})
    assert suite.read_text() == TEXT
