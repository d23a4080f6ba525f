from __future__ import annotations

import builtins
import bz2
import csv
import datetime
import gzip
import importlib
import io
import itertools
import json
import lzma
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.sources import chunks as chunks_module
from tuneloop.data.sources import parse as parse_module
from tuneloop.data.sources import read as read_module
from tuneloop.data.sources.parse import MAX_DEPTH
from tuneloop.data.sources.read import (
    Chunk,
    SourceFile,
    SourceRecord,
    chunks,
    dataset_info,
    encoding_of,
    find_files,
    parse_chunk,
    read_file,
    read_records,
    scan_json,
)
from tuneloop.records.rows import Reject

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


def in_chunks(path: Path, size: int) -> list[SourceRecord | Reject]:
    """All records by way of pickled chunks, as workers get them."""
    (file,) = find_files([str(path)])
    return [item for chunk in chunks(file, size) for item in parse_chunk(pickle.loads(pickle.dumps(chunk)))]


def zstd(data: bytes) -> bytes:
    module = pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    compressed: bytes = module.compress(data)
    return compressed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


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
    assert [item.mended for item in items if isinstance(item, SourceRecord)] == [
        "a raw control character inside a string (column 9)",
        "NaN is no JSON number; a raw control character inside a string (column 18)",
        "",
        "",
        "",
    ]


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
@given(text=st.text(alphabet='[]{},:"\n \\ab1\udcff', max_size=60))
def test_no_text_makes_the_scanner_fail_or_lose_characters_of_a_record(text: str) -> None:
    pieces = list(scan_json([text], "s"))
    assert pieces == list(scan_json(text, "s")), "one character at a time"
    items = parse_chunk(Chunk("s", "json", 1, items=tuple(pieces)))
    assert all(1 <= item.line <= text.count("\n") + 1 for item in items)
    assert [i.line for i in items] == sorted(i.line for i in items)
    if text.strip(" \t\r\n,[]"):
        assert items


@QUICK
@given(data=st.binary(max_size=80), suffix=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]))
def test_any_bytes_give_records_rejects_or_a_user_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    try:
        items = read(tmp_path / f"x.{suffix}", data)
    except UserError:
        return
    lines = max(data.count(b"\n"), data.count(b"\r")) + 1
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


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.json", b" \n\n", "is empty"),
        ("x.csv", b"", "is empty"),
        ("x.parquet", b"", "is empty"),
        ("x.csv", b"\n \n", "is empty"),
        ("x.txt", b"\n\n", "is empty"),
        ("x.jsonl", gzip.compress(b"{}"), "holds gzip"),
        ("x.jsonl", b"PAR1....", "holds parquet"),
        ("x.gz", b"", "Can't read files of the kind"),
        ("x.xlsx", b"PK", "Can't read files of the kind .xlsx"),
        ("x.jsonl.gz", b"{}", "Can't decompress"),
        ("x.jsonl.bz2", b"{}", "Can't decompress"),
        ("x.jsonl.xz", b"{}", "Can't decompress"),
        ("x.jsonl.zst", b"{}{}{}{}{}{}{}", "Can't decompress"),
        ("x.jsonl.gz", gzip.compress(b""), "is empty"),
        ("x.csv", b"PK\x03\x04 a workbook", "holds zip"),
        ("x.csv", b'a,"b\n1,2\n', "header line can't be read"),
    ],
)
def test_unusable_files_are_user_errors_that_name_the_file(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
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


# --- chunks


LINES = st.lists(
    st.sampled_from(
        [
            '{"a": 1}',
            '{"a": "é\u2028"}',
            "",
            " ",
            '{"a": ',
            "[1]",
            '"x',
            "a,b",
            '"a ""q"" b",2',
            '"a',
            'b",c',
            "1,2,3",
            'x"y,z',
            '"a"x,b',
            "\x00,\ttab",
            '{"a": [1,\n {"b": "c"}]}',
            "\ufeff{}",
            "para",
        ]
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=LINES,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
    name=st.sampled_from(["x.json", "x.jsonl", "x.csv", "x.tsv", "x.txt", "x.jsonl.gz", "x.csv.bz2"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"]),
    size=st.integers(1, 40),
    opening=st.sampled_from(["", "[", "h,i\n"]),
)
def test_the_records_do_not_depend_on_the_size_of_chunks(
    tmp_path: Path, lines: list[str], end: str, last: bool, name: str, encoding: str, size: int, opening: str
) -> None:
    data = (opening + "\n".join(lines) + "\n" * last).replace("\n", end).encode(encoding)
    packed = PACKERS[name.rpartition(".")[2]](data) if name.count(".") > 1 else data
    (tmp_path / name).write_bytes(packed)
    (file,) = find_files([str(tmp_path / name)])
    try:
        whole = list(read_file(file))
    except UserError as error:
        with pytest.raises(UserError) as caught:
            in_chunks(tmp_path / name, size)
        assert str(caught.value) == str(error)
        return
    assert in_chunks(tmp_path / name, size) == whole
    assert [item.line for item in whole] == sorted(item.line for item in whole)


@QUICK
@given(
    rows=st.lists(st.tuples(*[st.text('ab",\n\r;é', max_size=6)] * 2), min_size=1, max_size=8), size=st.integers(1, 30)
)
def test_csv_chunks_are_cut_between_rows_only(tmp_path: Path, rows: list[tuple[str, str]], size: int) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    (tmp_path / "x.csv").write_bytes(buffer.getvalue().encode())
    items = in_chunks(tmp_path / "x.csv", size)
    assert [tuple(i.value.values()) for i in items if isinstance(i, SourceRecord)] == rows


@settings(max_examples=300, deadline=None)
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


def test_a_chunk_tells_how_far_the_file_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 100)
    positions = [chunk.position for chunk in chunks(find_files([str(path)])[0], 200)]
    assert positions == sorted(positions) and positions[-1] == path.stat().st_size and len(positions) == 5


# --- limits


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (chunks_module, parse_module):
        monkeypatch.setattr(module, "MAX_LINE", 50)
    return 50


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
def test_a_line_over_the_limit_is_skipped_and_its_size_told(
    tmp_path: Path, size: int, name: str, small_limit: int
) -> None:
    short, long = {"x.csv": ("a,b", "c" * 51), "x.txt": ("one\n", "c" * 51)}.get(
        name, ('{"a": 1}', '{"a": "' + "c" * 42 + '"}')
    )
    text = f"{short}\n{short}\n{long}\n{short}\n{long}\n{long}"
    (tmp_path / name).write_text(text)
    items = in_chunks(tmp_path / name, size)
    rejects = [item for item in items if isinstance(item, Reject)]
    lines = [number for number, line in enumerate(text.split("\n"), 1) if line == long]
    assert [(r.line, r.reason, r.record) for r in rejects] == [(line, "line_too_long", None) for line in lines]
    assert all("51 bytes" in r.detail for r in rejects)
    assert len(items) - len(rejects) == (2 if name == "x.csv" else 3)


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
@pytest.mark.parametrize("layout", ["lines", "one line"])
def test_an_element_of_an_array_over_the_limit_costs_no_other(
    tmp_path: Path, size: int, layout: str, small_limit: int
) -> None:
    records = [{"a": "x"}, {"a": "y" * 600}, {"a": "z"}]
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1 if layout == "lines" else None))
    items = in_chunks(tmp_path / "x.json", size)
    assert [i.value["a"] if isinstance(i, SourceRecord) else i.reason for i in items] == ["x", "line_too_long", "z"]


def test_memory_is_bounded_by_the_limit_whatever_a_line_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    for module in (chunks_module, parse_module):
        monkeypatch.setattr(module, "MAX_LINE", 1 << 20)
    for name in ("x.jsonl", "x.json", "x.csv", "x.txt"):
        opening = {"x.json": '[{"a": "', "x.csv": 'a,b\n"'}.get(name, '{"a": "')
        with open(tmp_path / name, "w") as stream:
            stream.write(opening)
            for _ in range(32):
                stream.write("x" * (1 << 20))
            stream.write('"}\n{"a": 1}\n')
        tracemalloc.start()
        items = in_chunks(tmp_path / name, 1 << 18)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert "line_too_long" in [item.reason for item in items if isinstance(item, Reject)], name
        assert peak < 12 << 20, name


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.jsonl.gz"])
@pytest.mark.parametrize("size", [3, 1 << 20])
def test_encodings_are_found_and_undone(tmp_path: Path, encoding: str, name: str, size: int) -> None:
    kind = name.split(".")[1]
    texts = [f"café n° {number}, déjà “vu”" for number in range(5)]
    records = [{"text": text} for text in texts]
    text = {
        "jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in records),
        "json": json.dumps(records, ensure_ascii=False, indent=1),
        "csv": "text\n" + "\n".join(f'"{t}"' for t in texts),
        "txt": "\n\n".join(texts),
    }[kind]
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [i.value for i in in_chunks(tmp_path / name, size) if isinstance(i, SourceRecord)] == records
    (file,) = find_files([str(tmp_path / name)])
    assert encoding_of(file) == encoding
    assert [chunk.encoding for chunk in chunks(file, size)][-1] == encoding


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b'{"a": "x"}\n' * 3, "utf-8"),
        ('{"a": "é"}\n'.encode() * 3 + b'{"a": "\xe9"}\n', "utf-8"),
        (b'{"a": "\xff"}\n{"a": "x"}\n', "utf-8"),
        ('{"a": "привет"}\n'.encode("cp1251") * 5, "utf-8"),
        ('{"a": "你好世界"}\n'.encode("gbk") * 5, "utf-8"),
        (b"[" + b"1," * (1 << 20) + '"garçon"]'.encode("cp1252"), "cp1252"),
        ('{"a": "über größe"}\n'.encode("latin-1"), "cp1252"),
        ('{"a": "CAFÉ\xa0»"}\n'.encode("latin-1") + '{"a": "ça là"}\n'.encode("latin-1") * 20, "cp1252"),
    ],
)
def test_only_what_looks_like_western_text_is_taken_for_cp1252(tmp_path: Path, data: bytes, encoding: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    assert encoding_of(find_files([str(tmp_path / "x.jsonl")])[0]) == encoding


def test_half_a_character_of_utf_16_and_a_lone_surrogate_reject_their_lines(tmp_path: Path) -> None:
    data = '{"a": 1}\n{"a": "\ud800"}\n{"a": 2}'.encode("utf-16-le", "surrogatepass")
    items = read(tmp_path / "x.jsonl", b"\xff\xfe" + data + b"x")
    assert shown(items) == [(1, {"a": 1}), (2, "broken_json"), (3, "broken_json")]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_whatever_ends_them(tmp_path: Path, name: str, end: str) -> None:
    text = {"x.json": '[\n{"a":\n1},\n\n{"a": 2}]', "x.csv": 'a\n"1\n2"\n\n3', "x.txt": "\none\n\ntwo\nlines"}.get(
        name, '{"a": 1}\n\n\n{"a": 2}'
    )
    items = read(tmp_path / name, text.replace("\n", end).encode())
    assert [i.line for i in items if isinstance(i, SourceRecord)] == {
        "x.json": [2, 5],
        "x.csv": [2, 5],
        "x.txt": [2, 4],
    }.get(name, [1, 4])


# --- plain text


def test_plain_text_gives_a_record_a_paragraph(tmp_path: Path) -> None:
    items = read(tmp_path / "x.md", "# Title\n\n\nOne\ntwo.\n \t\nThree.")
    assert shown(items) == [(1, {"text": "# Title"}), (4, {"text": "One\ntwo."}), (7, {"text": "Three."})]


# --- compressed files


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_compressed_data_is_read_and_what_was_cut_is_one_reject(tmp_path: Path, packing: str, kind: str) -> None:
    values = [f"{number} {number * 7919 % 1_000_003}" for number in range(15_000)]
    text = {
        "jsonl": "\n".join(json.dumps({"a": value}) for value in values),
        "json": json.dumps([{"a": value} for value in values], indent=1),
        "csv": "a\n" + "\n".join(f'"{value}"' for value in values),
        "txt": "\n\n".join(values),
    }[kind]
    key = "text" if kind == "txt" else "a"
    data = PACKERS[packing](text.encode())
    items = read(tmp_path / f"x.{kind}.{packing}", data)
    assert [i.value[key] for i in items if isinstance(i, SourceRecord)] == values
    double = data + PACKERS[packing](text.encode())
    if kind == "jsonl":  # joined files are read to the end
        assert len(read(tmp_path / f"z.{kind}.{packing}", double)) > len(items)
    cut = read(tmp_path / f"y.{kind}.{packing}", data[:-10])
    *good, last = cut
    assert isinstance(last, Reject) and last.reason == "cut_file" and packing in last.detail
    assert [i.value[key] for i in good if isinstance(i, SourceRecord)] == values[: len(good)]
    assert cut == in_chunks(tmp_path / f"y.{kind}.{packing}", 100)


def test_damage_in_the_middle_keeps_what_was_before(tmp_path: Path) -> None:
    values = [f"{number} {number * 7919 % 100_000}" for number in range(60_000)]
    data = bytearray(gzip.compress("\n".join(json.dumps({"a": value}) for value in values).encode()))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    *_, last = items = read(tmp_path / "x.jsonl.gz", bytes(data))
    assert isinstance(last, Reject) and last.reason == "cut_file" and 1000 < len(items) < 60_000


# --- files that change


def test_a_file_that_is_replaced_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path, other = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    other.write_bytes(b'{"a": 2}\n' * 1000)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    stream = chunks(find_files([str(path)])[0], 100)
    next(stream)
    other.replace(path)
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream)


def test_a_file_that_goes_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    stream = chunks(find_files([str(path)])[0], 100)
    next(stream)
    path.unlink()
    with pytest.raises(UserError, match="is gone"):
        list(stream)


def test_a_file_that_changes_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    stream = chunks(find_files([str(path)])[0], 100)
    next(stream)
    with path.open("ab") as more:
        more.write(b'{"a": 2}\n')
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream)


# --- CSV


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


# --- parquet


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


def test_parquet_chunks_follow_one_another_over_row_groups(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [{"a": number, "t": f"text {number}"} for number in range(1000)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=300)
    items = in_chunks(tmp_path / "x.parquet", 500)
    assert shown(items) == [(row["a"] + 1, row) for row in rows]


def test_a_parquet_value_that_python_cannot_hold_rejects_its_row_alone(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    table = arrow.table({"at": arrow.array([0, 2**62, 1], arrow.timestamp("us"))})
    parquet.write_table(table, tmp_path / "x.parquet")
    items = list(read_records([str(tmp_path / "x.parquet")]))
    assert [i.reason if isinstance(i, Reject) else i.line for i in items] == [1, "wrong_type", 3]


# --- which files


@pytest.mark.parametrize("target", ["gone.jsonl", "x.jsonl"])
def test_a_link_without_its_file_is_told_whoever_finds_it(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "x.jsonl").symlink_to(tmp_path / target)
    (tmp_path / ".#b.jsonl").symlink_to("an editor's lock")
    for source in (tmp_path, tmp_path / "*.jsonl", tmp_path / "**" / "*.jsonl", tmp_path / "x.jsonl"):
        with pytest.raises(UserError, match="link that leads to no file") as caught:
            find_files([str(source)])
        assert caught.value.where == str(tmp_path / "x.jsonl")


def test_links_that_lead_back_up_are_walked_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text("{}")
    for name in ("up", "up2"):
        (tmp_path / "a" / name).symlink_to(tmp_path, target_is_directory=True)
    for source in (tmp_path, tmp_path / "**" / "*.jsonl"):
        assert [f.path.name for f in find_files([str(source)])] == ["x.jsonl"]


def test_text_files_of_a_folder_count_only_where_nothing_else_is(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE.txt", "one.txt", "two.txt.gz"):
        (tmp_path / name).write_text("x")
    assert [f.path.name for f in find_files([str(tmp_path)])] == ["one.txt", "two.txt.gz"]
    (tmp_path / "rows.csv").write_text("a\n1\n")
    assert [f.path.name for f in find_files([str(tmp_path)])] == ["rows.csv"]
    assert [f.path.name for f in find_files([str(tmp_path / "README.md"), str(tmp_path / "*.txt")])] == [
        "README.md",
        "one.txt",
    ]


def test_dataset_info_names_files_and_is_no_data(tmp_path: Path) -> None:
    info = {
        "chats": {"file_name": "chats.json", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
        "wiki": {"file_name": "wiki.txt", "columns": {"prompt": "text"}},
        "remote": {"hf_hub_url": "some/where"},
        "gone": {"file_name": "gone.json"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for name in ("chats.json", "wiki.txt", "other.csv", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert list(dataset_info(tmp_path)) == ["chats", "wiki", "gone"]
    assert dataset_info(tmp_path)["chats"] == info["chats"]
    assert [f.path.name for f in find_files([str(tmp_path)])] == ["chats.json", "other.csv", "wiki.txt"]
    assert [f.path.name for f in find_files([str(tmp_path / "*.json")])] == ["chats.json"]
    assert [f.path.name for f in find_files([str(tmp_path / "dataset_info.json")])] == ["chats.json", "wiki.txt"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"features": {}, "splits": null}', "\x00"])
def test_a_dataset_info_of_another_kind_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_info.json").write_text(text)
    (tmp_path / "x.jsonl").write_text("{}")
    assert dataset_info(tmp_path) == {} == dataset_info(tmp_path / "nowhere")
    assert [f.path.name for f in find_files([str(tmp_path)])] == ["x.jsonl"]
    with pytest.raises(UserError, match="names no file"):
        find_files([str(tmp_path / "dataset_info.json")])


# --- the standard input


@pytest.mark.parametrize(
    ("data", "kind", "values"),
    [
        (b'{"a": 1}\n{"a": 2}\n', "jsonl", [{"a": 1}, {"a": 2}]),
        (b'\xef\xbb\xbf [{"a": 1},\n{"a": 2}]', "json", [{"a": 1}, {"a": 2}]),
        (b"a,b\n1,2\n", "csv", [{"a": "1", "b": "2"}]),
        (b"a\tb\n1\t2\n", "csv", [{"a": "1", "b": "2"}]),
        (gzip.compress(b'{\n"a": 1\n}'), "jsonl", [{"a": 1}]),
    ],
)
def test_the_standard_input_is_read_once_and_its_kind_seen(
    monkeypatch: pytest.MonkeyPatch, data: bytes, kind: str, values: list[Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    read_module._standard_input.cache_clear()
    try:
        (file,) = find_files(["-", "-"])
        assert (file.name, file.kind) == ("-", kind)
        items = list(read_records(["-"]))
        assert [i.value for i in items if isinstance(i, SourceRecord)] == values
        assert {i.source for i in items} == {"-"}
        os.unlink(file.path)
    finally:
        read_module._standard_input.cache_clear()


def test_an_empty_standard_input_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    read_module._standard_input.cache_clear()
    with pytest.raises(UserError, match="is empty"):
        find_files(["-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="Nothing is piped"):
        find_files(["-"])


def test_files_of_no_known_suffix_can_be_made_sources(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": 1}\n')
    file = SourceFile(tmp_path / "x", "mine", "jsonl")
    assert [item.source for item in read_file(file)] == ["mine"]


# --- files that grow when they are unpacked --------------------------------------------------------


def packed(kind: str, path: Path, megabytes: int) -> Path:
    """A small file of blank lines, braces or one value, that grows to so many MiB."""
    import gzip
    import lzma

    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = arrow.table({"text": ["x" * (1 << 20)] * megabytes, "label": ["a"] * megabytes})
        parquet.write_table(table, path / "rows.parquet")
        return path / "rows.parquet"
    opened = {"gz": gzip.open, "xz": lzma.open}[kind.partition(" ")[0]]
    file = path / f"rows.jsonl.{kind.partition(' ')[0]}"
    with opened(file, "wb") as stream:
        for _ in range(megabytes):
            stream.write((b"{" if "braces" in kind else b"\n") * (1 << 20))
    return file


@pytest.mark.parametrize("kind", ["gz lines", "gz braces", "xz lines", "parquet"])
def test_what_grows_a_thousandfold_is_refused_before_it_fills_the_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.data.sources.chunks.SMALL", 4 << 20)
    file = packed(kind, tmp_path, 20)
    (found,) = find_files([str(file)])
    with pytest.raises(UserError, match="grows more than 200 times") as error:
        list(read_file(found))
    assert "data.max_expansion" in error.value.next_step
    (allowed,) = find_files([str(file)], max_expansion=1e6)
    if kind == "parquet":
        assert len(list(read_file(allowed))) == 20
    monkeypatch.setattr("tuneloop.data.sources.chunks.SMALL", 1 << 30)
    assert list(itertools.islice(read_file(found), 1)) or "lines" in kind  # what stays small is read


def test_a_row_of_a_table_that_is_longer_than_any_line_may_be_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("tuneloop.data.sources.parse.MAX_LINE", 1000)
    parquet.write_table(arrow.table({"text": ["short", "x" * 2000]}), tmp_path / "rows.parquet")
    good, bad = read_records([str(tmp_path / "rows.parquet")])
    assert isinstance(bad, Reject) and (bad.reason, bad.line) == ("line_too_long", 2)
    assert not isinstance(good, Reject)
