from __future__ import annotations

import builtins
import csv
import gzip
import importlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneloop.data.read import (
    MAX_DEPTH,
    SourceRecord,
    find_files,
    read_records,
    scan_json,
)
from tuneloop.types import Reject, UserError

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)
VALUES = st.recursive(
    SCALARS, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


def read(path: Path, data: bytes | str) -> list[SourceRecord | Reject]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(read_records([str(path)]))


def shown(items: list[SourceRecord | Reject]) -> list[tuple[int, Any]]:
    return [(i.line, i.reason if isinstance(i, Reject) else i.value) for i in items]


# --- JSON Lines


def test_jsonl_lines_are_physical_and_broken_ones_are_rejected_alone(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n{"a": \n[1]\n{"a": 2} x\n{"a": 3}\n'
    assert shown(read(tmp_path / "x.jsonl", text)) == [
        (1, {"a": 1}),
        (2, "blank_line"),
        (3, "broken_json"),
        (4, "wrong_type"),
        (5, "broken_json"),
        (6, {"a": 3}),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path: Path) -> None:
    assert shown(read(tmp_path / "x.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')) == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path: Path) -> None:
    assert shown(read(tmp_path / "x.jsonl", '{"a": "\u2028\x85"}\n{"a": 2}')) == [
        (1, {"a": "\u2028\x85"}),
        (2, {"a": 2}),
    ]


def test_undecodable_bytes_reject_their_record_only_and_stay_readable(tmp_path: Path) -> None:
    first, second = read(tmp_path / "x.jsonl", b'{"a": "caf\xe9"}\n{"a": 2}\n')
    assert isinstance(first, Reject) and first.reason == "bad_encoding" and first.record == '{"a": "caf\\xe9"}'
    assert shown([second]) == [(2, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": "\\ud800"}', "bad_encoding"),
        (b'{"\\uD800": 1}', "bad_encoding"),
        (b'{"a": ' + b"[" * 100_000, "broken_json"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 5) + b"]" * (MAX_DEPTH + 5) + b"}", "wrong_type"),
        (b'{"a": ' + b"9" * 5000 + b"}", "broken_json"),
        (b"\x00\x00", "broken_json"),
        (b"null", "wrong_type"),
        (b'"text"', "wrong_type"),
        (b"{'a': 1}", "broken_json"),
    ],
)
def test_hostile_lines_are_rejected_with_a_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    items = read(tmp_path / "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert shown(items) == [(1, {"a": 1}), (2, reason), (3, {"a": 2})]


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    line = '{"a": "tab\there", "b": "\\ud83d\\ude00", "c": [[[1]]], "d": "\\u0000"}'
    assert shown(read(tmp_path / "x.jsonl", line)) == [(1, {"a": "tab\there", "b": "😀", "c": [[[1]]], "d": "\0"})]


# --- JSON


@QUICK
@given(records=st.lists(OBJECTS, min_size=1, max_size=6), indent=st.sampled_from([None, 0, 1, 4]), crlf=st.booleans())
def test_every_layout_of_an_array_gives_its_records_on_their_lines(
    tmp_path: Path, records: list[dict[str, Any]], indent: int | None, crlf: bool
) -> None:
    text = json.dumps(records, indent=indent, ensure_ascii=False)
    items = read(tmp_path / "x.json", (text.replace("\n", "\r\n") if crlf else text).encode("utf-8"))
    assert [i.value for i in items if isinstance(i, SourceRecord)] == records
    lines, line = [], 1 if indent is None else 2
    for record in records:
        lines.append(line)
        line += 0 if indent is None else 1 + json.dumps(record, indent=indent).count("\n")
    assert [i.line for i in items] == lines


@QUICK
@given(
    records=st.lists(OBJECTS.filter(bool), min_size=1, max_size=5),
    indent=st.sampled_from([None, 2]),
    suffix=st.sampled_from(["json", "jsonl"]),
)
def test_objects_one_after_the_other_are_read_whatever_the_suffix(
    tmp_path: Path, records: list[dict[str, Any]], indent: int | None, suffix: str
) -> None:
    text = "\n".join(json.dumps(record, indent=indent) for record in records)
    assert [i.value for i in read(tmp_path / f"x.{suffix}", text) if isinstance(i, SourceRecord)] == records


@pytest.mark.parametrize("indent", [None, 1])
def test_a_broken_element_of_an_array_costs_no_other_element(tmp_path: Path, indent: int | None) -> None:
    records = [{"text": f"t{n}", "turns": [{"role": "x"}, {"role": "y"}]} for n in range(4)]
    text = json.dumps(records, indent=indent).replace('"t1"', '"t1')
    items = read(tmp_path / "x.json", text)
    assert [i.value["text"] if isinstance(i, SourceRecord) else i.reason for i in items] == [
        "t0",
        "broken_json",
        "t2",
        "t3",
    ]
    assert [i.line for i in items] == ([1, 1, 1, 1] if indent is None else [2, 13, 24, 35])


def test_an_array_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    assert shown(read(tmp_path / "x.json", '[\n{"a": 1},\n{"a": 2},\n')) == [
        (2, {"a": 1}),
        (3, {"a": 2}),
        (3, "broken_json"),
    ]
    assert shown(read(tmp_path / "x.json", '[\n{"a": 1},\n{"a": 2')) == [(2, {"a": 1}), (3, "broken_json")]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet='[]{},:"\n \\ab1\ud800\udcff', max_size=60))
def test_no_text_makes_the_scanner_fail_or_lose_characters_of_a_record(text: str) -> None:
    items = list(scan_json(text, "s"))
    assert all(1 <= item.line <= text.count("\n") + 1 for item in items)
    assert [i.line for i in items] == sorted(i.line for i in items)
    if text.strip(" \t\r\n,[]"):
        assert items


@QUICK
@given(data=st.binary(max_size=80), suffix=st.sampled_from(["json", "jsonl", "csv", "tsv"]))
def test_any_bytes_give_records_rejects_or_a_user_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    try:
        items = read(tmp_path / f"x.{suffix}", data)
    except UserError:
        return
    lines = max(1, data.count(b"\n") + 1)
    assert all(1 <= item.line <= lines for item in items)
    json.dumps([i.record if isinstance(i, Reject) else i.value for i in items], ensure_ascii=False).encode("utf-8")


# --- CSV


@QUICK
@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=2),
        min_size=1,
        max_size=8,
    ),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_csv_cells_survive_and_lines_count_line_breaks_in_cells(
    tmp_path: Path, rows: list[list[str]], delimiter: str
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(["text", "label"])
    lines = []
    for row in rows:
        lines.append(buffer.getvalue().count("\n") + 1)
        writer.writerow(row)
    items = read(tmp_path / ("x.tsv" if delimiter == "\t" else "x.csv"), buffer.getvalue())
    assert shown(items) == [(line, {"text": a, "label": b}) for line, (a, b) in zip(lines, rows, strict=True)]


def test_a_csv_quote_that_is_never_closed_costs_one_row(tmp_path: Path) -> None:
    text = 'text,label\none,a\n"two,b\nthree,c\n\nfour,d,e\nfive,f\n'
    assert shown(read(tmp_path / "x.csv", text)) == [
        (2, {"text": "one", "label": "a"}),
        (3, "broken_csv"),
        (4, {"text": "three", "label": "c"}),
        (5, "blank_line"),
        (6, "broken_csv"),
        (7, {"text": "five", "label": "f"}),
    ]


def test_short_csv_rows_lack_columns_and_odd_headers_get_names(tmp_path: Path) -> None:
    items = read(tmp_path / "x.csv", ",a,a\n0,1,2\n1,3\n")
    assert [i.value for i in items if isinstance(i, SourceRecord)] == [
        {"column_1": "0", "a": "1", "a_2": "2"},
        {"column_1": "1", "a": "3"},
    ]


def test_a_very_long_csv_cell_is_read(tmp_path: Path) -> None:
    (item,) = read(tmp_path / "x.csv", f"text,label\n{'x' * 200_000},a\n")
    assert isinstance(item, SourceRecord) and len(item.value["text"]) == 200_000


# --- other kinds, and which files


def test_gzip_is_read_and_a_cut_one_is_named(tmp_path: Path) -> None:
    data = gzip.compress(b'{"a": 1}\n' * 500)
    assert len(read(tmp_path / "x.jsonl.gz", data)) == 500
    with pytest.raises(UserError, match="gzip file is damaged"):
        read(tmp_path / "y.jsonl.gz", data[:-12])


def test_parquet_rows_are_plain_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import datetime

    parquet = importlib.import_module("pyarrow.parquet")
    rows = [
        {"a": 1, "t": datetime.date(2024, 1, 2), "b": b"\xff", "l": [{"x": "y"}]},
        {"a": None, "t": None, "b": None, "l": []},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert shown(list(read_records([str(tmp_path / "x.parquet")]))) == [
        (1, {"a": 1, "t": "2024-01-02", "b": "ff", "l": [{"x": "y"}]}),
        (2, {"a": None, "t": None, "b": None, "l": []}),
    ]
    with pytest.raises(UserError, match="Not a readable parquet"):
        read(tmp_path / "y.parquet", b"PAR1 no parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.parquet", b"PAR1")
    assert "pip install pyarrow" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.json", b" \n\n", "is empty"),
        ("x.csv", b"", "is empty"),
        ("x.parquet", b"", "is empty"),
        ("x.jsonl", b"\xff\xfe{\x00}\x00", "UTF-16"),
        ("x.jsonl", gzip.compress(b"{}"), "holds gzip"),
        ("x.jsonl", b"PAR1....", "holds parquet"),
        ("x.gz", b"", "Can't read files of the kind"),
        ("x.xlsx", b"PK", "Can't read files of the kind .xlsx"),
        ("x.jsonl.gz", b"{}", "gzip file is damaged"),
    ],
)
def test_unusable_files_are_user_errors_that_name_the_file(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        read(tmp_path / name, data)
    assert name in caught.value.where and caught.value.next_step


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError) as caught:
        find_files([str(tmp_path / "trian.jsonl")])
    assert caught.value.next_step == f"did you mean {tmp_path / 'train.jsonl'}?"
    with pytest.raises(UserError, match="No such file") as caught:
        find_files([str(tmp_path / "nowhere" / "x.jsonl")])
    assert "nowhere does not exist" in caught.value.next_step
    for bad in ("\0", "x" * 5000 + ".jsonl", str(tmp_path / "*.csv"), "/dev/null"):
        with pytest.raises(UserError):
            find_files([bad])


def test_folders_and_globs_are_sorted_and_a_file_is_read_once(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a.csv",
        "notes.md",
        ".hidden.jsonl",
        "sub/c.json",
        "done/train.jsonl",
        "done/dataset.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    files = find_files([str(tmp_path / "*.jsonl"), str(tmp_path)])
    assert [str(f.path.relative_to(tmp_path)) for f in files] == ["b.jsonl", "a.csv", "sub/c.json"]
    with pytest.raises(UserError, match="No readable file"):
        find_files([str(tmp_path / "done")])


def test_reading_opens_no_later_file_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')
    stream = read_records([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    first = next(stream)
    assert first.source.endswith("a.jsonl") and builtins.sum(1 for _ in stream) == 1
