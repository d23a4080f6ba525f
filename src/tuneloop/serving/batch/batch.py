"""Batches: files of requests that are answered when no one waits, each exactly once.

A batch is a folder: `input.jsonl`, `batch.json` (its state, as OpenAI's API shows it), `journal.jsonl` (what is done),
and at the end `output.jsonl` and `errors.jsonl`, made from the journal in the order of the input. The next process that
finds a folder whose batch is not over continues it.

Nothing that one request does ends the others: what it raises is its error. A full disk ends nothing either: the batch
waits until there is room.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing
from tuneloop.core.http.timeouts import NO_QUOTA, PAUSE, RETRIED, Throttle, backoff, is_busy, seconds_to_wait
from tuneloop.core.ui import bound_say
from tuneloop.records.record import write_record
from tuneloop.records.request import StoredRequest
from tuneloop.serving.batch.file import (
    MOST_BYTES,
    STEP,
    WAITING,
    BatchFile,
    InvalidBatch,
    Journal,
    Line,
    encoded,
    failed,
    in_thread,
)
from tuneloop.serving.batch.record import BatchState, RequestCounts, read_state
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http import api_request as read
from tuneloop.serving.http import replies
from tuneloop.serving.http.api_request import ApiError, ApiRequest
from tuneloop.serving.http.app import Whole, whole
from tuneloop.serving.http.contract import ResponsesBody
from tuneloop.serving.http.responses import earlier_responses, read_responses, responses_body

T = TypeVar("T")

INPUT, STATE, JOURNAL, OUTPUT, ERRORS = "input.jsonl", BatchState.file, "journal.jsonl", "output.jsonl", "errors.jsonl"
TRIES = 5  # of a request whose engine fails
PATIENCE = 86_400.0  # seconds that a request waits for room in a rate, in a batch that never expires
GRACE = 30.0  # seconds that requests at work get when their batch is cancelled or expires
LOOK = 0.2  # seconds between two looks at what a batch is to do
SAVE = 1.0  # seconds between two counts on the disk
RESERVE = 4 << 20  # bytes of the disk that no batch fills, at most a sixteenth of it: others store requests there too
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Answer = Callable[[Line], Awaitable[dict[str, Any]]]  # the body of a line's answer; raises ApiError


def disk_is_full(error: BaseException | None) -> bool:
    """Whether the operating system refused to write for want of room."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return isinstance(cause, OSError) and cause.errno in _FULL


@dataclass
class BatchJob:
    """A batch at work; UserError: its state is missing or damaged."""

    folder: Path
    answer: Answer
    rows: int = 4  # that are answered at the same time, at most: fewer while a rate is used up
    room: Callable[[], Awaitable[None]] | None = None  # returns when there is room for a further row
    stopping: Callable[[], bool] = lambda: False  # the process is about to end; rows are left for the next one then
    report: Callable[[int, int], None] = lambda over, total: None  # gets how many requests are over, of how many
    clock: Callable[[], float] = time.time  # seconds since 1970
    steady: Callable[[], float] = time.monotonic  # seconds of a clock that never jumps
    pause: float = PAUSE  # seconds before the second try of a request
    full_pause: float = 1.0  # seconds between two looks at a full disk
    most_bytes: int = MOST_BYTES  # of a line
    most_rows: int | None = None  # lines of a new batch; None: any number
    longest: float | None = None  # seconds of one answer, after which its row has an error; None: any time
    fatal: tuple[type[Exception], ...] = ()  # what `answer` raises that ends the work, and no row
    queued: Callable[[], int] = lambda: 0  # requests of the caller in other batches, which count against `most_rows`
    say: Callable[[str], None] = field(default_factory=bound_say)
    state: BatchState = field(init=False)
    paused: str = ""  # why it waits; empty: it does not
    file: BatchFile = field(init=False)
    _journal: Journal = field(init=False)
    _throttle: Throttle = field(init=False)
    _saving: asyncio.Lock = field(default_factory=asyncio.Lock)
    _active: set[asyncio.Task[None]] = field(default_factory=set)
    _stuck: int = 0
    _looked: float = 0.0
    _failures: int = 0
    _ends: float = float("inf")  # of the steady clock

    def __post_init__(self) -> None:
        self.state = read_state(self.folder)
        self.file = BatchFile(self.folder / INPUT, self.state.endpoint, self.most_bytes)
        self._journal = Journal(self.folder / JOURNAL, self.file)
        expires, created = self.state.expires_at, self.state.created_at
        if expires is not None:  # however the clock jumps from here on, and if it is behind the batch's beginning
            self._ends = self.steady() + min(expires - self.clock(), expires - created)
        patience = PATIENCE if expires is None else float("inf")
        self._throttle = Throttle(self.rows, self.pause, patience=patience)

    @property
    def cancelled(self) -> bool:
        """Whether nothing further is to be begun."""
        return self.state.status == "cancelling"

    @property
    def left(self) -> int:
        """Requests that wait, as far as they are counted."""
        return self.file.counts[WAITING]

    @property
    def _ending(self) -> bool:
        return self.cancelled or self.stopping() or self.steady() >= self._ends

    async def cancel(self) -> None:
        """Begin nothing further; what is at work may end. A kill changes nothing of it, nor does a second call."""
        if self.state.over or self.cancelled:
            return
        self._set(status="cancelling")
        with suppress(UserError):  # a full disk: it is written with the next state
            await self._save()

    async def run(self) -> str:
        """Do what is left; returns the status that it ends with; UserError: its files are damaged or can't be read."""
        if self.state.over:
            return self.state.status
        try:
            if not self.cancelled or self._begun:
                try:
                    if not await self._read():
                        return self.state.status
                except InvalidBatch as error:
                    return await self.fail(error.message, error.code)
            if self.cancelled and not self._begun:
                return await self._change(status="cancelled")
            if self.state.status == "validating":
                await self._change(status="in_progress", request_counts=self._counts)
            await self._answers()
            if self.stopping():
                return self.state.status
            if self.left and not self._ending:
                return await self.fail("The file of requests became shorter while the batch was at work")
            expired = not self.cancelled and self.left > 0
            missing = ("batch_cancelled", "the batch was cancelled")
            if expired:
                missing = ("batch_expired", "the batch's time was over")
            if not self.cancelled:
                await self._change(status="finalizing", request_counts=self._counts)
            if not await self._steps(lambda: self._results(missing)):
                return self.state.status
            end = "cancelled" if self.cancelled else "expired" if expired else "completed"
            return await self._change(status=end, request_counts=self._counts)
        finally:
            await self._journal.close()

    async def fail(self, message: str, code: str = "server") -> str:
        """End the batch as a whole, with a sentence."""
        data = {"code": code, "message": message, "line": None, "param": None}
        return await self._change(status="failed", errors={"object": "list", "data": [data]})

    @property
    def _begun(self) -> bool:
        """Whether an answer may be kept."""
        path = self.folder / JOURNAL
        return path.exists() and path.stat().st_size > 0

    @property
    def _counts(self) -> RequestCounts:
        total, failed = self.file.total, self.file.failed
        return RequestCounts(total=total, completed=total - self.left - failed, failed=failed)

    async def _read(self) -> bool:
        """Read input and journal; returns whether that was done to its end."""
        most = self.most_rows if self.state.status == "validating" else None
        if not await self._steps(lambda: self.file.check(most), unless=lambda: self.cancelled and not self._begun):
            return self.cancelled and not self.stopping()
        if most is not None and self.left + self.queued() > most:
            message = f"{self.queued():,} requests wait in other batches; with these they are more than {most:,}"
            raise InvalidBatch("too_many_rows", message)
        return await self._steps(self._journal.open)

    def _set(self, **fields: Any) -> None:
        if "status" in fields:
            fields[f"{fields['status']}_at"] = int(self.clock())
        self.state = self.state.model_copy(update=fields)

    async def _save(self) -> None:
        async with self._saving:  # each write holds the newest state
            await in_thread(write_record, self.folder / STATE, self.state)

    async def _change(self, **fields: Any) -> str:
        self._set(**fields)
        await self._patiently(self._save)
        return self.state.status

    async def _steps(self, begin: Callable[[], Iterator[Any]], unless: Callable[[], bool] = lambda: False) -> bool:
        """Do work on files in a thread, step by step, again where the disk was full; returns whether it ended."""

        async def work() -> bool:
            steps, over = begin(), object()
            while await in_thread(next, steps, over) is not over:
                if self.stopping() or unless():
                    return False
            return True

        return await self._patiently(work)

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what writes to the disk, again and again while that is full; UserError, OSError: it fails otherwise."""
        stuck = False
        try:
            while True:
                try:
                    return await work()
                except (UserError, OSError) as error:
                    if not disk_is_full(error):
                        raise
                    if not stuck:
                        stuck = True
                        self._wait_for_room(1)
                    await asyncio.sleep(self.full_pause)
        finally:
            if stuck:
                self._wait_for_room(-1)

    def _wait_for_room(self, change: int) -> None:
        """Count what waits for the disk; the first and the last one make a note."""
        self._stuck += change
        if self._stuck and not self.paused:
            self.paused = "the disk is full: the batch waits, and continues as soon as there is room"
            self.say(f"batch     {self.folder.name}: {self.paused}")
        elif not self._stuck and self.paused:
            self.paused = ""
            self.say(f"batch     {self.folder.name}: there is room on the disk again, the batch continues")

    def _results(self, missing: tuple[str, str]) -> Iterator[None]:
        """Write output and error file in steps, each line of the input in one of them."""
        until = time.monotonic() + STEP
        with (
            replacing(self.folder / OUTPUT) as output,
            replacing(self.folder / ERRORS) as errors,
            (self.folder / JOURNAL).open("rb") as journal,
        ):
            for line in self.file.lines():
                if isinstance(line, int):
                    result = self._journal.read(journal, line)
                else:
                    result = {"number": line.number, **_error(line, *(line.fault or missing))}
                result.pop("requests", None)
                value = {"id": f"batch_req_{result.pop('number')}", **result}
                (errors if failed(value) else output).write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
                if time.monotonic() > until:
                    yield
                    until = time.monotonic() + STEP

    async def _answers(self) -> None:
        """Answer all rows that wait; returns when that is done, or has to end."""
        work = asyncio.create_task(self._feed())
        saved, ends = time.monotonic(), float("inf")
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=LOOK)
                self.report(self.file.total - self.left, self.file.total)
                if self._ending:
                    ends = min(ends, time.monotonic() + GRACE)
                    if not self._active or time.monotonic() > ends:
                        break
                elif time.monotonic() - saved > SAVE and self.state.request_counts != self._counts:
                    saved = time.monotonic()
                    self._set(request_counts=self._counts)
                    with suppress(UserError):  # it is written with the next one
                        await self._save()
            if work.done():
                work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _feed(self) -> None:
        """Begin row after row; those that were refused for a rate wait until all others had their turn."""
        faults: list[BaseException] = []

        def over(task: asyncio.Task[None]) -> None:
            self._active.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                faults.append(error)

        try:
            count, may_begin = 1, True
            while self.left and count and may_begin:
                count, lines = 0, self.file.waiting()
                while may_begin and (some := await in_thread(next, lines, None)) is not None:
                    for line in some:
                        if not (may_begin := await self._place(line, faults)):
                            break
                        task = asyncio.create_task(self._row(line))
                        self._active.add(task)
                        task.add_done_callback(over)
                        count += 1
                while self._active and not faults:
                    await asyncio.wait(self._active, return_when=asyncio.FIRST_COMPLETED)
                if faults:
                    raise faults[0]
        finally:
            for task in tuple(self._active):
                task.cancel()
            await asyncio.gather(*self._active, return_exceptions=True)

    async def _place(self, line: Line, faults: Sequence[BaseException]) -> bool:
        """Wait until a row may begin; returns False where none may any more. Raises what a row has ended with."""
        crowded = False
        try:
            while not self._ending:
                if faults:
                    raise faults[0]
                if time.monotonic() - self._looked > LOOK or crowded:
                    self._looked, disk = time.monotonic(), os.statvfs(self.folder)
                    reserve = min(RESERVE, disk.f_blocks * disk.f_frsize // 16)
                    if (disk.f_bavail * disk.f_frsize < reserve) is not crowded:
                        crowded = not crowded
                        self._wait_for_room(1 if crowded else -1)
                if crowded or self._stuck:
                    await asyncio.sleep(self.full_pause)
                elif len(self._active) >= int(self._throttle.at_once):
                    await asyncio.wait(self._active, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                elif left := self._throttle.left:
                    await asyncio.sleep(min(left, LOOK))
                else:
                    if line.fault is None and self.room is not None:
                        await self.room()
                    return not self._ending
            return False
        finally:
            if crowded:
                self._wait_for_room(-1)

    async def _row(self, line: Line) -> None:
        try:
            result = await self._result(line)
            if result is None or failed(result):
                line.drop()
            names = {"requests": [held.id for held in line.held]} if line.held else {}
            data = encoded(line.number, result | names) if result is not None else b""
        except BaseException as error:  # of our own code: it is this row's error, and no other's
            line.drop()
            if isinstance(error, self.fatal) or not isinstance(error, Exception):
                raise
            if self.stopping():
                return
            if not self._failures:
                message = f"line {line.number}, further lines are not named: {type(error).__name__}: {error!s:.200}"
                self.say(f"batch     {self.folder.name}: the server failed on {message}")
            self._failures += 1
            result = _error(line, "server", f"the server failed on this request ({type(error).__name__})")
            data = encoded(line.number, result)
        if result is not None:
            await self._patiently(lambda: self._journal.add(line, data, wrong=failed(result)))

    async def _result(self, line: Line) -> dict[str, Any] | None:
        """What the journal keeps of a line; None where it is left for later."""
        if line.fault is not None:
            return _error(line, *line.fault)
        for attempt in range(TRIES):
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.longest):
                    body = await self.answer(line)
            except TimeoutError:
                if self.longest is None:
                    raise
                return _error(line, "timeout", f"the answer took longer than {self.longest:,.0f} s")
            except ApiError as error:
                if self.stopping():
                    return None
                wait = seconds_to_wait(error.headers.get("Retry-After"))
                if error.code != NO_QUOTA:
                    if is_busy(error.status, wait):
                        if not self._throttle.refused(began, wait):
                            return None
                    elif error.status in RETRIED and attempt < TRIES - 1:
                        await asyncio.sleep(wait or backoff(attempt, self.pause))
                        continue
                return _response(line, error.status, None, error.body())
            self._throttle.answered()
            return _response(line, 200, body.get("id"), body)
        return None


def _response(line: Line, status: int, id_: Any, body: Any) -> dict[str, Any]:
    response = {"status_code": status, "request_id": id_, "body": body}
    return {"custom_id": line.custom_id, "response": response, "error": None}


def _error(line: Line, code: str, message: str) -> dict[str, Any]:
    return {"custom_id": line.custom_id, "response": None, "error": {"code": code, "message": message}}


def make_batch(folder: Path, endpoint: str, *, seconds: float | None = None, **fields: Any) -> BatchState:
    """Write and return the first state of a batch.

    Args:
        endpoint: that all requests are for; empty: each its own.
        seconds: after which it expires; None: never.
    """
    now = time.time()
    values = {
        "id": folder.name, "object": "batch", "endpoint": endpoint, "errors": None, "status": "validating",
        "created_at": int(now), "expires_at": None if seconds is None else int(now + seconds),
        "request_counts": {"total": 0, "completed": 0, "failed": 0}, **fields,
    }  # fmt: skip
    state = BatchState.model_validate(values)
    write_record(folder / STATE, state)
    return state


def answer_by(gateway: Gateway, caller: Caller, journal: Path, model: str = "") -> Answer:
    """Answers lines by a gateway in the background.

    Args:
        journal: of the batch; the records of answers are stored with its lines.
        model: takes the place of the lines' own; empty: none does.
    """
    journal = journal.absolute()

    async def answer(line: Line) -> dict[str, Any]:
        assert line.body is not None
        line.drop()  # what an attempt has left that failed for another prompt of the line

        def keep(record: StoredRequest) -> None:
            line.held.append(gateway.store.hold(record, journal))

        async def answer_one(request: ApiRequest) -> Whole:
            return await whole(gateway.answer(request, caller, background=True, keep=keep))

        body = {**line.body, "stream": False, **({"model": model} if model else {})}
        most = gateway.config.limits.most_choices
        if line.url == "/v1/completions":
            requests = read.read_completions(body, most)
            return replies.completions_body(requests, [await answer_one(request) for request in requests])
        if line.url == "/v1/responses":
            asked = read.parsed(ResponsesBody, body)
            request = read_responses(asked, await earlier_responses(gateway, asked, caller))
            piece, (completion, *_) = await answer_one(request)
            return responses_body(request, piece, completion)
        request = read.read_chat(body, most)
        return replies.chat_body(request, *await answer_one(request))

    return answer
