"""Spreadsheets are read as they stand: one sheet, its header, every row once, values as JSON has them."""

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from ticket_files import measure

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.prepare import prepare_dataset
from tuneloop.data.sources.read import named_sheet, read_records
from tuneloop.records.rows import Reject

HEADER = ["text", "label", "", "when"]


def workbook(file: Path, hidden: str = "", **sheets: list[list[Any]]) -> str:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        if name == hidden:
            sheet.sheet_state = "hidden"
    book.save(file)
    return str(file)


def test_rows_become_records_by_the_header_with_their_numbers(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 3, 1)
    rows: list[list[Any]] = [
        [],
        HEADER,
        ['Straße, "x"; 1,5', "a", 3, day],
        [],
        ["=1+1 as text", 4.0, True, day.replace(hour=9)],
    ]
    file = workbook(tmp_path / "t.xlsx", Tickets=rows)
    first, blank, last = read_records([file])
    assert isinstance(blank, Reject) and (blank.line, blank.reason) == (4, "blank_line")
    assert not isinstance(first, Reject) and first.line == 3
    assert first.value == {"text": 'Straße, "x"; 1,5', "label": "a", "column_3": 3, "when": "2026-03-01"}
    assert not isinstance(last, Reject) and last.line == 5
    assert (last.value["label"], last.value["column_3"], last.value["when"]) == (4, True, "2026-03-01T09:00:00")


def test_of_several_sheets_one_must_be_named(tmp_path: Path) -> None:
    file = workbook(tmp_path / "t.xlsx", March=[["text"], ["a"]], April=[["text"], ["b"]], Notes=[])
    with pytest.raises(UserError) as caught:
        list(read_records([file]))
    assert "'t.xlsx#March', 't.xlsx#April'" in caught.value.next_step
    values = [record.value["text"] for record in read_records([f"{file}#April", f"{file}#March"])]  # type: ignore[union-attr]
    assert values == ["b", "a"]
    with pytest.raises(UserError, match="No sheet 'Aprli'"):
        list(read_records([f"{file}#Aprli"]))


def test_a_hidden_sheet_is_no_question_and_can_be_named(tmp_path: Path) -> None:
    file = workbook(tmp_path / "t.xlsx", "Lists", March=[["text"], ["a"]], Lists=[["text"], ["x"]])
    assert [record.value for record in read_records([file])] == [{"text": "a"}]  # type: ignore[union-attr]
    assert [record.value for record in read_records([f"{file}#Lists"])] == [{"text": "x"}]  # type: ignore[union-attr]


def test_a_cell_beyond_the_header_is_rejected_and_costs_no_other_row(tmp_path: Path) -> None:
    file = workbook(tmp_path / "t.xlsx", S=[["text", "label"], ["a", "x", "odd"], ["b", "y"]])
    odd, good = read_records([file])
    assert isinstance(odd, Reject) and odd.reason == "broken_csv" and not isinstance(good, Reject)


def test_what_is_no_spreadsheet_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "b.xlsx"
    broken.write_bytes(b"PK\x03\x04nothing")
    (tmp_path / "text.xls").write_text("text,label\na,b\n")
    for name in ("b.xlsx", "text.xls"):
        with pytest.raises(UserError, match="readable spreadsheet"):
            list(read_records([str(tmp_path / name)]))
    with pytest.raises(UserError, match="empty"):
        list(read_records([workbook(tmp_path / "e.xlsx", S=[])]))


def test_a_file_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.xlsx"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("xl/worksheets/sheet1.xml", b"0" * (80 << 20))
    with pytest.raises(UserError, match="packed too densely"):
        list(read_records([str(bomb)]))


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("a.xlsx#B c", ("a.xlsx", "B c")),
        ("a.csv#x", ("a.csv#x", "")),
        ("a.XLS#1", ("a.XLS", "1")),
        ("a#b.xlsx", ("a#b.xlsx", "")),
    ],
)
def test_a_sheet_is_named_behind_the_file(source: str, parts: tuple[str, str]) -> None:
    assert named_sheet(source) == parts


def test_a_sheet_is_prepared_like_any_source(tmp_path: Path) -> None:
    rows = [
        ["text", "label"],
        *([f"the lamp number {i} of the hall is broken", ["north", "south"][i % 2]] for i in range(40)),
    ]
    file = workbook(tmp_path / "t.xlsx", Tickets=rows, Other=[["x"], [1]])
    config = PrepareConfig(sources=[f"{file}#Tickets"])
    dataset = prepare_dataset(config, name="job", seed=0, out=tmp_path / "out", measure=measure)
    assert dataset.task == "classification" and [source.rows for source in dataset.manifest.sources] == [40]
