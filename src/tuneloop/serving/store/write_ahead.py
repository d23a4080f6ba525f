"""What is written before an answer ends, so that a server that is killed has lost no request.

Each start of a request and each record is a line in one of two files, before the last bytes of the answer go out. The
next server brings them into the store. A file is emptied when all of its records are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.foreign import parse_line
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import as_record, latest
from tuneloop.records.request import StoredRequest, as_request
from tuneloop.records.server import Decision
from tuneloop.serving.batch.file import journaled
from tuneloop.serving.store.store import TABLES, Stored, values_of

FILES = ("store.ahead-0.jsonl", "store.ahead-1.jsonl")
LARGE = 1_000_000  # bytes after which the other file is taken
OLD = 30.0  # seconds after which it is taken too, so that what is erased from the store is not here for long
KILLED = "the server was killed before the answer ended"
BadLine = tuple[str, str]  # a line that holds no record, and why
_READERS: dict[str, Callable[[Any, str], Stored]] = {
    TABLES[StoredRequest]: as_request,
    TABLES[Feedback]: partial(as_record, Feedback),
    TABLES[Decision]: partial(as_record, Decision),
}


@dataclass
class WriteAhead:
    """The two files. Answers call `begin` and `end`, the store's writer calls `turn` and `clear`."""

    folder: Path  # of the server
    failed: int = 0  # lines that could not be written, for want of disk; their records are in memory alone
    lock: threading.Lock = field(default_factory=threading.Lock)
    _files: list[int] = field(default_factory=list)
    _at: int = 0
    _size: int = 0
    _begun: dict[str, bytes] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def open(self) -> tuple[list[Stored], list[BadLine]]:
        """Open the files; returns the last record of each id in them, and bad lines. UserError: no access."""
        last: dict[str, Stored] = {}
        bad: list[BadLine] = []
        for name in FILES:
            path = self.folder / name
            with user_errors_of_the_disk(path):
                records, wrong = read_spilled(path) if path.is_file() else ([], [])
                self._files.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
            bad += wrong
            for record in records:
                if record.id not in last or getattr(record, "error", None) != KILLED:
                    last[record.id] = record
        return list(last.values()), bad

    def begin(self, record: StoredRequest) -> None:
        """Note a request that is accepted."""
        line = line_of(record, error=KILLED, completion=None)
        with self.lock:
            self._begun[record.id] = line
            self._write(line)

    def hold(self, id_: str, line: bytes, journal: Path) -> None:
        """Note a record, by its `line_of`, that counts if the journal of a batch names it: see `StoreWriter.hold`."""
        line = line.removesuffix(b"]\n") + b"," + orjson.dumps(str(journal)) + b"]\n"
        with self.lock:
            self._begun[id_] = line
            self._write(line)

    def drop(self, id_: str) -> None:
        """Forget a record that was held."""
        with self.lock:
            self._begun.pop(id_, None)

    def end(self, id_: str, line: bytes) -> None:
        """Note a record that is complete, by its `line_of`. The caller holds `lock`, and queues it for the writer."""
        self._begun.pop(id_, None)
        self._write(line)

    def turn(self, *, always: bool = False) -> int | None:
        """Take the other file where this one is large, or `always`; the caller holds `lock` and takes all that waits.
        Returns the number of the file to be cleared once that is in the store; None: none."""
        now = time.monotonic()
        if not self._files or not self._size or not (always or self._size >= LARGE or now - self._since >= OLD):
            return None
        before, self._at, self._size, self._since = self._at, 1 - self._at, 0, now
        for line in self._begun.values():
            self._write(line)
        return before

    def clear(self, number: int) -> None:
        """Empty a file whose records are in the store."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._files[number], 0)

    def close(self, *, empty: bool) -> None:
        """Close the files; `empty`: all is in the store, so that they can go."""
        with self.lock:
            files, self._files = self._files, []
        for file, name in zip(files, FILES, strict=False):
            os.close(file)
            if empty and not self._begun:
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, line: bytes) -> None:
        try:
            file = self._files[self._at]
            size = os.write(file, line)
            if size < len(line):  # the disk is full: half a line would spoil the next one
                os.ftruncate(file, os.fstat(file).st_size - size)
                raise OSError("half a line")
            self._size += size
        except (OSError, IndexError):  # a full disk, or a server that has stopped; no answer waits for it
            self.failed += 1


def json_of(record: Stored, **changes: Any) -> bytes:
    """A record as a JSON object, with some changed values; TypeError, ValueError or RecursionError: one is no JSON."""
    values = {"version": latest(record.migrations), **values_of(record), **changes}
    try:
        return orjson.dumps(values)
    except TypeError:  # half a surrogate pair in a text, or a number of more than 64 bits
        return json.dumps(values).encode()


def line_of(record: Stored, **changes: Any) -> bytes:
    """A record as a line of a file, see `read_spilled`; `changes` as in `json_of`."""
    return b'["' + TABLES[type(record)].encode() + b'",' + json_of(record, **changes) + b"]\n"


def read_spilled(path: Path) -> tuple[list[Stored], list[BadLine]]:
    """The records of a file of lines `[table, record]`, and the lines that are none; OSError: it can't be read.

    A line `[table, record, journal]` counts if that journal names its record.
    """
    records: list[Stored] = []
    bad: list[BadLine] = []
    journals: dict[str, set[str]] = {}
    for line in filter(lambda line: line.strip(b" \0"), path.read_bytes().splitlines()):
        try:
            table, value, *held = parse_line(line)
            record = _READERS[table](value, path.name)
            for journal in held:
                if journal not in journals:
                    journals[journal] = journaled(Path(journal))
            if all(record.id in journals[journal] for journal in held):
                records.append(record)
        except Exception as error:  # whatever is there must not keep a server from starting
            why = error.what if isinstance(error, UserError) else f"no record: {error!r}"
            bad.append((line.decode("utf-8", "backslashreplace"), why))
    return records, bad
