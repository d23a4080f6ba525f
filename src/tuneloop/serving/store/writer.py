"""The one thread of a server that writes to its store, so that no answer ever waits for a disk.

What is written before an answer ends keeps a server that is killed from losing a request: each start of a request and
each record is a line in one of two files, before the last bytes of the answer go out. The next server brings them into
the store. A file is emptied when all of its records are there.

Where the store can't be written, records go to a spill file, and from there into the store later; where that can't be
written either they wait in memory, and from `most_waiting` on no request is accepted: none that was is lost.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import make_private, user_errors_of_the_disk
from tuneloop.core.foreign import parse_json, parse_line
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import bound_say
from tuneloop.core.units import counted, verb
from tuneloop.records.feedback import Feedback, right_answer, value_of
from tuneloop.records.record import as_record
from tuneloop.records.request import StoredRequest, as_request
from tuneloop.records.server import Decision
from tuneloop.serving.batch.file import journaled
from tuneloop.serving.store.database import (
    TABLES,
    VERSIONS,
    Database,
    DatabaseError,
    DataRefusedError,
    Stored,
    insert,
    values_of,
)
from tuneloop.serving.store.store import OWN, connect, store_folder

Content = Literal["full", "redacted", "hash", "none"]
Redact = Callable[[Any], Any]  # a JSON value without personal data
SPILL = "store.spill.jsonl"
DEAD = "store.dead.jsonl"  # what no store takes: a JSON object in each line, with the time and the reason
MOST = 1000  # records in one transaction
SHORT = 2000  # bytes of a request's texts that are searched for personal data at once: about 0.2 ms
EVERY = 0.1  # seconds between two transactions, where no one waits for one
AGAIN = 1.0  # seconds after which a store that took nothing is tried again
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
class RecordCounts:
    """What has become of the records."""

    stored: int = 0
    spilled: int = 0  # into the spill file, for want of the store; they count as stored once they are there
    losses: int = 0  # neither could be written, and there was no room to wait
    dead: int = 0  # in the file of dead letters, since no store takes them
    fault: str = ""  # the last error in words; empty once the store takes records again


@dataclass(slots=True)
class _Waiting:
    """A record that waits to be written."""

    record: Stored
    future: Future[str] | None = None  # with the id under which it is stored: that of the first one with its key
    clean: bool = False  # the record is as it may be stored already


@dataclass(frozen=True)
class HeldRecord:
    """A record that is stored when something else is on the disk: `store` it then, or `drop` it."""

    id: str
    store: Callable[[], None]
    drop: Callable[[], None]


@dataclass
class StoreWriter:
    """Writes records to a store in a thread."""

    place: Path  # the server's folder, or the store's file in it
    # what is kept of prompts and answers; redacted: without personal data; hash: a digest of each text
    content: Content = "full"
    # removes personal data, from each value of a mapping apart; needed for `redacted`. It runs in the thread of
    # the writer, but for short requests, which are searched at once, so that a kill costs none of their texts.
    # A prompt is searched when its request begins, and not again when it ends
    redact: Redact | None = None
    most_waiting: int = 20_000  # records that may wait in memory
    patience: float = 1.0  # seconds to wait for another process that holds the store, before records are spilled
    store: str = ""  # the store's place where it is another one, as the URL of a database
    say: Callable[[str], None] = field(default_factory=bound_say)
    counts: RecordCounts = field(default_factory=RecordCounts)
    appending: threading.Lock = field(default_factory=threading.Lock)  # to files of spilled records and dead letters
    _queue: deque[_Waiting] = field(default_factory=deque)
    _awaited: deque[_Waiting] = field(default_factory=deque)  # those that someone waits for: they are written first
    _retry: float = 0.0  # of the clock: not before then is the store tried again
    _writing: int = 0  # records taken from it that are not in the store yet
    _wake: threading.Event = field(default_factory=threading.Event)
    _over: bool = False
    _settling: threading.Event | None = None
    _thread: threading.Thread | None = None
    _connection: Database | None = None
    _ahead: WriteAhead | None = None
    _full_disk: bool = False  # the spill file can't be written
    _held: bool = False  # records wait in memory: neither the store nor the spill file takes them
    _searched: dict[str, tuple[StoredRequest, StoredRequest]] = field(default_factory=dict)  # as it came and as stored

    @property
    def folder(self) -> Path:
        """The server's folder, for what waits to get into the store."""
        return store_folder(self.place)

    def start(self) -> None:
        """Open the store and start the thread; UserError: it can't be opened, or nothing redacts what must be."""
        if self.content == "redacted" and self.redact is None:
            raise UserError("Nothing redacts what is logged", where="log.content: redacted")
        with user_errors_of_the_disk(self.folder):
            if wide := make_private(self.folder, OWN):
                message = f"others could read {self.folder}: now it is yours alone ({wide:,} permissions changed)"
                self._say(f"folder    {message}")
        self._connection = connect(self.store or self.place, create=True, patience=self.patience)
        self._connection.announce()
        self._ahead = WriteAhead(self.folder)
        self._recover_killed(*self._ahead.open())
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def begin(self, record: StoredRequest) -> None:
        """Note a request that is accepted, so that it is known even if the server is killed before it is answered."""
        if self._ahead is None:
            return
        if self._is_long(record):
            self._ahead.begin(_without_texts(record))
            return
        clean = self._clean_request(record)
        self._ahead.begin(clean)
        if self.content == "redacted" and len(clean.prompt) == len(record.prompt):
            if len(self._searched) >= self.most_waiting:  # requests that never ended; others are searched again
                self._searched.clear()
            self._searched[record.id] = (record, clean)

    def add(self, record: Stored) -> None:
        """Write a record soon, and at once a line that survives the server's death. Never waits and never fails."""
        if self._ahead is None:
            self._queue.append(_Waiting(record))
            return
        self._end(self._ahead, *self._line(record))

    def hold(self, record: StoredRequest, journal: Path) -> HeldRecord:
        """Keep the record of a batch's answer until the batch's journal has that, so that it is stored once.

        A server that is killed before has neither, and the next one answers again; one that is killed after it stores
        the record when it starts, as the journal names it.
        """
        if self._ahead is None:
            return HeldRecord(record.id, partial(self._queue.append, _Waiting(record)), lambda: None)
        ahead, (line, waiting) = self._ahead, self._line(record)
        ahead.hold(record.id, line, journal)
        return HeldRecord(record.id, partial(self._end, ahead, line, waiting), partial(ahead.drop, record.id))

    def _line(self, record: Stored) -> tuple[bytes, _Waiting]:
        """A record as it is written ahead, and as it waits for the store."""
        if isinstance(record, StoredRequest) and self._is_long(record):
            return line_of(_without_texts(record)), _Waiting(record)
        record = self._clean(record)
        return line_of(record), _Waiting(record, clean=True)

    def _end(self, ahead: WriteAhead, line: bytes, waiting: _Waiting) -> None:
        with ahead.lock:
            ahead.end(waiting.record.id, line)
            self._queue.append(waiting)  # the thread looks every 0.1 s: waking it costs more than the record

    def _is_long(self, record: StoredRequest) -> bool:
        """Whether the search for personal data would hold an answer up."""
        if self.content != "redacted":
            return False
        try:
            return len(orjson.dumps([record.prompt, record.completion, record.tools, record.error])) > SHORT
        except TypeError:  # half a surrogate pair in a text
            return True

    def _ready(self, waiting: _Waiting) -> Stored:
        return waiting.record if waiting.clean else self._clean(waiting.record)

    def add_durably(self, record: Stored) -> Future[str]:
        """Write a record; the future is done once it is in the store or the spill file, and fails where it is in none.
        Its result is the id under which it is stored: of several records with the same key that of the first one."""
        future: Future[str] = Future()
        if self._over or self._thread is None or not self._thread.is_alive():
            future.set_exception(OSError("the store is closed"))
            return future
        if self.full:
            self.counts.losses += 1
            future.set_exception(OSError("the store takes nothing at present"))
            return future
        self._awaited.append(_Waiting(record, future))
        self._wake.set()
        return future

    @property
    def full(self) -> bool:
        """Whether no further request may be accepted, since it might be lost."""
        return self.waiting >= self.most_waiting

    @property
    def waiting(self) -> int:
        """Records in memory."""
        return len(self._queue) + len(self._awaited) + self._writing

    @property
    def unsafe(self) -> int:
        """Records that could not be written before their answer ended."""
        return self._ahead.failed if self._ahead is not None else 0

    def settle(self, seconds: float) -> bool:
        """Bring all that waits into the store and empty the files before it, but for the starts of requests under way;
        returns False where the store took nothing in so many seconds."""
        self._settling = settled = threading.Event()
        self._wake.set()
        return settled.wait(seconds)

    def stop(self, seconds: float = 10.0) -> None:
        """Write what is left and end the thread."""
        self._over = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
            self._settle(list(self._awaited), OSError("the server has stopped"))
        if self._ahead is not None:
            self._ahead.close(empty=not self._queue)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self) -> None:
        while not (self._over and not self._queue and not self._awaited):
            self._wake.wait(EVERY)
            self._wake.clear()
            late = time.monotonic() >= self._retry
            if self._spilled and late:
                self._guarded(self._recover)
            if not late and self._held and not self._over:
                continue
            self._held = False
            self._write_awaited()
            settling = self._settling
            with self._ahead.lock if self._ahead is not None else contextlib.nullcontext():
                self._writing = len(self._queue)
                items = [self._queue.popleft() for _ in range(self._writing)]
                # The file of lines that can be emptied once all of these are written.
                full = self._ahead.turn(always=settling is not None) if self._ahead is not None else None
            for i in range(0, len(items), MOST):
                some = items[i : i + MOST]
                for waiting in some:  # a search for personal data may take a tenth of a second
                    with contextlib.suppress(Exception):  # what can't be read is met again, and buried, below
                        waiting.record, waiting.clean = self._ready(waiting), True
                    self._write_awaited()
                self._put(some)
                if self._held:
                    self._queue.extendleft(reversed(items[i + MOST :]))
                    break
            self._writing = 0
            if full is not None and self._ahead is not None and not self._held:
                self._ahead.clear(full)
            if settling is not None and not self._spilled and not self._held:
                self._settling = None
                settling.set()
            done = not (items or self._awaited)  # which may have come since the last were written
            if self._over and (self._held or done):  # what is held was written ahead, for the next server
                break

    def _write_awaited(self) -> None:
        items = [self._awaited.popleft() for _ in range(min(len(self._awaited), MOST))]
        if items:
            self._put(items)

    def _put(self, items: Sequence[_Waiting]) -> None:
        """Write records to the store, or to the spill file where the store took nothing a moment ago."""
        spill = time.monotonic() < self._retry
        self._retry = self._guarded(partial(self._write, items, spill), items) or self._retry

    def _guarded(self, work: Callable[[], float | None], items: Sequence[_Waiting] = ()) -> float | None:
        """Do work whose failure must not end the thread, and report it to those who wait."""
        try:
            return work()
        except Exception as error:
            self._say(f"records of {len(items)} events may be lost: {error!r:.200}")
            self.counts.losses += len(items)
            self._settle(items, error)
            return None

    def _write(self, items: Sequence[_Waiting], spill: bool) -> float:
        """Write records; returns when to try the store again where it took nothing, else 0."""
        fault: Exception | None = None
        retry, spilled = 0.0, False
        try:
            if spill:
                raise DatabaseError(self.counts.fault)
            assert self._connection is not None
            insert(self._connection, map(self._ready, items))
            self.counts.stored += len(items)
            if self._full_disk and not self._spilled:
                self._full_disk, self.counts.fault = False, ""
                self._say("the store can be written again")
        except Exception as error:
            if isinstance(error, DataRefusedError) or not isinstance(error, DatabaseError | OSError):
                if len(items) > 1:  # one of them can't be written, which must cost neither the others nor this thread
                    return max(self._write([waiting], spill) for waiting in items)
                self._bury(items[0], error)
                self._settle(items, error)
                return 0.0
            retry, spilled = 0.0 if spill else time.monotonic() + AGAIN, True
            fault = self._spill(items, str(error))
        self._settle(items, fault, spilled=spilled)
        if fault is not None:
            waiting = [waiting for waiting in items if waiting.future is None]
            self.counts.losses += len(items) - len(waiting)  # those were not accepted
            self._queue.extendleft(reversed(waiting))
            self._held, retry = bool(waiting), time.monotonic() + AGAIN
        return retry

    def _bury(self, lost: _Waiting | Stored | str, reason: object) -> None:
        """Put what no store takes, a record or a line that is none, among the dead letters, for a person to look at."""
        letter: dict[str, Any] = {"time": utc_now(), "why": f"{reason}"[:300]}
        try:
            if isinstance(lost, str):
                line = json.dumps({**letter, "line": lost})
            else:
                record = self._ready(lost) if isinstance(lost, _Waiting) else lost
                line = json.dumps({**letter, "table": TABLES[type(record)], "record": parse_json(json_of(record))})
        except Exception:  # what can't be written as JSON at all
            name = getattr(lost.record if isinstance(lost, _Waiting) else lost, "id", None)
            line = json.dumps({**letter, "id": name if isinstance(name, str) else None})
        try:
            self._append(DEAD, line.encode() + b"\n")
        except OSError as error:
            self.counts.losses += 1
            self._say(f"a record can't be stored and is lost ({error}): {letter['why']}")
            return
        self.counts.dead += 1
        self._say(f"a record can't be stored and was put into {self.folder / DEAD}: {letter['why']}")

    def _append(self, name: str, data: bytes) -> None:
        with self.appending:
            path = self.folder / name
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as file:
                before = os.fstat(descriptor).st_size
                try:
                    if (file.write(data) or 0) < len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(descriptor)
                except OSError:
                    os.truncate(descriptor, before)  # half a line would spoil the next one
                    if not before:
                        path.unlink(missing_ok=True)
                    raise

    def _settle(self, items: Sequence[_Waiting], fault: Exception | None, *, spilled: bool = False) -> None:
        """Report what has become of records to those who wait for it."""
        for waiting in items:
            if waiting.future is None:
                continue
            with contextlib.suppress(InvalidStateError):  # no one waits for it any more
                if fault is None:
                    waiting.future.set_result(waiting.record.id if spilled else self._stored_id(waiting.record))
                else:
                    refused = isinstance(fault, DataRefusedError)
                    reason = "the store can't hold this" if refused else "the store takes nothing at present"
                    waiting.future.set_exception(OSError(f"{reason}: {fault}"))

    def _stored_id(self, record: Stored) -> str:
        """The id of the first record with this one's key; its own where it has none, or the store can't be queried."""
        if isinstance(record, Feedback) and record.key is not None and self._connection is not None:
            with contextlib.suppress(DatabaseError):
                row = self._connection.execute("SELECT id FROM feedback WHERE key = ?", [record.key]).fetchone()
                return str(row[0]) if row else record.id
        return record.id

    def _clean(self, record: Stored) -> Stored:
        """A record as it may be written."""
        if isinstance(record, StoredRequest):
            return self._clean_request(record)
        return self._clean_feedback(record) if isinstance(record, Feedback) else record

    def _clean_request(self, record: StoredRequest) -> StoredRequest:
        if self.content == "full":
            return record
        if self.content == "none":
            return replace(record, prompt=[], completion=None, tools=[])
        if self.content == "hash":
            return replace(record, prompt=_hashed(record.prompt), completion=_hashed(record.completion), tools=[])
        assert self.redact is not None
        rest = {name: getattr(record, name) for name in ("prompt", "completion", "error", "tools")}
        before: dict[str, Any] = {}
        raw, clean = self._searched.pop(record.id, (None, None))
        if raw and clean and (raw.prompt, raw.tools) == (record.prompt, record.tools):
            before = {} if clean is raw else {"prompt": clean.prompt, "tools": clean.tools}
            rest = {"completion": record.completion, "error": record.error}
        try:
            new = self.redact(rest)
            return record if new is rest and not before else replace(record, **new, **before)
        except Exception as error:  # a text that the search can't read must not be kept as it is, nor stop the thread
            reason = f"the search for personal data failed: {error!r:.200}"
            self._say(f"a request's texts were left out of the log, {reason}")
            return replace(record, prompt=[], completion=None, tools=[])

    def _clean_feedback(self, record: Feedback) -> Feedback:
        """Feedback as it may be written: its texts by `content`; classes, choices, and words for good and bad stay."""
        value = record.value
        if self.content == "full" or not isinstance(value, str):
            return record
        if self.content == "redacted":
            assert self.redact is not None
            try:
                return record.model_copy(update={"value": self.redact(value)})
            except Exception as error:
                self._say(f"a text was left out of feedback, the search for personal data failed: {error!r:.200}")
                return record.model_copy(update={"value": ""})
        free = right_answer(record.kind, value) is not None or value_of(record.kind, value) is None
        if record.kind in ("label", "choice") or not free:
            return record
        return record.model_copy(update={"value": _hashed(value) if self.content == "hash" else ""})

    @property
    def _spill_file(self) -> Path:
        return self.folder / SPILL

    @property
    def _spilled(self) -> bool:
        return self._spill_file.exists()

    def _spill(self, items: Sequence[_Waiting], reason: str) -> Exception | None:
        lines: list[bytes] = []
        for waiting in items:
            try:
                lines.append(line_of(self._ready(waiting)))
            except Exception as error:  # as one that is nested too deeply
                self._bury(waiting, error)
                self._settle([waiting], error)
        if not lines:
            return None
        if not self.counts.fault:
            self._say(f"the store can't be written ({reason}); records go to {self._spill_file} until it can")
        self.counts.fault = reason
        try:
            self._append(SPILL, b"".join(lines))
        except OSError as error:
            if not self._full_disk:
                message = f"requests wait in memory, and new ones are refused at {self.most_waiting:,}"
                self._say(f"nor can {self._spill_file} ({error}); {message}")
            self._full_disk = True
            return error
        self._full_disk = False
        self.counts.spilled += len(lines)
        return None

    def _recover_killed(self, left: Sequence[Stored], bad: Sequence[BadLine]) -> None:
        """Bring what a killed server left into the store, where known ids change nothing. It prevents no start."""
        assert self._ahead is not None
        refused: list[tuple[Stored, Exception]] = []
        try:
            if new := self._insert_all(left, refused):
                records = f"{counted(new, 'record')} that it had not stored {verb(new, 'is', 'are')} stored now"
                self._say(f"an earlier server was killed: {records}")
        except (DatabaseError, OSError) as error:
            refused = []  # they are spilled with the others
            if self._spill([_Waiting(record, clean=True) for record in left], str(error)):
                return
        for rejected, reason in [*refused, *bad]:
            self._bury(rejected, reason)
        self._ahead.clear(0)
        self._ahead.clear(1)

    def _recover(self) -> None:
        """Bring the spill file into the store. Ids make that idempotent: it may be done twice after a crash."""
        refused: list[tuple[Stored, Exception]] = []
        try:
            records, bad = read_spilled(self._spill_file)
            self._insert_all(records, refused)
            self._spill_file.unlink()
        except (DatabaseError, OSError):
            return
        for rejected, reason in [*refused, *bad]:
            self._bury(rejected, reason)
        came = len(records) - len(refused)
        self.counts.stored += came
        self._say(f"the store can be written again: {counted(came, 'record')} came from the spill file")
        self.counts.fault = ""

    def _insert_all(self, records: Sequence[Stored], refused: list[tuple[Stored, Exception]]) -> int:
        """`insert`; a record that the store refuses costs none of the others, and is added to `refused`."""
        assert self._connection is not None
        if len(records) > MOST:  # after hours without a store
            return sum(self._insert_all(records[i : i + MOST], refused) for i in range(0, len(records), MOST))
        try:
            return insert(self._connection, records) if records else 0
        except Exception as error:
            if isinstance(error, DatabaseError | OSError) and not isinstance(error, DataRefusedError):
                raise
            if len(records) > 1:
                return sum(self._insert_all([record], refused) for record in records)
            refused.append((records[0], error))
            return 0

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a listener must not end the thread
            self.say(line)


def _without_texts(record: StoredRequest) -> StoredRequest:
    return replace(record, prompt=[], completion=None, tools=[], error=record.error and "failed")


def _hashed(value: Any) -> Any:
    """A value with a digest in place of each text; roles, names and ids stay."""
    if isinstance(value, str):
        return "sha256:" + hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
    if isinstance(value, list):
        return [_hashed(hashed_value) for hashed_value in value]
    if isinstance(value, dict):
        plain = ("role", "type", "id", "tool_call_id")
        return {key: hashed_value if key in plain else _hashed(hashed_value) for key, hashed_value in value.items()}
    return value


# --- written ahead -----------------------------------------------------------------------------


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
    values = {"version": VERSIONS[type(record)], **values_of(record), **changes}
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
            reason = error.what if isinstance(error, UserError) else f"no record: {error!r}"
            bad.append((line.decode("utf-8", "backslashreplace"), reason))
    return records, bad
