from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from source_files import read

from tuneloop.core.errors import UserError
from tuneloop.data.sources.parse import SourceFile, SourceRecord
from tuneloop.data.sources.read import dataset_info, find_files, read_file, read_records


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.json", b" \n\n", "is empty"),
        ("x.csv", b"", "is empty"),
        ("x.parquet", b"", "is empty"),
        ("x.csv", b"\n \n", "is empty"),
        ("x.txt", b"\n\n", "is empty"),
        ("x.jsonl", gzip.compress(b"{}", mtime=0), "holds gzip"),
        ("x.jsonl", b"PAR1....", "holds parquet"),
        ("x.gz", b"", "Can't read files of the kind"),
        ("x.xlsx", b"PK", "Not a readable spreadsheet"),
        ("x.doc", b"", "Can't read files of the kind .doc"),
        ("x.jsonl.gz", b"{}", "Can't decompress"),
        ("x.jsonl.bz2", b"{}", "Can't decompress"),
        ("x.jsonl.xz", b"{}", "Can't decompress"),
        ("x.jsonl.zst", b"{}{}{}{}{}{}{}", "Can't decompress"),
        ("x.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("x.csv", b"PK\x03\x04 a workbook", "holds zip"),
        ("x.csv", b'a,"b\n1,2\n', "header line can't be read"),
    ],
)
def test_unusable_files_are_user_errors_that_name_the_file(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
    with pytest.raises(UserError, match=message) as caught:
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
    (tmp_path / "done" / "dataset.json").unlink()
    (tmp_path / "done" / "train.jsonl").rename(tmp_path / "done" / "rejects.jsonl")
    with pytest.raises(UserError, match="was not finished"):
        find_files([str(tmp_path / "done")])


def test_reading_opens_no_later_file_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n')
    stream = read_records([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    first = next(stream)
    assert first.source.endswith("a.jsonl") and builtins.sum(1 for _ in stream) == 1


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


@pytest.mark.parametrize(
    ("data", "kind", "values"),
    [
        (b'{"a": 1}\n{"a": 2}\n', "jsonl", [{"a": 1}, {"a": 2}]),
        (b'\xef\xbb\xbf [{"a": 1},\n{"a": 2}]', "json", [{"a": 1}, {"a": 2}]),
        (b"a,b\n1,2\n", "csv", [{"a": "1", "b": "2"}]),
        (b"a\tb\n1\t2\n", "csv", [{"a": "1", "b": "2"}]),
        (gzip.compress(b'{\n"a": 1\n}', mtime=0), "jsonl", [{"a": 1}]),
    ],
)
def test_the_standard_input_is_read_once_and_its_kind_seen(
    monkeypatch: pytest.MonkeyPatch, data: bytes, kind: str, values: list[Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    (file,) = find_files(["-", "-"])
    assert (file.name, file.kind) == ("-", kind)
    items = list(read_records(["-"]))
    assert [i.value for i in items if isinstance(i, SourceRecord)] == values
    assert {i.source for i in items} == {"-"}
    os.unlink(file.path)


def test_an_empty_standard_input_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="is empty"):
        find_files(["-"])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="Nothing is piped"):
        find_files(["-"])


def test_files_of_no_known_suffix_can_be_made_sources(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": 1}\n')
    file = SourceFile(tmp_path / "x", "mine", "jsonl")
    assert [item.source for item in read_file(file)] == ["mine"]
