"""A format, a check and a kind of personal data of your own are one file each: the examples, run through `prepare`."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import ROOT
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.data.checks.checks import CHECKS
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import FORMATS
from tuneloop.data.pii.redact import KINDS, _checked_kinds
from tuneloop.data.prepare import TokenCount, prepare_dataset
from tuneloop.records.rows import Dataset, Row


@pytest.fixture(autouse=True)
def tables_as_they_were() -> Iterator[None]:
    tables = (FORMATS, CHECKS, KINDS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    _checked_kinds.cache_clear()


def use(name: str) -> None:
    path = ROOT / "examples" / "extend" / f"{name}.py"
    statements = [
        node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert sum(1 + node.end_lineno - node.lineno for node in statements if node.end_lineno) < 35
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def measure(row: Row) -> TokenCount:
    return TokenCount(sum(len(m["content"]) for m in row.messages), 1)


def prepared(folder: Path, records: list[dict[str, object]], **config: object) -> Dataset:
    source = folder / "data.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = PrepareConfig.model_validate({"sources": [str(source)], **config})
    return prepare_dataset(made, name="own", seed=0, out=folder / "out", measure=measure)


def tickets() -> list[dict[str, object]]:
    places = ["door", "lamp", "roof", "wall", "sink", "oven", "bath", "lock"]
    return [
        {"ticket": f"The {places[i % 8]} of flat {i * 37} is broken", "comments": ["Since when?", f"Fixed on day {i}."]}
        for i in range(40)
    ]


def test_a_format_of_your_own_is_detected_parsed_and_rejected_with_its_reasons(tmp_path: Path) -> None:
    use("new_format")
    records = tickets()
    records[3]["comments"], records[5]["comments"] = [], "Fixed."
    dataset = prepared(tmp_path, records, duplicates={"near": False})
    assert dataset.manifest["format"]["name"] == "comments"
    rows = {row.meta["line"]: row for row in [*dataset.train, *dataset.val, *dataset.test]}
    assert len(rows) == 38
    asked, answer = (message["content"] for message in rows[1].messages)
    assert (asked, answer) == ("The door of flat 0 is broken\nSince when?", "Fixed on day 0.")
    rejects = [(r["line"], r["reason"]) for r in read_jsonl(tmp_path / "out/rejects.jsonl")]
    assert rejects == [(4, "empty_output"), (6, "wrong_type")]


def test_a_format_of_your_own_can_be_asked_for_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown format: mesages") as error:
        prepared(tmp_path, tickets(), format="mesages")
    assert error.value.next_step == "did you mean messages?"
    use("new_format")
    assert prepared(tmp_path, tickets(), format="comments").manifest["counts"]["read"] == 40


def test_a_check_of_your_own_stands_in_the_manifest_and_names_its_rows(tmp_path: Path) -> None:
    use("new_check")
    records = [
        {"prompt": f"{t['ticket']}", "completion": f"We come on day {i} to look at {i * 7}."}
        for i, t in enumerate(tickets())
    ]
    records[7]["prompt"] = str(records[7]["prompt"]).upper()
    dataset = prepared(tmp_path, records, duplicates={"near": False})
    check = next(check for check in dataset.manifest["checks"] if check["name"] == "shouting")
    assert (check["level"], check["rows"], [e["line"] for e in check["examples"]]) == ("warn", 1, [8])
    assert "small letters" in check["remedy"]
    assert [r["line"] for r in read_jsonl(tmp_path / "out/flagged.jsonl") if r["check"] == "shouting"] == [8]


def test_a_kind_of_personal_data_of_your_own_is_replaced_and_counted(tmp_path: Path) -> None:
    use("new_personal_data")
    records = [{"prompt": f"{t['ticket']}, says staff member E-{100000 + i}", "completion": f"Part E-{200000 + i} helps."}
               for i, t in enumerate(tickets())]  # fmt: skip
    dataset = prepared(tmp_path, records, duplicates={"near": False})
    assert dataset.manifest["personal"] == {"STAFF_NUMBER": 40}
    first = next(row for row in [*dataset.train, *dataset.val, *dataset.test] if row.meta["line"] == 1)
    assert first.messages[0]["content"].endswith("staff member <STAFF_NUMBER>")
    assert first.messages[1]["content"] == "Part E-200000 helps."  # no word names it
