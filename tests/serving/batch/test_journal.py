"""What a journal says is done is done, whatever is cut, full or damaged."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.records.record import JsonSteps, MigrationStep
from tuneloop.serving.batch.file import ANSWERED, REFUSED, WAITING, BatchFile, Journal, Line, encoded

DONE = {"custom_id": "a", "response": {"status_code": 200, "request_id": None, "body": {}}, "error": None}
WRONG = {"custom_id": "a", "response": None, "error": {"code": "x", "message": "y"}}


def opened(folder: Path, lines: int = 4) -> Journal:
    source = folder / "input.jsonl"
    if not source.exists():
        source.write_text("".join(json.dumps({"custom_id": f"{i}", "body": {}}) + "\n" for i in range(lines)))
    file = BatchFile(source, "/v1/completions")
    for _ in file.check():
        pass
    journal = Journal(folder / "journal.jsonl", file)
    for _ in journal.open():
        pass
    return journal


def added(journal: Journal, *numbers: int) -> list[BaseException | None]:
    """Add lines at the same time and close the journal; what each addition raised."""

    async def work() -> list[Any]:
        try:
            adding = [journal.add(Line(i, None), encoded(i, DONE), wrong=False) for i in numbers]
            return await asyncio.gather(*adding, return_exceptions=True)
        finally:
            await journal.close()

    return asyncio.run(work())


def test_a_line_that_was_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encoded(1, DONE) + encoded(3, WRONG) + encoded(2, DONE)[:-9])
    journal = opened(tmp_path)
    assert list(journal.rows.states[1:]) == [ANSWERED, WAITING, REFUSED, WAITING]
    assert added(journal, 2) == [None]
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()] == [1, 3, 2]
    journal = opened(tmp_path)
    with path.open("rb") as file:
        assert [journal.read(file, i)["number"] for i in (2, 1, 3)] == [2, 1, 3]
    added(journal)


@pytest.mark.parametrize(
    "damage",
    [
        b"xx\n", b"{}\n", b"[]\n", b"null\n", b"\x00" * 80 + b"\n", b"\xff\xfe\n", b'{"number": 1e999}\n', encoded(99, DONE),
        encoded(-1, DONE), b'{"number": "1", "error": 3, "response": 1}\n', b'{"number": 1, "error": null, "response": 5}\n',
        b'{"number": 1.5, "error": null, "response": {"status_code": 200}}\n',
    ],
)  # fmt: skip
def test_a_damaged_line_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(encoded(1, DONE) + damage + encoded(2, DONE))
    with pytest.raises(UserError, match=r"journal of a batch is damaged in line 2"):
        opened(tmp_path)


def test_a_folder_in_its_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(UserError, match="Can't write or read"):
        opened(tmp_path)


def test_another_process_cant_take_it(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_journal import opened
opened(Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Another process is doing this batch" in done.stderr
    added(journal)
    assert opened(tmp_path).rows.total == 4


@pytest.mark.parametrize("how", ["nothing", "half", "sync"])
def test_what_does_not_fit_is_taken_back_for_all_that_came_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    journal = opened(tmp_path)
    assert added(journal, 1) == [None]
    journal = opened(tmp_path)
    write, sync = os.write, os.fsync

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "sync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(
            os, "write", full if how == "nothing" else lambda to, data: write(to, data[: len(data) // 2])
        )

    async def work() -> None:
        both = await asyncio.gather(
            *(journal.add(Line(i, None), encoded(i, DONE), wrong=False) for i in (2, 3)), return_exceptions=True
        )
        assert all(isinstance(item, OSError) and item.errno == errno.ENOSPC for item in both), both
        assert list(journal.rows.states[1:]) == [ANSWERED, WAITING, WAITING, WAITING]
        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "fsync", sync)
        await asyncio.gather(*(journal.add(Line(i, None), encoded(i, DONE), wrong=False) for i in (2, 3)))
        await journal.close()

    asyncio.run(asyncio.wait_for(work(), 20))
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]


def test_a_new_file_in_its_place_is_read(tmp_path: Path) -> None:
    """The erasure of a person writes a journal anew while its batch is at work."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(encoded(1, DONE) + encoded(2, DONE))
    journal = opened(tmp_path)
    (tmp_path / "new").write_bytes(encoded(2, WRONG))
    (tmp_path / "new").replace(path)
    assert added(journal, 3) == [None]
    assert list(journal.rows.states[1:]) == [WAITING, REFUSED, ANSWERED, WAITING]
    assert path.read_bytes() == encoded(2, WRONG) + encoded(3, DONE)


def test_a_journal_of_the_first_version_is_continued_by_later_ones(tmp_path: Path) -> None:
    from stored import unpacked

    (folder,) = (unpacked(tmp_path / "kept") / "serve" / "batch" / "batches").iterdir()
    later: JsonSteps = (
        MigrationStep(2, "a note", lambda line: {**line, "note": ""}),
        MigrationStep(3, "the answer without its wrapping", lambda line: {**line, "response": line["response"] and line["response"] | {"answered": True}}),
    )  # fmt: skip

    def read(steps: JsonSteps) -> Journal:
        file = BatchFile(folder / "input.jsonl", "/v1/chat/completions")
        for _ in file.check():
            pass
        journal = Journal(folder / "journal.jsonl", file, steps)
        for _ in journal.open():
            pass
        return journal

    async def continued() -> None:
        journal = read(later)
        assert bytes(journal.rows.states[1:]) == bytes([ANSWERED, WAITING])
        await journal.add(Line(2, None), encoded(2, WRONG | {"note": "new"}, later), wrong=True)
        await journal.close()

    asyncio.run(continued())
    journal = read(later)
    with (folder / "journal.jsonl").open("rb") as file:
        first, second = journal.read(file, 1), journal.read(file, 2)
    assert first["response"]["answered"] and first["note"] == "" and second["note"] == "new"
    assert not {"version"} & (first.keys() | second.keys())
    asyncio.run(journal.close())
    with pytest.raises(
        UserError, match="A newer tuneloop wrote this journal: it is of version 3, and this one reads 1"
    ):
        read(())
