"""Votes on disk: one JSON line each, appended so that nothing is lost, whoever else writes at the same moment."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tuneloop.core.files import plain, user_errors_of_the_disk

CHOICES = ("win", "tie", "both_bad", "rating", "skip")


@dataclass(frozen=True)
class Vote:
    """What one reviewer said about one item.

    Args:
        time: UTC, ISO 8601.
        choice: `win`, `tie` or `both_bad` of two answers; `rating` of one; `skip` says nothing about the item.
        winner: the system that won.
        shown: the systems as they stood on the page, left to right.
        thumb, stars: up or down; 1 to 5.
        tags: words about the answer; of two answers `SYSTEM: word` says whose.
        corrected: the answer as it should be.
        seconds: how long the item was looked at.
    """

    item: str
    reviewer: str
    time: str
    choice: str
    winner: str | None = None
    shown: tuple[str, ...] = ()
    thumb: bool | None = None
    stars: int | None = None
    tags: tuple[str, ...] = ()
    corrected: str | None = None
    note: str = ""
    seconds: float | None = None


def append_vote(path: Path | str, vote: Vote) -> None:
    """Add a vote to the file and return when it is on the disk.

    One write under a lock of the file: processes may append at the same time. A line that a crash cut off before is
    ended first; a disk that fills up leaves no half line.

    Raises:
        UserError: the file can't be written.
    """
    record = {key: value for key, value in plain(vote).items() if value not in (None, "", [])}
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
            vote = _vote(line)
            votes += [vote] if vote else []
            damaged += vote is None
    return votes, damaged


def _vote(line: bytes) -> Vote | None:
    try:
        record: dict[str, Any] = json.loads(line)
        known = {f.name for f in fields(Vote)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known}
        vote = Vote(**given)
    except (ValueError, TypeError, AttributeError):
        return None
    return vote if vote.choice in CHOICES else None


def standing(votes: Iterable[Vote]) -> dict[tuple[str, str], Vote]:
    """(item, reviewer) -> the vote that counts: a reviewer's last one on the item."""
    return {(vote.item, vote.reviewer): vote for vote in votes}
