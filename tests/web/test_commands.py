"""Commands that pages run: their answers, refusals in their own words, and readings that are made again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.serving.store.store import connect
from tuneloop.web import commands as c


def test_a_command_gives_what_it_printed_and_its_status(tmp_path: Path) -> None:
    connect(tmp_path / "serve", create=True).close()
    status, record = c.run_words(["ab", "show", "--store", str(tmp_path / "serve")], tmp_path)
    assert (status, record["experiments"]) == (0, [])


def test_a_refusal_comes_in_the_commands_own_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no store here") as caught:
        c.run_words(["ab", "show", "--store", str(tmp_path / "none")], tmp_path)
    assert caught.value.next_step and "none" in caught.value.where


def test_one_that_takes_long_continues(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="still works"):
        c.run_words(["ab", "plan"], tmp_path, within=0.01)


def test_a_reading_is_made_again_when_its_stamp_changes(tmp_path: Path) -> None:
    connect(tmp_path / "serve", create=True).close()
    text = ["ab", "show", "--store", str(tmp_path / "serve")]
    first = c.reading(text, tmp_path, 1, wait=60)
    assert first.record == {"experiments": []} and not first.busy
    assert c.reading(text, tmp_path, 1) == first
    begin = time.monotonic()
    again = c.reading(text, tmp_path, 2, wait=0.0)
    assert time.monotonic() - begin < 0.2, "a page never waits for it"
    assert again.busy and again.record == first.record, "what was read last is shown meanwhile"
    assert c.reading(text, tmp_path, 2, wait=60).stamp == 2


def test_a_fault_is_a_reading_too(tmp_path: Path) -> None:
    last = c.reading(["ab", "show", "--store", str(tmp_path / "none")], tmp_path, 1, wait=60)
    assert last.fault is not None and not last.record


def test_stamps_follow_a_file_and_its_log(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    assert c.stamp_of(file) == ()
    file.write_text("a")
    before = c.stamp_of(file)
    Path(f"{file}-wal").write_text("b")
    assert len(before) == 2 and len(c.stamp_of(file)) == 4
