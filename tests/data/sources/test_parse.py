"""Records of JSON, JSON Lines, CSV, Parquet and plain text: each is read or rejected with its line."""

from __future__ import annotations

import csv
import datetime
import importlib
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import read, shown

from tuneloop.core.errors import UserError
from tuneloop.data.sources.parse import MAX_DEPTH, Chunk, SourceRecord, column_names, parse_chunk, scan_json
from tuneloop.data.sources.read import read_records
from tuneloop.records.rows import Reject

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
)


VALUES = st.recursive(
    SCALARS, lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3), max_leaves=8
)


OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


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
    data = '{"a": "né"}\n'.encode() + b'{"a": "caf\xe9"}\n{"a": 2}\n'
    first, second, third = read(tmp_path / "x.jsonl", data)
    assert isinstance(second, Reject) and second.reason == "broken_json" and second.record == '{"a": "caf\\xe9"}'
    assert second.detail == "bytes that are no UTF-8 (column 11)"
    assert shown([first, third]) == [(1, {"a": "né"}), (3, {"a": 2})]


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
        (b'{"a": 1, "b": 0, "a": 2}', "broken_json"),
        (b'{"a": [{"b": "x", "b": "y"}]}', "broken_json"),
    ],
)
def test_hostile_lines_are_rejected_with_a_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    items = read(tmp_path / "x.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert shown(items) == [(1, {"a": 1}), (2, reason), (3, {"a": 2})]


def test_what_json_forbids_and_is_clear_is_read_and_told(tmp_path: Path) -> None:
    lines = b'{"a": "x\ty"}\n{"a": NaN, "b": "\x01"}\n{"a": "\\t"}\n{"a": 1, "a": 1}\n{"a": "{\\"b\\": 1}", "b": 2}\n'
    items = read(tmp_path / "x.jsonl", lines)
    assert [item.lenient for item in items if isinstance(item, SourceRecord)] == [
        "a raw control character inside a string (column 9)",
        "NaN is no JSON number; a raw control character inside a string (column 18)",
        "",
        "",
        "",
    ]


def test_harmless_oddities_are_read(tmp_path: Path) -> None:
    line = '{"a": "tab\there", "b": "\\ud83d\\ude00", "c": [[[1]]], "d": "\\u0000"}'
    assert shown(read(tmp_path / "x.jsonl", line)) == [(1, {"a": "tab\there", "b": "😀", "c": [[[1]]], "d": "\0"})]


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


@given(text=st.text(alphabet='[]{},:"\n \\ab1\udcff', max_size=60))
def test_no_text_makes_the_scanner_fail_or_lose_characters_of_a_record(text: str) -> None:
    pieces = list(scan_json([text], "s"))
    assert pieces == list(scan_json(text, "s")), "one character at a time"
    items = parse_chunk(Chunk("s", "json", 1, items=tuple(pieces)))
    assert all(1 <= item.line <= text.count("\n") + 1 for item in items)
    assert [i.line for i in items] == sorted(i.line for i in items)
    if text.strip(" \t\r\n,[]"):
        assert items


@given(data=st.binary(max_size=80), suffix=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]))
def test_any_bytes_give_records_rejects_or_a_user_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    try:
        items = read(tmp_path / f"x.{suffix}", data)
    except UserError:
        return
    lines = max(data.count(b"\n"), data.count(b"\r")) + 1
    assert all(1 <= item.line <= lines for item in items)
    json.dumps([i.record if isinstance(i, Reject) else i.value for i in items], ensure_ascii=False).encode("utf-8")


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


def test_parquet_rows_are_plain_values(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
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


def test_damaged_parquet_data_are_told_as_damage(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.table({"text": [f"text number {i} {i * i}" for i in range(2000)]}), path)
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(range(250)) * 4
    with pytest.raises(UserError, match="Not a readable parquet file"):
        read(path, bytes(data))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *args: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "x.parquet", b"PAR1")
    assert "pip install pyarrow" in str(caught.value)


@given(value=st.dictionaries(st.text(max_size=3), VALUES | st.integers(-(2**70), 2**70) | st.floats(), max_size=3))
def test_a_line_of_json_is_read_as_the_standard_library_reads_it(value: dict[str, Any]) -> None:
    line = json.dumps(value, ensure_ascii=False)
    (item,) = parse_chunk(Chunk("s", "jsonl", 1, line.encode("utf-8")))
    assert isinstance(item, SourceRecord)
    assert repr(item.value) == repr(json.loads(line))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"a": 1, "a": 1}', {"a": 1}),
        (b'{"a": 18446744073709551616}', {"a": 2**64}),
        (b'{"a": -9223372036854775809}', {"a": -(2**63) - 1}),
        (b'{"a": -0, "b": 1e400}', {"a": 0, "b": float("inf")}),
        (b'{"a": Infinity}', {"a": float("inf")}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": "\x00\x0b"}', {"a": "\x00\x0b"}),
    ],
)
def test_what_the_fast_reader_refuses_or_would_change_is_read_as_it_stands(line: bytes, value: dict[str, Any]) -> None:
    (item,) = parse_chunk(Chunk("s", "jsonl", 1, line))
    assert isinstance(item, SourceRecord) and item.value == value and type(item.value["a"]) is type(value["a"])


def test_plain_text_gives_a_record_a_paragraph(tmp_path: Path) -> None:
    items = read(tmp_path / "x.md", "# Title\n\n\nOne\ntwo.\n \t\nThree.")
    assert shown(items) == [(1, {"text": "# Title"}), (4, {"text": "One\ntwo."}), (7, {"text": "Three."})]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a;b\n1,5;2\n", [{"a": "1,5", "b": "2"}]),
        ("a|b\n1|2\n", [{"a": "1", "b": "2"}]),
        ("text, long;label\nhello, you;x\na, b, c;y\n", [{"text, long": "hello, you", "label": "x"}, {"text, long": "a, b, c", "label": "y"}]),
        ("sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        ('"a","b\nc"\n1,2\n', [{"a": "1", "b\nc": "2"}]),
        ("a,b\n1,x\x00y\n", [{"a": "1", "b": "x\x00y"}]),
        ('a,b\n1,""\n"",""\n', [{"a": "1", "b": ""}, {"a": "", "b": ""}]),
    ],
)  # fmt: skip
def test_csv_dialects(tmp_path: Path, text: str, values: list[dict[str, str]]) -> None:
    assert [i.value for i in read(tmp_path / "x.csv", text) if isinstance(i, SourceRecord)] == values


def test_nested_parquet_columns_become_what_json_can_hold(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    table = arrow.table(
        {
            "struct": arrow.array([{"x": [1, 2], "y": {"z": "w"}}, None]),
            "map": arrow.array([[("k", 1)], []], arrow.map_(arrow.string(), arrow.int64())),
            "word": arrow.array(["a", "b"]).dictionary_encode(),
            "at": arrow.array([moment, None], arrow.timestamp("ns")),
            "ats": arrow.array([[1], []], arrow.list_(arrow.timestamp("ns", "UTC"))),
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet")
    values = [i.value for i in read_records([str(tmp_path / "x.parquet")]) if isinstance(i, SourceRecord)]
    assert values == [
        {
            "struct": {"x": [1, 2], "y": {"z": "w"}},
            "map": {"k": 1},
            "word": "a",
            "at": "2024-01-02T03:04:05",
            "ats": ["1970-01-01T00:00:00+00:00"],
        },
        {"struct": None, "map": {}, "word": "b", "at": None, "ats": []},
    ]


def test_a_parquet_value_that_python_cannot_hold_rejects_its_row_alone(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    table = arrow.table({"at": arrow.array([0, 2**62, 1], arrow.timestamp("us"))})
    parquet.write_table(table, tmp_path / "x.parquet")
    items = list(read_records([str(tmp_path / "x.parquet")]))
    assert [i.reason if isinstance(i, Reject) else i.line for i in items] == [1, "wrong_type", 3]


def test_a_row_of_a_table_that_is_longer_than_any_line_may_be_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("tuneloop.data.sources.parse.MAX_LINE", 1000)
    parquet.write_table(arrow.table({"text": ["short", "x" * 2000]}), tmp_path / "rows.parquet")
    good, bad = read_records([str(tmp_path / "rows.parquet")])
    assert isinstance(bad, Reject) and (bad.reason, bad.line) == ("line_too_long", 2)
    assert not isinstance(good, Reject)


def test_a_hundred_thousand_columns_of_one_name_are_numbered_in_no_time() -> None:
    began = time.process_time()
    names = column_names(["a", "a_2", *["a"] * 100_000])
    assert names[:4] == ("a", "a_2", "a_3", "a_4") and len(set(names)) == 100_002
    assert time.process_time() - began < 5
