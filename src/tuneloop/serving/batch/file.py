"""The requests of a batch file, read as they are needed: what stays in memory is nine bytes a line.

A line that can't be sent is a fault of that line alone, with a code and a sentence.

A journal has a line for each request that is over, on the disk before it counts; such a request is never repeated.
Lines are written and synced in groups: those that end while a sync runs share the next. A group that does not fit on
the disk is taken back as a whole; see `core.journal`.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.foreign import MOST_DEPTH, fast_json, parse_json, too_deep
from tuneloop.core.journal import JournalFile
from tuneloop.records.record import JsonSteps, latest, upgraded
from tuneloop.serving.http.contract import BatchEndpoint

if TYPE_CHECKING:
    from tuneloop.serving.store.writer import HeldRecord

T = TypeVar("T")
ENDPOINTS: tuple[str, ...] = get_args(BatchEndpoint)
MOST_BYTES = 10_000_000  # of a line
MOST_ID = 4096  # characters of a custom_id: the path of a document may be so long
STEP = 0.05  # seconds of a step of work on files
JOURNAL_STEPS: JsonSteps = ()  # from what earlier versions wrote as a line of a journal
AT_ONCE, AT_ONCE_BYTES = 64, 1 << 20  # lines, and bytes, that are read ahead

# What a line is. An answer is an answer or a refusal that the journal holds.
WAITING, ANSWERED, REFUSED, FAULTY, REPEATED, BLANK = range(6)


class InvalidBatch(Exception):
    """A file that is no batch at all: a code that programs can test, and what is wrong."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Line:
    """A request of a batch, as OpenAI's batch files have them."""

    number: int  # of its line, from 1
    custom_id: str | None  # None: it has none
    url: str = ""
    body: dict[str, Any] | None = None
    fault: tuple[str, str] | None = None  # why it can't be sent: a code and a sentence
    # the log's records of its answer, which are stored once the journal has that
    held: list[HeldRecord] = field(default_factory=list, compare=False)

    def store(self) -> None:
        """Store the records of its answer, which the journal has."""
        while self.held:
            self.held.pop(0).store()

    def drop(self) -> None:
        """Forget the records of an answer that is not used."""
        while self.held:
            self.held.pop().drop()


@dataclass
class BatchFile:
    """A batch file, and what has become of each of its lines."""

    path: Path
    endpoint: str = ""  # that all requests must be for; empty: any
    most_bytes: int = MOST_BYTES  # of a line; a longer one is a fault
    # of each line, by its number; that of line 0 means nothing
    states: bytearray = field(default_factory=lambda: bytearray([BLANK]))
    # where the journal holds a line's answer; of a `custom_id` that is used before, the number of the line that has it
    places: array[int] = field(default_factory=lambda: array("Q", [0]))
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 1])  # of lines in each state

    @property
    def total(self) -> int:
        """Requests, those with a fault included."""
        return len(self.states) - self.counts[BLANK]

    @property
    def failed(self) -> int:
        """Requests that have an error."""
        return self.counts[REFUSED] + self.counts[FAULTY] + self.counts[REPEATED]

    def set(self, number: int, state: int, position: int = 0) -> None:
        """Note what has become of a line; IndexError: there is no such line."""
        if not 0 < number < len(self.states):
            raise IndexError(number)
        self.counts[self.states[number]] -= 1
        self.counts[state] += 1
        self.states[number], self.places[number] = state, position

    def forget_answers(self) -> None:
        """Let all lines with an answer wait again."""
        for number, state in enumerate(self.states):
            if state in (ANSWERED, REFUSED):
                self.set(number, WAITING)

    # --- work in steps, each of about `STEP` seconds

    def check(self, most: int | None = None) -> Iterator[None]:
        """Look at each line, of `most` at most; InvalidBatch: there are more, or none; UserError: it can't be read."""
        self.states, self.places, self.counts = bytearray([BLANK]), array("Q", [0]), [0, 0, 0, 0, 0, 1]
        ids = array("Q", [0])
        until = time.monotonic() + STEP
        for number, raw in self._raw():
            if most is not None and number > most:
                raise InvalidBatch("too_many_rows", f"The file has more than {most:,} lines, which is the limit")
            line = None if raw is not None and not raw.strip() else self._line(number, raw)
            state = BLANK if line is None else WAITING if line.fault is None else FAULTY
            self.states.append(state)
            self.counts[state] += 1
            name = "" if line is None else line.custom_id or ""
            ids.append(id_hash(name) if name else 0)
            if time.monotonic() > until:
                yield
                until = time.monotonic() + STEP
        if not self.total:
            raise InvalidBatch("empty_file", "The file has no requests")
        self.places = array("Q", bytes(8 * len(self.states)))
        yield
        self._mark_repeated(ids)

    def waiting(self) -> Iterator[list[Line]]:
        """The lines that wait, some at a time; perhaps none where many others come first."""
        lines: list[Line] = []
        size, until = 0, time.monotonic() + STEP
        for number, raw in self._raw():
            if number < len(self.states) and self.states[number] == WAITING:
                lines.append(self._line(number, raw))
                size += len(raw or b"")
            if len(lines) >= AT_ONCE or size >= AT_ONCE_BYTES or time.monotonic() > until:
                yield lines
                lines, size, until = [], 0, time.monotonic() + STEP
        yield lines

    def lines(self) -> Iterator[Line | int]:
        """All requests in order: the number of one with an answer, else the line, a repeated one with its fault."""
        for number, raw in self._raw():
            state = self.states[number] if number < len(self.states) else BLANK
            if state in (ANSWERED, REFUSED):
                yield number
            elif state != BLANK:
                line = self._line(number, raw)
                if state == REPEATED:
                    id_, first = str(line.custom_id)[:80], self.places[number]
                    message = f"line {number}: the custom_id {id_!r} is that of line {first}"
                    line = Line(number, None, fault=("duplicate_custom_id", message))
                yield line

    # --- inside

    def _raw(self) -> Iterator[tuple[int, bytes | None]]:
        """Lines with their numbers; None in place of one that is too long, which is never in memory as a whole."""
        with user_errors_of_the_disk(self.path), self.path.open("rb") as file:
            number = 0
            while raw := file.readline(self.most_bytes + 1):
                number += 1
                rest = b"" if len(raw) <= self.most_bytes or raw.endswith(b"\n") else raw
                while rest and not rest.endswith(b"\n"):
                    raw, rest = b"", file.readline(1 << 20)
                yield number, raw or None

    def _line(self, number: int, raw: bytes | None) -> Line:
        name: str | None = None

        def faulty(code: str, problem: str) -> Line:
            return Line(number, name, fault=(code, f"line {number}{problem}"[:300]))

        try:
            if raw is None:
                return faulty("line_too_long", f" is longer than {self.most_bytes / 1e6:g} MB")
            try:  # as bodies of requests are read: strict, and no deeper than can be written again
                value = fast_json(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
                if too_deep(raw, value):
                    raise ValueError(f"it is nested in more than {MOST_DEPTH} levels")
            except ValueError as error:
                name = _id_of(raw)
                return faulty("invalid_json_line", f" is not valid JSON: {str(error).partition(': line ')[0]}")
            if not isinstance(value, dict):
                return faulty("invalid_json_line", " is no JSON object")
            id_, body, url = value.get("custom_id"), value.get("body"), value.get("url", self.endpoint)
            if not isinstance(id_, str) or not id_:
                return faulty("missing_custom_id", " has no custom_id")
            if len(id_) > MOST_ID:
                message = f": custom_id has {len(id_):,} characters, and {MOST_ID:,} are allowed"
                return faulty("invalid_custom_id", message)
            name = id_
            other = value.get("method", "POST") != "POST" or (self.endpoint and url != self.endpoint)
            if other or url not in ENDPOINTS:
                return faulty("invalid_url", f": it must be POST {self.endpoint or ' or '.join(ENDPOINTS)}")
            fault = value.get("fault")  # of rows that `tuneloop batch` can't read
            if isinstance(fault, list) and len(fault) == 2:
                return Line(number, name, fault=(str(fault[0]), str(fault[1])))
            if not isinstance(body, dict):
                return faulty("invalid_body", ": body must be an object")
            return Line(number, name, url, body)
        except Exception as error:  # a fault of ours must not end the other lines
            name = None
            return faulty("server", f" can't be read ({type(error).__name__})")

    def _mark_repeated(self, ids: array[int]) -> None:
        """Find the lines whose `custom_id` an earlier line has."""
        if not any_twice(ids):
            return
        import numpy as np

        hashes = np.frombuffer(ids, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        is_new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        first = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
        for at in np.flatnonzero(~is_new & (ordered != 0)):
            self.set(int(order[at]), REPEATED, int(order[first[at]]))


def id_hash(name: str) -> int:
    """64 bits of a hash, never 0: among 3 million names a wrong match has a chance of 1 in 4 million."""
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1


def any_twice(hashes: array[int]) -> bool:
    """Whether a hash is there twice; 0 is none."""
    import numpy as np

    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    return bool(np.any((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)))


def _id_of(raw: bytes) -> str | None:
    """The `custom_id` of a line that is refused, so that its error can be matched; None: it can't be read."""
    with suppress(ValueError, RecursionError, AttributeError):
        name = parse_json(raw.decode("utf-8", "replace"), "line", parse_int=str).get("custom_id")
        if isinstance(name, str) and 0 < len(name) <= MOST_ID and name.encode():
            return name
    return None


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Separate threads: work on large files must not take those in which prompts are made. A fork has none of them."""
    return ThreadPoolExecutor(4, f"batch-{process}")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Do short work on files in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), work, *arguments)


def failed(result: dict[str, Any]) -> bool:
    """Whether a result belongs into the error file."""
    return result["error"] is not None or result["response"]["status_code"] != 200


def encoded(number: int, result: dict[str, Any], steps: JsonSteps = JOURNAL_STEPS) -> bytes:
    """A line of a journal; TypeError: the result is no JSON."""
    form = {"version": latest(steps)} if steps else {}
    return orjson.dumps({"number": number, **result, **form}, option=orjson.OPT_APPEND_NEWLINE)


def journaled(journal: Path) -> set[str]:
    """Ids of the stored requests that the lines of a journal stand for; a journal that is missing has none."""
    ids: set[str] = set()
    with suppress(OSError), journal.open("rb") as file:
        for raw in file:
            if b'"requests":' in raw and raw.endswith(b"\n"):
                with suppress(ValueError, AttributeError, TypeError):
                    ids |= set(fast_json(raw).get("requests") or ())
    return ids


@dataclass
class Journal:
    """An append-only file of JSON lines, each with the number of its request."""

    path: Path
    rows: BatchFile  # notes what each line holds
    steps: JsonSteps = JOURNAL_STEPS
    _file: JournalFile = field(init=False)
    _waiting: list[tuple[Line, int, bytes, asyncio.Future[None]]] = field(default_factory=list)
    _writing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        where, message = str(self.path.parent), "Another process is doing this batch"
        self._file = JournalFile(self.path, UserError(message, where=where, next_step="wait for it"))

    def open(self) -> Iterator[None]:
        """Take the file for this process and read it in steps; a last line that was cut is dropped.

        Raises:
            UserError: it can't be read or written, another process has it, or a line in its middle is damaged.
        """
        for count, raw in enumerate(self._file.open(), 1):
            try:
                value = self._read(raw)
                self.rows.set(value["number"], REFUSED if failed(value) else ANSWERED, self._file.end)
            except (ValueError, LookupError, TypeError, AttributeError):
                message, step = (
                    f"The journal of a batch is damaged in line {count}",
                    "delete it to begin that batch again",
                )
                raise UserError(message, where=str(self.path), next_step=step) from None
            if count % 100 == 0:
                yield

    async def add(self, line: Line, data: bytes, *, wrong: bool) -> None:
        """Append a request's line, from `encoded`, an error where `wrong`; it is on the disk when this returns.

        Then its records are stored, also where no one waits for it any more.

        Raises:
            OSError: the disk is full, or can't be written.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line, REFUSED if wrong else ANSWERED, data, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await future

    async def close(self) -> None:
        """Close the file once what is being written is written."""
        if self._writing is not None:
            await self._writing
        self._file.close()

    def read(self, file: Any, number: int) -> dict[str, Any]:
        """The result of a request; UserError: it is not where it was written; `file`: the journal, open to read."""
        file.seek(self.rows.places[number])
        try:
            value = self._read(file.readline())
            if value["number"] == number:
                return value
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        raise UserError("The journal of a batch was changed while it was at work", where=str(self.path))

    def _read(self, raw: bytes) -> dict[str, Any]:
        value = upgraded(fast_json(raw), self.steps, "this journal", str(self.path))
        value.pop("version", None)
        return value

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                position = await in_thread(self._append, b"".join(data for _, _, data, _ in group))
            except Exception as error:
                for line, *_, future in group:
                    if future.done():  # who waited for it has ended
                        line.drop()
                    else:
                        future.set_exception(error)
                continue
            for line, state, data, future in group:
                self.rows.set(line.number, state, position)
                line.store()
                position += len(data)
                if not future.done():
                    future.set_result(None)

    def _append(self, data: bytes) -> int:
        """Write at the end; returns where that is. A file that an erasure has replaced is read again."""
        if self._file.was_changed:
            self.rows.forget_answers()
            for _ in self.open():
                pass
        return self._file.append(data)
