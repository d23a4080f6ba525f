"""The rows of a data set that is being prepared, from the first look at the sources to the files of its folder.

Texts are in one file on disk, facts and fates in arrays (`Table`). At the end each split, reject, repair and check goes
to its file, and the manifest last (`write_dataset`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import itertools
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing, user_errors_of_the_disk
from tuneloop.core.machine import trim_memory
from tuneloop.core.text import json_bytes, json_value
from tuneloop.core.ui import progress
from tuneloop.core.version import __version__
from tuneloop.data import dataset
from tuneloop.data.checks import checks
from tuneloop.data.checks.label_errors import Embed
from tuneloop.data.config import NO_CONTENT, PrepareConfig
from tuneloop.data.dataset import REASONS, SPLITS, TEST, Array, Columns, Split, key64, meta_key, shuffled
from tuneloop.data.dedup.minhash import NO_FRAME, PromptFrame, RowTexts, shared_frame, texts_of
from tuneloop.data.formats.guess import FormatGuess, Parsed, check_columns, detect, parse_record
from tuneloop.data.mix import GENERAL_FILE, GeneralRows, Mixed, MixSize, dataset_rows, interleaved, mix_rows
from tuneloop.data.process_record import (
    NAMED,
    NO_ROW,
    ChunkFacts,
    ProcessedRow,
    RepairLine,
    RowProcessor,
    process_record,
    reject_line,
)
from tuneloop.data.sources.chunks import chunks_of
from tuneloop.data.sources.parse import SourceFile, SourceRecord, parse_chunk
from tuneloop.data.sources.read import entry_of, find_files
from tuneloop.data.workers import run_in_background
from tuneloop.records.dataset import MANIFEST, DatasetManifest
from tuneloop.records.record import write_record
from tuneloop.records.rows import Dataset, DroppedCopy, FlaggedRow, Reject, Row

RELEASED = 16 << 20  # bytes of a column from which its pieces are given back to the system at once
BLOCK = 1 << 14  # rows whose places are looked up at once
SAMPLE = 2000  # records looked at to find the format
CHUNK = 1 << 18  # bytes of a chunk: small enough that all processes have some of a small source

REASON_WORDS = ("", *sorted(REASONS))  # a row's fate is an index into these; 0: it is in


@contextlib.contextmanager
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
        for position in np.flatnonzero(numbers).tolist():
            self.repeats.add(row := int(rows[position]))
            self.columns["id"][row] = key64(f"{int(ids[position]):016x}:{int(numbers[position]) + 1}")

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
            with contextlib.suppress(OSError):  # of a full disk, which was reported
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
    items = (item for file in files for chunk in chunks_of(file, CHUNK) for item in parse_chunk(chunk))
    sample = list(itertools.islice((item.value for item in items if isinstance(item, SourceRecord)), SAMPLE))
    if not sample:
        return FormatGuess("none", {}, "no records"), NO_FRAME
    check_columns(sample, config)
    guess = detect(sample, config, entry_of(files[0]) if len(files) == 1 else None)
    parsed = (parse_record(value, guess, config) for value in sample[:500])
    turns = (m for p in parsed if isinstance(p, Parsed) for m in p.messages)
    frame = shared_frame([m["content"] for m in turns if m["role"] == "user"])
    return guess, replace(frame, ratings=True) if config.duplicates.keep == "best" else frame


LINES_AT_ONCE = 256  # that are hashed and written at once
LONGEST_SHOWN = 4_000  # characters of each row in `duplicates.jsonl`
SHOWN_DUPLICATES = 200  # of `duplicates.jsonl`
_Orders = Mapping[Split, Array]  # rows by split, in the order of its file
_Started = Mapping[str, Callable[[], Any]]  # by the name of a check, a function that waits for its result
_DOUBTED = "label_errors"
# By policy the column that decides, and the words for it; among equals the first one stays.
_WORTH = {
    "longest": ("characters", "it is longer"),
    "newest": ("time", "it is newer"),
    "best": ("rating", "it is rated higher"),
}


def write_dataset(job: PrepareContext, identity: Mapping[str, Any], template_adds: str) -> Dataset:
    """Write the files of a data set, the manifest last; if a source changed meanwhile, a UserError in its place.

    `identity`: `name`, `key`, `seed` and `model` of the manifest; `template_adds`: the chat template's system turn.
    """
    table, config, out = job.table, job.config, job.out
    clear(out)
    orders = {split: _order(table, number, job.seed) for number, split in enumerate(SPLITS)}
    mixed = _mix(job, orders)
    overview, results = _start_checks(job)
    splits = _write_splits(job, overview.task, orders, mixed)
    account = _write_account(job)
    _write_duplicates(job)
    labels, languages = (_counts_of(table, name, table.alive) for name in ("label", "language"))
    digest = _dataset_hash(job, orders, mixed)
    descriptions, general = dataset.REASONS | dataset.REPAIRS, dict[str, Any]()
    if mixed:
        held_out = (orjson.dumps(row.to_json()) for row in mixed.held_out)
        general = {"mix": mixed.record, "general": _write(out / GENERAL_FILE, held_out)}
    manifest = {
        "id": f"{identity['name']}-{digest[:12]}",
        "hash": digest,
        **identity,
        "tool_version": __version__,
        "task": overview.task,
        "format": job.guess.to_json(),
        **({"labels": config.labels or list(labels)} if overview.task == "classification" else {}),
        "sources": _sources(job),
        "config": config.model_dump(mode="json", exclude=NO_CONTENT),
        "counts": _counts(job, account, orders),
        "rejected": dict(sorted(account.rejected.items(), key=lambda item: (-item[1], item[0]))),
        "repaired": dict(sorted(account.repaired.items())),
        "personal": dict(sorted(account.personal.items())),
        "too_long": {"policy": config.too_long, **account.too_long},
        "languages": dict(sorted(languages.items(), key=lambda pair: (-pair[1], pair[0]))),
        "splits": splits,
        **general,
        **({"template_adds": template_adds} if template_adds else {}),
        "words": {word: text for word, text in descriptions.items() if word in account.rejected | account.repaired},
    }
    overview = replace(
        overview,
        read=sum(table.records_of),
        rejected=account.rejected,
        repaired=account.repaired,
        max_length=config.max_length,
        too_long=checks.LongRows(policy=config.too_long, **account.too_long),
        labels=manifest.get("labels", ()),
    )
    manifest["checks"] = _checks(job, overview, results) + ([mixed.check] if mixed else [])
    _refuse_changed_source(job, identity)
    record = DatasetManifest.model_validate(manifest)
    write_record(out / MANIFEST, record)
    train, val, test = (dataset.RowFile(out / f"{s}.jsonl", splits[s]["rows"]) for s in SPLITS)
    return Dataset(str(out), record, train, val, test)


def _dataset_hash(job: PrepareContext, orders: _Orders, mixed: Mixed | None) -> str:
    pairs = np.stack([job.table.columns["id"], job.table.columns["meta"]], axis=1).astype("<u8")
    keys: dict[str, bytes] = {split: pairs[order].tobytes() for split, order in orders.items()}
    return dataset.hash_of_keys(keys, job.config, job.seed, mixed.record if mixed else None)


def _refuse_changed_source(job: PrepareContext, identity: Mapping[str, Any]) -> None:
    name, model = identity["name"], identity["model"]
    if identity["key"] != dataset.prepare_key(job.config, name=name, seed=job.seed, model_fingerprint=model):
        where = ", ".join(source.file.name for source in job.files)
        step = "wait until it is whole, or copy it, and prepare again"
        raise UserError("A source changed while the data were prepared", where=where, next_step=step)


def _write_splits(job: PrepareContext, task: str, orders: _Orders, mixed: Mixed | None) -> dict[str, Any]:
    table = job.table
    about: dict[str, Any] = {}
    for split, order in orders.items():
        general = {"train": mixed.train, "val": [], "test": mixed.test}[split] if mixed else []
        rows = _interleaved(table.lines(order), len(order), general) if general else table.lines(order)
        about[split] = {
            **_write(job.out / f"{split}.jsonl", rows),
            "tokens": tokens_of(table, order),
            "labels": _counts_of(table, "label", order) if task == "classification" else {},
        }
    return about


def _write(path: Path, rows: Iterable[bytes]) -> dict[str, Any]:
    with lines_to(path) as lines:
        lines.write_all(rows)
    return lines.facts()


class _RejectAccount(NamedTuple):
    rejected: Counter[str]  # records and rows by reason
    repaired: Counter[str]  # changes by kind
    personal: Counter[str]  # values by kind of personal data
    too_long: Counter[str]  # numbers of `LongRows`


def _write_account(job: PrepareContext) -> _RejectAccount:
    table = job.table
    rejected = table.rejected + Counter(table.reason(i) for i in np.flatnonzero(table.fate).tolist())
    account = _RejectAccount(rejected, Counter(), Counter(), Counter())
    if rejected["too_long"]:
        account.too_long.update(rejected=rejected["too_long"], rejected_tokens=table.rejected_tokens)
    _write(job.out / "rejects.jsonl", reject_lines(table, job.config.duplicates.keep))
    with lines_to(job.out / "repairs.jsonl") as lines:
        for _, rows, _, repairs in table.sides():
            for repair in repairs:
                row = rows.start + repair.place
                account.repaired[repair.kind] += 1
                if repair.kind == "pii":
                    account.personal.update(repair.amounts)
                elif repair.place != NO_ROW and not table.fate[row]:
                    account.too_long.update(repair.amounts)
                if repair.place != NO_ROW and row in table.repeats:
                    repair = repair._replace(line=json_bytes(json_value(repair.line) | {"id": table.row(row).id}))
                lines.write(repair.line)
    return account


def _sources(job: PrepareContext) -> list[dict[str, Any]]:
    records: Counter[str] = Counter()
    for source, n in zip(job.table.source_of, job.table.records_of, strict=True):
        records[source] += n
    return [
        {
            "path": source.file.name,
            "sha256": dataset.sha256_of_source(source.file.path),
            "rows": records[source.file.name],
            "encoding": job.encodings.get(source.file.name, ""),
            **({"split": source.split} if source.split else {}),
        }
        for source in job.files
    ]


def _counts(job: PrepareContext, account: _RejectAccount, orders: _Orders) -> dict[str, int]:
    rows_in, read, rejected = len(job.table.alive), sum(job.table.records_of), account.rejected.total()
    # with too_long=split one record may make several rows: read + added = kept + rejected
    added = {"added": rows_in + rejected - read} if job.config.too_long == "split" else {}
    return {"read": read, "kept": rows_in, "rejected": rejected, **added, **{s: len(o) for s, o in orders.items()}}


@dataclass
class JsonLinesWriter:
    """A JSON Lines file that is being written: the number of its lines so far, and their hash."""

    name: str
    file: BinaryIO
    hash: Any = field(default_factory=hashlib.sha256)
    lines: int = 0

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        return {"path": self.name, "rows": self.lines, "sha256": self.hash.hexdigest()}

    def write(self, line: bytes) -> None:
        """Add a line, given without its end."""
        self.write_all([line])

    def write_all(self, lines: Iterable[bytes]) -> None:
        """Add lines, given without their ends."""
        left = iter(lines)
        while some := list(itertools.islice(left, LINES_AT_ONCE)):
            data = b"\n".join([*some, b""])
            self.hash.update(data)
            self.lines += len(some)
            self.file.write(data)


@contextlib.contextmanager
def lines_to(path: Path) -> Iterator[JsonLinesWriter]:
    """A JSON Lines file that is there when all its lines are."""
    with replacing(path) as file:
        yield JsonLinesWriter(path.name, file)


def clear(out: Path) -> None:
    """Take an earlier manifest away, so that the folder is not complete while its files change."""
    with user_errors_of_the_disk(out / MANIFEST), contextlib.suppress(FileNotFoundError):
        (out / MANIFEST).unlink()


def reject_lines(table: Table, policy: str) -> Iterator[bytes]:
    """The lines of `rejects.jsonl` in the order of the sources; `policy` is `duplicates.keep`."""
    for source, rows, refused, _ in table.sides():
        dropped = []
        for i in (rows.start + np.flatnonzero(table.fate[rows.start : rows.stop])).tolist():
            line, record = int(table.columns["line"][i]), json_value(table.reader.record_bytes(i))
            reason, detail, original = table.reason(i), table.detail(i), int(table.because[i])
            if original >= 0 and policy in _WORTH and reason not in ("split_leak", "conflicting_label"):
                detail += f"; {_why_kept(table, policy, i, original)}"
            dropped.append((line, reject_line(Reject(source, line, reason, detail, record))))
        yield from (line for _, line in heapq.merge(refused, dropped, key=lambda pair: pair[0]))


def _start_checks(job: PrepareContext) -> tuple[checks.Overview, _Started]:
    """The rows as checks see them, and the slow checks, at work in other processes while the files are written."""
    table, task = job.table, job.config.task
    if task == "auto":
        labelled = job.guess.name == "text_label" or job.guess.labelled or job.config.labels is not None
        task = "classification" if labelled else "chat" if table.is_chat else "generation"
    split_of = np.where(table.fate == 0, table.split, -1)
    overview = checks.Overview(task, table.columns, table.names, split_of, table.row, seed=job.seed)
    # A model that has been at work does not survive a fork, and neither does a connection to Ray.
    workers = job.workers if job.embed is None and job.config.engine != "ray" else 1
    slow = [*([_DOUBTED] if task == "classification" else []), *checks.slow_checks(overview)]
    return overview, run_in_background(_slow_check, slow, (job.embed, overview), workers=workers)


def _slow_check(
    name: str, setting: tuple[Embed | None, checks.Overview]
) -> checks.Finding | tuple[checks.Suspects, list[bytes]] | None:
    """A check; of doubtful labels what finds them, and the lines of `label_errors.jsonl`, the most suspicious first."""
    embed, overview = setting
    if name != _DOUBTED:
        return checks.CHECKS[name].run(overview)
    suspects = checks.find_suspects(overview, embed=embed)
    return suspects, list(map(orjson.dumps, checks.suspect_records(overview, suspects)))


def _checks(job: PrepareContext, overview: checks.Overview, started: _Started) -> list[checks.Check]:
    """All checks; their rows are in `flagged.jsonl`, those with doubtful labels in `label_errors.jsonl`."""
    progress("checking", 0, 1)
    path = job.out / "label_errors.jsonl"
    if _DOUBTED not in started:
        path.unlink(missing_ok=True)

    def flagged(records: Iterator[FlaggedRow]) -> None:
        _write(job.out / "flagged.jsonl", map(orjson.dumps, records))

    def suspects() -> checks.Suspects:
        suspects: checks.Suspects
        suspects, records = started[_DOUBTED]()
        _write(path, records)
        return suspects

    slow = {name: wait for name, wait in started.items() if name != _DOUBTED}
    results = checks.run_checks(overview, suspects=suspects, slow=slow, flagged=flagged)
    progress("checking", 1, 1)
    return results


def _order(table: Table, split: int, seed: int) -> Array:
    """Rows of a split by a hash of their ids, so that neither the order of the sources nor their number matters."""
    rows = np.flatnonzero((table.fate == 0) & (table.split == split))
    ids = table.columns["id"][rows]
    return rows[np.lexsort((ids, shuffled(ids, seed)))]


def _interleaved(lines: Iterator[bytes], n: int, general: Sequence[Row]) -> Iterator[bytes]:
    places = set(interleaved(n, len(general)))
    others = iter(general)
    for position in range(n + len(general)):
        yield json_bytes(next(others).to_json()) if position in places else next(lines)


def _counts_of(table: Table, column: str, rows: Array) -> dict[str, int]:
    codes, counts = np.unique(table.columns[column][rows], return_counts=True)
    names = table.names[column]
    return dict(sorted((names[c], n) for c, n in zip(codes.tolist(), counts.tolist(), strict=True) if c >= 0))


def _mix(job: PrepareContext, orders: Mapping[Split, Array]) -> Mixed | None:
    settings = job.config.mix
    if not settings.sources or settings.share == 0:
        return None
    general = []
    for source in settings.sources:
        if (rows := dataset_rows(source)) is None:
            rows = list(_general_rows(job, source))
        general.append(GeneralRows(source, rows, [job.processor.measure(row).tokens for row in rows]))
    sizes = {split: MixSize(len(order), int(tokens_of(job.table, order)["total"])) for split, order in orders.items()}
    splits = {split: map(job.table.row, order.tolist()) for split, order in orders.items()}
    return mix_rows(splits, sizes, general, settings, job.seed)


def _general_rows(job: PrepareContext, source: str) -> Iterator[Row]:
    """The rows of a general source that is no data set: processed like the task's; rejected records are left out."""
    plain = PrepareConfig.model_validate(
        {**job.config.model_dump(include={"repair", "personal", "max_length", "language"}), "sources": [source]}
    )
    processor = replace(job.processor, config=plain)
    for file in find_files([source], job.config.max_expansion):
        guess = replace(detect_format([file], plain)[0], labelled=False)
        for chunk in chunks_of(file):
            for item in parse_chunk(chunk):
                for row in [item] if isinstance(item, Reject) else process_record(item, guess, processor):
                    if isinstance(row, ProcessedRow):
                        yield row.row


def _write_duplicates(job: PrepareContext) -> None:
    """`duplicates.jsonl`: some of the dropped copies with the rows that stayed, near ones first."""
    table = job.table
    copies = np.flatnonzero(table.because >= 0)
    # the other one may have gone as well, as conflicts=drop has it
    copies = copies[table.fate[table.because[copies]] == 0]
    order = np.lexsort((shuffled(table.columns["id"][copies], job.seed), table.similarity[copies] >= 1.0))

    def about(index: int, prefix: str = "") -> dict[str, Any]:
        (source, line), row = table.place(index), table.row(index)
        facts = {"source": source, "line": line, "id": row.id, "text": _row_text(row)}
        return {f"{prefix}{name}": value for name, value in facts.items()}

    def line_of(index: int) -> bytes:
        original, kind = int(table.because[index]), table.reason(index).removesuffix("_duplicate")
        similarity = round(float(table.similarity[index]), 4)
        reason = _why_kept(table, job.config.duplicates.keep, index, original)
        record = {**about(index), **about(original, "kept_"), "similarity": similarity, "kind": kind, "why": reason}
        return orjson.dumps(DroppedCopy(**record))

    _write(job.out / "duplicates.jsonl", map(line_of, copies[order][:SHOWN_DUPLICATES].tolist()))


def _why_kept(table: Table, policy: str, copy: int, original: int) -> str:
    if table.reason(copy) == "split_leak":
        return "it is in the test set" if table.split[original] == TEST else "it is in the validation set"
    column, reason = _WORTH.get(policy, ("", ""))
    if column:
        values = table.columns[column]
        if values[original] > values[copy] or (np.isnan(values[copy]) and not np.isnan(values[original])):
            return reason
    return "it came first"


def _row_text(row: Row) -> str:
    """A row as one text, for people: a call stands as `name(arguments)`."""
    turns = []
    for message in row.messages:
        if message["role"] != "system":
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            parts = [message["content"], *(f"{call['name']}({call['arguments']})" for call in calls)]
            turns.append(f"{message['role']}: " + "\n".join(filter(None, parts)))
    return "\n".join(turns)[:LONGEST_SHOWN]


def tokens_of(table: Table, order: Array) -> dict[str, Any]:
    """Statistics of the rows' tokens; of rows that were not measured they are estimated from the characters."""
    columns = {name: table.columns[name][order] for name in ("tokens", "supervised", "characters", "answer_characters")}
    tokens, supervised = columns["tokens"], columns["supervised"]
    measured = tokens >= 0
    if measured.all() or not measured.any():
        return dataset.token_statistics(tokens[measured].tolist(), int(supervised[measured].sum()))
    line = TokenLine.through(columns["characters"][measured], tokens[measured])
    estimates = np.sort(np.where(measured, tokens, np.rint(line.at(columns["characters"])).astype(np.int64)))
    total = line.total(columns["characters"])
    # supervised tokens follow the last answer or, in chats with several answers, the whole row
    lines = {
        name: TokenLine.through(columns[name][measured], supervised[measured])
        for name in ("answer_characters", "characters")
    }
    of = max(lines, key=lambda name: lines[name].fit)
    return {
        **dataset.token_statistics(estimates.tolist(), lines[of].total(columns[of])),
        "total": total,
        "mean": round(total / len(order), 2),
        "measured": int(measured.sum()),
    }


@dataclass(frozen=True)
class TokenLine:
    """The tokens of rows by their characters, fitted to the measured rows (Cochran 1977, Sampling Techniques, 7.1).
    That long rows are always measured does not make it too high, as it would the mean. The sums are whole numbers, so
    that no machine gets another result. `x` and `y` are means of the characters and of what was measured.
    """

    x: float
    y: float
    slope: float  # of the line
    fit: float  # square of the correlation

    @staticmethod
    def through(characters: Array, measured: Array) -> TokenLine:
        x, y = characters.astype(np.int64), measured.astype(np.int64)
        n, sum_x, sum_y = len(x), int(x.sum()), int(y.sum())
        spread_x, spread_y = n * int((x * x).sum()) - sum_x**2, n * int((y * y).sum()) - sum_y**2
        both = n * int((x * y).sum()) - sum_x * sum_y
        fit = both**2 / (spread_x * spread_y) if spread_x and spread_y else 0.0
        return TokenLine(sum_x / n, sum_y / n, both / spread_x if spread_x else 0.0, fit)

    def at(self, characters: Array) -> Array:
        """What rows of so many characters measure."""
        return np.maximum(self.y + self.slope * (characters - self.x), 1.0)

    def total(self, characters: Array) -> int:
        """What all rows measure together."""
        return round(len(characters) * self.y + self.slope * (int(characters.sum()) - len(characters) * self.x))
