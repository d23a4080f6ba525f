"""Where refined rows wait for the decisions that depend on all of them: texts on disk, facts in arrays."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.machine import release_memory
from tuneloop.data.dataset import meta_key
from tuneloop.data.dedup.minhash import NO_FRAME, Frame, RowTexts, texts_of
from tuneloop.data.process_record import NAMED, Facts, RepairLine
from tuneloop.data.reasons import REASONS
from tuneloop.data.split import key64
from tuneloop.records.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

RELEASED = 16 << 20  # bytes of a column from which its pieces are given back to the system at once
BLOCK = 1 << 14  # rows whose places are looked up at once
OPEN_FILES = 64  # at least: half of those that a process may open

REASON_WORDS = ("", *sorted(REASONS))  # a row's fate is an index into these; 0: it is in
_REASON_NUMBERS = {word: number for number, word in enumerate(REASON_WORDS)}


@contextmanager
def spool_folder(out: Path) -> Iterator[Path]:
    """A folder beside the results, gone when the work is done or has failed; what a killed run left is cleared first."""
    folder = out / ".spool"
    with user_errors_of_the_disk(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _open_files() -> int:
    """Chunks that are kept open: rows are read in random order, and opening a file takes longer than reading a row."""
    try:
        import resource
    except ImportError:  # Windows
        return OPEN_FILES
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, OPEN_FILES)


@dataclass(frozen=True)
class Reader:
    """Reads rows back from the spool, in any process.

    Args:
        folder: the spool's.
        columns: by row `chunk`, `start`, `row_size` and `record_size`, among others.
        frame: what nearly all prompts share.
    """

    folder: Path
    columns: Mapping[str, NDArray[Any]]
    frame: Frame
    _open: dict[int, int] = field(default_factory=dict)

    def row_bytes(self, index: int) -> bytes:
        """A row as its line will stand in a split, without the line end."""
        return self._read(index, 0, int(self.columns["row_size"][index]))

    def lines(self, indices: NDArray[Any]) -> Iterator[bytes]:
        """`row_bytes` of many rows, at half the cost of each."""
        places = (self.columns[name][indices].tolist() for name in ("chunk", "start", "row_size"))
        for chunk, start, size in zip(*places, strict=True):
            yield os.pread(self._handle(chunk), size, start)

    def record_bytes(self, index: int) -> bytes:
        """The source record of a row, without personal data."""
        size = int(self.columns["row_size"][index])
        return self._read(index, size, int(self.columns["record_size"][index]))

    def row(self, index: int) -> Row:
        """A row."""
        return Row.from_json(orjson.loads(self.row_bytes(index)))

    def texts(self, indices: Sequence[int]) -> list[RowTexts]:
        """What duplicates are compared by, of some rows."""
        lines = self.lines(np.asarray(indices, dtype=np.int64))
        return [texts_of(Row.from_json(orjson.loads(line)), self.frame) for line in lines]

    def close(self) -> None:
        """Close its files."""
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()

    def _read(self, index: int, skip: int, size: int) -> bytes:
        handle = self._handle(int(self.columns["chunk"][index]))
        return os.pread(handle, size, int(self.columns["start"][index]) + skip)

    def _handle(self, chunk: int) -> int:
        handle = self._open.get(chunk)
        if handle is None:
            if len(self._open) >= _open_files():
                os.close(self._open.pop(next(iter(self._open))))
            handle = self._open[chunk] = os.open(self.folder / f"{chunk}.rows", os.O_RDONLY)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files, for another process that was not forked, and without what it need not know."""
        needed = {name: self.columns[name] for name in ("chunk", "start", "row_size", "record_size")}
        return {"folder": self.folder, "columns": needed, "frame": self.frame, "_open": {}}


class Table:
    """All rows in the order of the sources: their facts and fates in arrays, their texts in the spool.

    Args:
        folder: the spool's.
        frame: what nearly all prompts share.

    Attributes:
        reader: reads rows back; works in other processes, too.
        fate: by row, an index into REASON_WORDS.
        because: by row, the row that it is a copy of, or -1; `likeness`: how alike they are.
        details: by row, the particulars of a reject that is no copy.
        split: by row, an index into SPLITS, or -1.
        cluster: by row, what it and the rows that are much like it have in common as `meta.duplicate_cluster`; 0: none.
        repeats: the rows that are in beside one of the same content and so of the same id: each has another one.
    """

    def __init__(self, folder: Path, frame: Frame = NO_FRAME) -> None:
        self.folder = folder
        self.columns: dict[str, NDArray[Any]] = {}
        self.names: dict[str, list[str]] = {}
        self.source_of: list[str] = []  # by chunk
        self.records_of: list[int] = []
        self.rejected: Counter[str] = Counter()
        self.rejected_tokens = 0
        self.is_chat = False
        self._parts: list[Facts] = []
        self._codes: dict[str, dict[str, int]] = {column: {} for column in NAMED}
        self.reader = Reader(folder, self.columns, frame)

    def add(self, facts: Facts, source: str) -> None:
        """Take the facts of the next chunk."""
        for column, codes in self._codes.items():
            numbers = [codes.setdefault(name, len(codes)) for name in facts.names[column]]
            kind = facts.columns[column].dtype
            facts.columns[column] = np.array([*numbers, -1], dtype=kind)[facts.columns[column]]  # -1 stays -1
        self.source_of.append(source)
        self.records_of.append(facts.records)
        self.rejected += facts.rejected
        self.rejected_tokens += facts.rejected_tokens
        self.is_chat = self.is_chat or facts.is_chat
        self._parts.append(facts)

    def join(self) -> None:
        """Join the chunks' arrays; they are freed one column at a time. More chunks may be added and joined later."""
        for name in list(self._parts[0].columns) if self._parts else []:
            before = [self.columns.pop(name)] if name in self.columns else []
            self.columns[name] = np.concatenate([*before, *(part.columns.pop(name) for part in self._parts)])
            if self.columns[name].nbytes > RELEASED:  # small arrays stay in the heap, and as much again would be held
                before.clear()
                release_memory()
        self._parts.clear()
        n = len(self)
        self.fate = np.zeros(n, dtype=np.int16)
        self.because = np.full(n, -1, dtype=np.int64)
        self.likeness = np.ones(n, dtype=np.float32)
        self.split = np.full(n, -1, dtype=np.int8)
        self.cluster = np.zeros(n, dtype=np.uint64)
        self.details: dict[int, str] = {}
        self.repeats: set[int] = set()
        self.names = {column: list(codes) for column, codes in self._codes.items()}

    def __len__(self) -> int:
        return len(self.columns["id"]) if self.columns else 0

    @property
    def alive(self) -> NDArray[np.int64]:
        """Indices of the rows that are in."""
        found: NDArray[np.int64] = np.flatnonzero(self.fate == 0)
        return found

    def drop(self, indices: Any, reason: str, detail: str = "", *, because: Any = None, likeness: Any = None) -> None:
        """Reject rows: with a detail each, or as copies of others."""
        self.fate[indices] = _REASON_NUMBERS[reason]
        if because is not None:
            self.because[indices] = because
        if likeness is not None:
            self.likeness[indices] = likeness
        if detail:
            for index in np.atleast_1d(indices).tolist():
                self.details[index] = detail

    def reason(self, index: int) -> str:
        """Why a row is out; "" when it is in."""
        return REASON_WORDS[int(self.fate[index])]

    def detail(self, index: int) -> str:
        """The particulars of a row's reject."""
        kept = int(self.because[index])
        if kept < 0:
            return self.details.get(index, "")
        source, line = self.place(kept)
        alike = float(self.likeness[index])
        return f"of {source}:{line}" + (f", {alike:.0%} alike" if alike < 1 else "")

    def place(self, index: int) -> tuple[str, int]:
        """Source and line of a row."""
        return self.source_of[int(self.columns["chunk"][index])], int(self.columns["line"][index])

    def lines(self, rows: NDArray[Any]) -> Iterator[bytes]:
        """Rows as their lines will stand in a split, without the line ends."""
        for begin in range(0, len(rows), BLOCK):
            some = rows[begin : begin + BLOCK]
            marked = (self.cluster[some] != 0).tolist()
            for index, line, is_marked in zip(some.tolist(), self.reader.lines(some), marked, strict=True):
                yield orjson.dumps(self.row(index).to_json()) if is_marked or index in self.repeats else line

    def row(self, index: int) -> Row:
        """A row."""
        row = self.reader.row(index)
        if index in self.repeats:
            row = replace(row, id=f"{int(self.columns['id'][index]):016x}")
        if self.cluster[index]:
            row.meta.setdefault("duplicate_cluster", f"{int(self.cluster[index]):016x}")
        return row

    def give_repeats_own_ids(self) -> None:
        """Give each row that is in and has another one's id an id of its own: the hash of that id and of a number.

        The number does not depend on the order of the sources, save among rows that are the same in all their columns.
        """
        rows = self.alive
        ids = np.sort(self.columns["id"][rows])
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if not len(repeated):
            return
        rows = rows[np.isin(self.columns["id"][rows], repeated)]
        rows = rows[np.lexsort((rows, self.columns["meta"][rows], self.columns["id"][rows]))]
        ids = self.columns["id"][rows]
        numbers = np.arange(len(ids)) - np.searchsorted(ids, ids)  # among the rows of an id, from 0
        for row, row_id, number in zip(rows.tolist(), ids.tolist(), numbers.tolist(), strict=True):
            if number:
                self.repeats.add(row)
                self.columns["id"][row] = key64(f"{row_id:016x}:{number + 1}")

    def mark_clusters(self, rows: NDArray[Any], clusters: NDArray[Any]) -> None:
        """Set `meta.duplicate_cluster` of rows; 0: none."""
        self.cluster[rows] = clusters
        for index in rows[clusters != 0].tolist():
            self.columns["meta"][index] = meta_key(self.row(index))

    def side(self, chunk: int) -> tuple[list[tuple[int, bytes]], list[RepairLine]]:
        """Rejects (line, JSON) and repairs of a chunk."""
        path = self.folder / f"{chunk}.side"
        if not path.is_file():
            return [], []
        sides: tuple[list[tuple[int, bytes]], list[RepairLine]] = pickle.loads(path.read_bytes())
        return sides

    def chunk_rows(self, chunk: int) -> range:
        """Indices of a chunk's rows."""
        first, end = np.searchsorted(self.columns["chunk"], [chunk, chunk + 1]) if len(self) else (0, 0)
        return range(int(first), int(end))

    def dropped(self, chunk: int) -> list[int]:
        """Indices of a chunk's rows that are out."""
        rows = self.chunk_rows(chunk)
        dropped: list[int] = (rows.start + np.flatnonzero(self.fate[rows.start : rows.stop])).tolist()
        return dropped

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
