"""Files are read in chunks: any size gives the same records, memory is bounded, encodings and compression are undone."""

from __future__ import annotations

import bz2
import csv
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

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import read, shown

from tuneloop.core.errors import UserError
from tuneloop.data.sources import parse as parse_module
from tuneloop.data.sources.chunks import chunks_of
from tuneloop.data.sources.parse import SourceRecord, parse_chunk
from tuneloop.data.sources.read import find_files, read_file
from tuneloop.records.rows import Reject


def in_chunks(path: Path, size: int) -> list[SourceRecord | Reject]:
    """All records by way of pickled chunks, as workers get them."""
    (file,) = find_files([str(path)])
    return [item for chunk in chunks_of(file, size) for item in parse_chunk(pickle.loads(pickle.dumps(chunk)))]


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


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(parse_module, "MAX_LINE", 50)
    return 50


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
            stream.write(b"{" * (1 << 20) if "braces" in kind else (b" " * 63 + b"\n") * (1 << 14))
    return file


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


@given(
    rows=st.lists(st.tuples(*[st.text('ab",\n\r;é', max_size=6)] * 2), min_size=1, max_size=8), size=st.integers(1, 30)
)
def test_csv_chunks_are_cut_between_rows_only(tmp_path: Path, rows: list[tuple[str, str]], size: int) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    (tmp_path / "x.csv").write_bytes(buffer.getvalue().encode())
    items = in_chunks(tmp_path / "x.csv", size)
    assert [tuple(i.value.values()) for i in items if isinstance(i, SourceRecord)] == rows


def test_a_chunk_tells_how_far_the_file_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 100)
    positions = [chunk.position for chunk in chunks_of(find_files([str(path)])[0], 200)]
    assert positions == sorted(positions) and positions[-1] == path.stat().st_size and len(positions) == 5


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

    monkeypatch.setattr(parse_module, "MAX_LINE", 1 << 20)
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
    assert [chunk.encoding for chunk in chunks_of(file, size)][-1] == encoding


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
    assert [chunk.encoding for chunk in chunks_of(find_files([str(tmp_path / "x.jsonl")])[0])][-1] == encoding


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


def test_a_file_that_is_replaced_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path, other = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    other.write_bytes(b'{"a": 2}\n' * 1000)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    stream = chunks_of(find_files([str(path)])[0], 100)
    next(stream)
    other.replace(path)
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream)


def test_a_file_that_goes_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    stream = chunks_of(find_files([str(path)])[0], 100)
    next(stream)
    path.unlink()
    with pytest.raises(UserError, match="no longer exists"):
        list(stream)


def test_a_file_that_changes_while_it_is_read_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1000)
    stream = chunks_of(find_files([str(path)])[0], 100)
    next(stream)
    with path.open("ab") as more:
        more.write(b'{"a": 2}\n')
    with pytest.raises(UserError, match="changed while it was read"):
        list(stream)


def test_parquet_chunks_follow_one_another_over_row_groups(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [{"a": number, "t": f"text {number}"} for number in range(1000)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=300)
    items = in_chunks(tmp_path / "x.parquet", 500)
    assert shown(items) == [(row["a"] + 1, row) for row in rows]


@pytest.mark.parametrize("kind", ["gz lines", "gz braces", "xz lines", "parquet"])
def test_what_grows_a_thousandfold_is_refused_before_it_fills_the_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.data.sources.chunks.SMALL", 4 << 20 if kind == "parquet" else 1 << 20)
    file = packed(kind, tmp_path, 20 if kind == "parquet" else 5)
    (found,) = find_files([str(file)])
    with pytest.raises(UserError, match="grows more than 200 times") as error:
        list(read_file(found))
    assert "data.max_expansion" in error.value.next_step
    (allowed,) = find_files([str(file)], max_expansion=1e6)
    if kind == "parquet":
        assert len(list(read_file(allowed))) == 20
    monkeypatch.setattr("tuneloop.data.sources.chunks.SMALL", 1 << 30)
    assert list(itertools.islice(read_file(found), 1)) or "lines" in kind  # what stays small is read


def test_a_value_that_repeats_in_a_parquet_file_counts_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("tuneloop.data.sources.chunks.SMALL", 1 << 20)
    texts = arrow.array(["a" * 1000, None] * 50_000).dictionary_encode()
    parquet.write_table(arrow.table({"prompt": texts}), tmp_path / "x.parquet")
    (found,) = find_files([str(tmp_path / "x.parquet")])
    with pytest.raises(UserError, match="grows more than 200 times"):
        list(read_file(found))
