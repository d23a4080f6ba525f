"""Votes on disk: one JSON line each, appended so that nothing is lost, whoever else writes at the same moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.records.record import as_line
from tuneloop.records.review import Vote


def append_vote(path: Path | str, vote: Vote) -> None:
    """Add a vote to the file and return when it is on the disk.

    One write under a lock of the file: processes may append at the same time. A line that a crash cut off before is
    ended first; a disk that fills up leaves no half line.

    Raises:
        UserError: the file can't be written.
    """
    record = {key: value for key, value in vote.to_json().items() if value not in (None, "", [])}
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"
    with user_errors_of_the_disk(path):
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = os.lseek(descriptor, 0, os.SEEK_END)
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                line = b"\n" + line
            try:
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)


def read_votes(path: Path | str) -> tuple[list[Vote], int]:
    """All votes in the order they were given, and how many lines can't be read."""
    path = Path(path)
    if not path.exists():
        return [], 0
    with user_errors_of_the_disk(path):
        lines = path.read_bytes().split(b"\n")
    votes, damaged = [], 0
    for line in lines:
        if line.strip():
            vote = _vote(line, str(path))
            votes += [vote] if vote else []
            damaged += vote is None
    return votes, damaged


def _vote(line: bytes, where: str) -> Vote | None:
    try:
        return as_line(Vote, json.loads(line), where, "vote again")
    except (ValueError, RecursionError, UserError):
        return None


def standing(votes: Iterable[Vote]) -> dict[tuple[str, str], Vote]:
    """(item, reviewer) -> the vote that counts: a reviewer's last one on the item."""
    return {(vote.item, vote.reviewer): vote for vote in votes}
