"""The state of a batch is read as a whole, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.core.errors import UserError
from tuneloop.records.record import write_record
from tuneloop.serving.batch.record import BatchState, RequestCounts, read_state

STATE = BatchState(
    id="b", status="in_progress", created_at=5, request_counts=RequestCounts(total=3, completed=1, failed=0)
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / BatchState.file, STATE)
    assert read_state(tmp_path) == STATE and not STATE.over
    assert STATE.model_copy(update={"status": "expired"}).over


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"version": 2}', b'{"version": 1, "id": "b"}']
)
def test_a_damaged_state_is_one_sentence(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / BatchState.file).write_bytes(raw)
    with pytest.raises(UserError, match="The state of a batch is missing or damaged"):
        read_state(tmp_path)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="missing or damaged"):
            read_state(folder)
    (tmp_path / BatchState.file).mkdir()
    with pytest.raises(UserError, match="missing or damaged"):
        read_state(tmp_path)
