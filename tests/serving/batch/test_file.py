"""Batch files are read as they are needed: a bad line is a fault of its own, and memory does not grow with what lines hold."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.serving.batch.file import BLANK, FAULTY, REPEATED, WAITING, BatchFile, InvalidBatch, Line

CHAT = "/v1/chat/completions"


def text(name: str = "a", **more: Any) -> str:
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": {"model": "m"}, **more})


def checked(path: Path, lines: Iterable[str | bytes], most: int | None = None, **more: Any) -> BatchFile:
    path.write_bytes(b"".join(line.encode() + b"\n" if isinstance(line, str) else line + b"\n" for line in lines))
    file = BatchFile(path, CHAT, **more)
    for _ in file.check(most):
        pass
    return file


POISON: list[tuple[str | bytes, str, str | None]] = [
    ('{"custom_id": "a", "body": {"max_tokens": 1' + "0" * 400 + "}}", "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": {"temperature": 1e999}}', "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": {"n": -1e999}}', "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": {"x": 1' + "0" * 9000 + "}}", "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": {"user": "\\ud800"}}', "invalid_json_line", "a"),
    ('{"custom_id": "\\udfff", "body": {}}', "invalid_json_line", None),
    ('{"custom_id": "a", "body": {"x": Infinity}}', "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": ' + "[" * 500 + "]" * 500 + "}", "invalid_json_line", "a"),
    ('{"custom_id": "a", "body": ' + '{"a":' * 90_000 + "1" + "}" * 90_001, "invalid_json_line", None),
    ("[" * 100_000, "invalid_json_line", None),
    (b'{"custom_id": "a\x00", "body": {}}', "invalid_json_line", None),
    (b'{"custom_id": "\xff\xfe", "body": {}}', "invalid_json_line", "\ufffd\ufffd"),
    (b"\xef\xbb\xbf\xff", "invalid_json_line", None),
    ("null", "invalid_json_line", None),
    ('"text"', "invalid_json_line", None),
    ("12", "invalid_json_line", None),
    (text(""), "missing_custom_id", None),
    ('{"url": "' + CHAT + '", "body": {}}', "missing_custom_id", None),
    ('{"custom_id": 7, "body": {}}', "missing_custom_id", None),
    ('{"custom_id": ["a"], "body": {}}', "missing_custom_id", None),
    (text("i" * 1_000_000), "invalid_custom_id", None),
    (text(method="GET"), "invalid_url", "a"),
    (text(method=["POST"]), "invalid_url", "a"),
    (text(url="/v1/embeddings"), "invalid_url", "a"),
    (text(url={"a": 1}), "invalid_url", "a"),
    (text(url="/v1/completions"), "invalid_url", "a"),
    (text(body=None), "invalid_body", "a"),
    (text(body=[1]), "invalid_body", "a"),
    (text(body="{}"), "invalid_body", "a"),
]


@pytest.mark.parametrize(("poison", "code", "name"), POISON, ids=[f"{i}-{item[1]}" for i, item in enumerate(POISON)])
def test_a_poison_line_is_a_fault_of_its_own(tmp_path: Path, poison: str | bytes, code: str, name: str | None) -> None:
    file = checked(tmp_path / "in.jsonl", [text("first"), poison, text("last")])
    assert list(file.states[1:]) == [WAITING, FAULTY, WAITING]
    assert [item.custom_id for some in file.waiting() for item in some] == ["first", "last"]
    fault = list(file.lines())[1]
    assert isinstance(fault, Line) and fault.fault is not None
    assert (fault.fault[0], fault.custom_id) == (code, name)
    assert "line 2" in fault.fault[1] and len(fault.fault[1]) < 400


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = checked(tmp_path / "in.jsonl", [b"\xef\xbb\xbf" + text("a").encode(), text("b")])
    assert list(file.states[1:]) == [WAITING, WAITING]


def test_a_line_without_end_is_never_in_memory(tmp_path: Path) -> None:
    long = b'{"custom_id": "' + b"x" * 30_000_000
    path = tmp_path / "in.jsonl"
    path.write_bytes(long + b"\n" + text("last").encode() + b"\n" + long)
    del long
    file = BatchFile(path, CHAT, most_bytes=1000)
    tracemalloc.start()
    for _ in file.check():
        pass
    lines = [item for some in file.waiting() for item in some]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [line.number for line in lines] == [2] and list(file.states[1:]) == [FAULTY, WAITING, FAULTY]
    assert peak < 4_000_000
    assert [line.fault and line.fault[0] for line in file.lines() if isinstance(line, Line)] == [
        "line_too_long", None, "line_too_long"
    ]  # fmt: skip


def test_a_repeated_custom_id_names_the_line_that_has_it(tmp_path: Path) -> None:
    file = checked(tmp_path / "in.jsonl", [text("a"), "", text("b"), text("a"), text("a", method="GET"), text("c")])
    assert list(file.states[1:]) == [WAITING, BLANK, WAITING, REPEATED, REPEATED, WAITING]
    faults = [line for line in file.lines() if isinstance(line, Line) and line.fault]
    assert [(fault.custom_id, fault.fault and fault.fault[0]) for fault in faults] == [
        (None, "duplicate_custom_id")
    ] * 2
    assert all(fault.fault and "is that of line 1" in fault.fault[1] for fault in faults)
    assert (file.total, file.failed) == (5, 2)


def test_memory_is_a_few_bytes_a_line(tmp_path: Path) -> None:
    path, count = tmp_path / "in.jsonl", 20_000
    with path.open("w") as out:
        out.writelines(f"{text(f'id-{i % (count - 10)}')}\n" for i in range(count))
    file = BatchFile(path, CHAT)
    import numpy  # noqa: F401  # loaded by the check; not what is measured

    tracemalloc.start()
    for _ in file.check():
        pass
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.counts[REPEATED] == 10 and file.counts[WAITING] == count - 10
    assert kept < 20 * count and peak < 80 * count, (kept / count, peak / count)


def test_a_file_that_is_no_batch_is_refused(tmp_path: Path) -> None:
    for lines, most, code in (
        ([], None, "empty_file"),
        (["", " "], None, "empty_file"),
        (["1"] * 6, 5, "too_many_rows"),
    ):
        with pytest.raises(InvalidBatch) as caught:
            checked(tmp_path / "in.jsonl", lines, most)
        assert caught.value.code == code
    with pytest.raises(UserError, match="No such file"):
        list(BatchFile(tmp_path / "none.jsonl").check())


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([text(), text("b"), *map(str, POISON[:6]), "", "{}"])).map("\n".join)
)
def test_whatever_a_file_holds_each_request_is_there_once(data: bytes | str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        file = BatchFile(path, CHAT, most_bytes=200)
        try:
            for _ in file.check():
                pass
        except InvalidBatch:
            assert not path.read_bytes().strip()
            return
        lines = list(file.lines())
        assert len(lines) == file.total == sum(file.counts) - file.counts[BLANK]
        waiting = [item.number for some in file.waiting() for item in some]
        assert waiting == [line.number for line in lines if isinstance(line, Line) and line.fault is None]
        names = [line.custom_id for line in lines if isinstance(line, Line) and line.custom_id]
        assert len(names) == len(set(names))
