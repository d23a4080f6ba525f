"""The rows of a data set that is being prepared: texts in one file on disk, facts and fates in arrays.

Also what the steps of a preparation share, and the first look at its files.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.machine import trim_memory
from tuneloop.core.text import json_bytes, json_value
from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import REASONS, Array, Columns, Split, key64, meta_key
from tuneloop.data.dedup.minhash import NO_FRAME, PromptFrame, RowTexts, shared_frame, texts_of
from tuneloop.data.formats import FormatGuess, Parsed, check_columns, detect, parse_record
from tuneloop.data.process_record import NAMED, ChunkFacts, RepairLine, RowProcessor
from tuneloop.data.sources.chunks import chunks
from tuneloop.data.sources.parse import SourceFile, SourceRecord, parse_chunk
from tuneloop.data.sources.read import entry_of
from tuneloop.records.rows import Row

RELEASED = 16 << 20  # bytes of a column from which its pieces are given back to the system at once
BLOCK = 1 << 14  # rows whose places are looked up at once
SAMPLE = 2000  # records looked at to find the format
CHUNK = 1 << 18  # bytes of a chunk: small enough that all processes have some of a small source

REASON_WORDS = ("", *sorted(REASONS))  # a row's fate is an index into these; 0: it is in


@contextmanager
def spool_folder(out: Path) -> Iterator[Path]:
    """A folder next to the results for the time of the work; what a killed run left is cleared first."""
    folder = out / ".spool"
    with user_errors_of_the_disk(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class CarriedRows:
    """Rows with their bytes: what a `Reader` gives of them, on any machine."""

    lines: dict[int, bytes]  # by index, a row as its line in a split will be
    frame: PromptFrame  # what nearly all prompts share

    def row(self, index: int) -> Row:
        """A row."""
        return Row.from_json(json_value(self.lines[index]))

    def texts(self, indices: Sequence[int]) -> list[RowTexts]:
        """What duplicates are compared by, of some rows."""
        return [texts_of(self.row(index), self.frame) for index in indices]


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    """Bytes of an open file; Windows has no call that leaves its place, which a process of one thread does not need."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)


@dataclass(frozen=True)
class Reader:
    """Reads rows back, in any process."""

    path: Path  # the file in which each row is followed by its source record
    columns: Columns  # by row `start`, `row_size` and `record_size`, among others
    frame: PromptFrame  # what nearly all prompts share

    @functools.cached_property
    def file(self) -> BinaryIO:
        """The open file."""
        return open(self.path, "rb", buffering=0)

    def lines(self, indices: Any) -> Iterator[bytes]:
        """Rows as their lines in a split will be, without the line ends."""
        handle = self.file.fileno()
        for start, size in zip(*(self.columns[name][indices].tolist() for name in ("start", "row_size")), strict=True):
            yield _read_at(handle, size, start)

    def record_bytes(self, index: int) -> bytes:
        """The source record of a row, without personal data."""
        start, row_size, size = (int(self.columns[name][index]) for name in ("start", "row_size", "record_size"))
        return _read_at(self.file.fileno(), size, start + row_size)

    def row(self, index: int) -> Row:
        """A row."""
        return Row.from_json(json_value(next(self.lines([index]))))

    def texts(self, indices: Sequence[int]) -> list[RowTexts]:
        """What duplicates are compared by, of some rows."""
        return [texts_of(Row.from_json(json_value(line)), self.frame) for line in self.lines(indices)]

    def carried(self, indices: Any) -> CarriedRows:
        """Some rows, to be sent to a machine that does not have the file."""
        some = [int(index) for index in indices]
        return CarriedRows(dict(zip(some, self.lines(some), strict=True)), self.frame)

    def __getstate__(self) -> dict[str, Any]:
        """For a process that was not forked: without the open file and the columns that are not needed."""
        needed = {name: self.columns[name] for name in ("start", "row_size", "record_size")}
        return {"path": self.path, "columns": needed, "frame": self.frame}


class Table:
    """All rows in the order of the sources."""

    def __init__(self, folder: Path, frame: PromptFrame = NO_FRAME) -> None:
        self.columns: dict[str, Array] = {}  # facts by name, see `ChunkFacts`, and `chunk`; after `join`
        self.source_of: list[str] = []  # by chunk
        self.records_of: list[int] = []  # by chunk, rejects included
        self.rejected: Counter[str] = Counter()
        self.rejected_tokens = 0
        self.is_chat = False
        self._rows_of: list[int] = []  # by chunk
        self._parts: list[dict[str, Array]] = []  # columns by chunk
        self._codes: dict[str, dict[str, int]] = {column: {} for column in NAMED}
        self._folder = folder
        self._rows, self._sides = (open(folder / name, "wb") for name in ("rows", "sides"))  # noqa: SIM115
        self.reader = Reader(folder / "rows", self.columns, frame)

    def add(self, facts: ChunkFacts) -> None:
        """Take the rows of the next chunk."""
        # What comes from a Ray cluster is a read-only view of its shared memory, which stays full while a view lives.
        columns = {name: column if column.flags.writeable else column.copy() for name, column in facts.columns.items()}
        for column, codes in self._codes.items():
            names = facts.names[column]
            numbers = [-1 if name is None else codes.setdefault(name, len(codes)) for name in names]
            columns[column] = np.array(numbers, dtype="i4")
        n = len(columns["id"])
        columns["chunk"] = np.full(n, len(self.source_of), dtype="i4")
        columns["start"] += self._rows.tell()
        with user_errors_of_the_disk(self._folder.parent):
            self._rows.write(facts.data)
            pickle.dump((facts.rejects, facts.repairs), self._sides)
        self.source_of.append(facts.source)
        self.records_of.append(facts.records)
        self.rejected += facts.rejected
        self.rejected_tokens += facts.rejected_tokens
        self.is_chat = self.is_chat or facts.is_chat
        self._rows_of.append(n)
        self._parts.append(columns)

    def join(self) -> None:
        """Join the chunks' arrays; they are freed one column at a time. More chunks may be added and joined later."""
        with user_errors_of_the_disk(self._folder.parent):
            self._rows.flush()
            self._sides.flush()
        for name in list(self._parts[0]) if self._parts else []:
            before = [self.columns.pop(name)] if name in self.columns else []
            self.columns[name] = np.concatenate([*before, *(part.pop(name) for part in self._parts)])
            if self.columns[name].nbytes > RELEASED:  # small arrays stay in the heap, and as much again would be held
                before.clear()
                trim_memory()
        self._parts.clear()
        n = len(self)
        if n * len(self.columns) * 8 > RELEASED:  # most columns have eight bytes a row
            trim_memory()
        self.fate = np.zeros(n, dtype=np.int16)  # an index into REASON_WORDS
        self.because = np.full(n, -1, dtype=np.int64)  # the row that it is a copy of, or -1
        self.similarity = np.ones(n, dtype=np.float32)  # how similar both are
        self.split = np.full(n, -1, dtype=np.int8)  # an index into SPLITS, or -1
        self.cluster = np.zeros(n, dtype=np.uint64)  # `meta.duplicate_cluster`; 0: none
        self.details: dict[int, str] = {}  # the particulars of a reject that is no copy
        self.repeats: set[int] = set()  # rows with the content, and so the id, of another row: each gets another id
        self.names = {column: list(codes) for column, codes in self._codes.items()}  # see NAMED

    def __len__(self) -> int:
        return len(self.columns["id"]) if self.columns else 0

    @property
    def alive(self) -> Array:
        """Indices of the rows that are in."""
        return np.flatnonzero(self.fate == 0)

    def drop(self, indices: Any, reason: str, detail: str = "", *, because: Any = None, similarity: float = 1) -> None:
        """Reject rows: with a detail each, or as copies of others."""
        self.fate[indices] = REASON_WORDS.index(reason)
        if because is not None:
            self.because[indices] = because
        self.similarity[indices] = similarity
        if detail:
            self.details.update(dict.fromkeys(np.atleast_1d(indices).tolist(), detail))

    def reason(self, index: int) -> str:
        """Why a row is out; "" when it is in."""
        return REASON_WORDS[int(self.fate[index])]

    def detail(self, index: int) -> str:
        """The particulars of a row's reject."""
        original, similarity = int(self.because[index]), float(self.similarity[index])
        if original < 0:
            return self.details.get(index, "")
        source, line = self.place(original)
        return f"of {source}:{line}" + (f", {similarity:.0%} alike" if similarity < 1 else "")

    def place(self, index: int) -> tuple[str, int]:
        """Source and line of a row."""
        return self.source_of[int(self.columns["chunk"][index])], int(self.columns["line"][index])

    def lines(self, rows: Array) -> Iterator[bytes]:
        """Rows as their lines in a split will be, without the line ends."""
        for begin in range(0, len(rows), BLOCK):
            some = rows[begin : begin + BLOCK]
            marked = (self.cluster[some] != 0).tolist()
            for index, line, is_marked in zip(some.tolist(), self.reader.lines(some), marked, strict=True):
                yield json_bytes(self.row(index).to_json()) if is_marked or index in self.repeats else line

    def row(self, index: int) -> Row:
        """A row."""
        row = self.reader.row(index)
        if index in self.repeats:
            row = replace(row, id=f"{int(self.columns['id'][index]):016x}")
        if self.cluster[index]:
            row.meta.setdefault("duplicate_cluster", f"{int(self.cluster[index]):016x}")
        return row

    def give_repeats_own_ids(self) -> None:
        """Give each row that is in and has another one's id a new one: the hash of that id and of a number.

        The number does not depend on the order of the sources, save among rows that are the same in all their columns.
        """
        rows = self.alive
        rows = rows[np.lexsort((rows, self.columns["meta"][rows], self.columns["id"][rows]))]
        ids = self.columns["id"][rows]
        numbers = np.arange(len(ids)) - np.searchsorted(ids, ids)  # among the rows of an id, from 0
        for place in np.flatnonzero(numbers).tolist():
            self.repeats.add(row := int(rows[place]))
            self.columns["id"][row] = key64(f"{int(ids[place]):016x}:{int(numbers[place]) + 1}")

    def mark_clusters(self, rows: Array, clusters: Array) -> None:
        """Set `meta.duplicate_cluster` of rows; 0: none."""
        self.cluster[rows] = clusters
        for index in rows[clusters != 0].tolist():
            self.columns["meta"][index] = meta_key(self.row(index))

    def sides(self) -> Iterator[tuple[str, range, list[tuple[int, bytes]], list[RepairLine]]]:
        """By chunk its source, the indices of its rows, its rejects (line, JSON) and its repairs."""
        first = 0
        with open(self._folder / "sides", "rb") as file:
            for source, n in zip(self.source_of, self._rows_of, strict=True):
                rejects, repairs = pickle.load(file)  # noqa: S301 - a file of this process, in its temporary folder
                yield source, range(first, first + n), rejects, repairs
                first += n

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._sides, self.reader.file):
            with suppress(OSError):  # of a full disk, which was reported
                file.close()


@dataclass(frozen=True)
class PrepareInput:
    """A file to read; those of a test set belong to a split, and may have a format of their own."""

    file: SourceFile
    split: Split | None
    guess: FormatGuess | None


@dataclass
class PrepareContext:
    """A preparation at work."""

    config: PrepareConfig
    seed: int
    out: Path
    files: list[PrepareInput]
    guess: FormatGuess
    processor: RowProcessor
    table: Table
    workers: int  # processes to work in
    embed: Embed | None
    encodings: dict[str, str] = field(default_factory=dict)  # of each source


def detect_format(files: Sequence[SourceFile], config: PrepareConfig) -> tuple[FormatGuess, PromptFrame]:
    """The format, and what all prompts share, from the first records; a configured column must be in one."""
    items = (item for file in files for chunk in chunks(file, CHUNK) for item in parse_chunk(chunk))
    sample = list(itertools.islice((item.value for item in items if isinstance(item, SourceRecord)), SAMPLE))
    if not sample:
        return FormatGuess("none", {}, "no records"), NO_FRAME
    check_columns(sample, config)
    guess = detect(sample, config, entry_of(files[0]) if len(files) == 1 else None)
    parsed = (parse_record(value, guess, config) for value in sample[:500])
    turns = (m for p in parsed if isinstance(p, Parsed) for m in p.messages)
    frame = shared_frame([m["content"] for m in turns if m["role"] == "user"])
    return guess, replace(frame, ratings=True) if config.duplicates.keep == "best" else frame
