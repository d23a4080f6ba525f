"""Batches: files of requests that are answered when nobody waits, each exactly once.

A batch is a folder: `input.jsonl`, `batch.json` (its state, as OpenAI's API shows it), `journal.jsonl` (what is done), and
at the end `output.jsonl` and `errors.jsonl`, made from the journal in the order of the input. Whoever finds a folder
whose batch is not over goes on with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.files import read_json, replacing, write_json
from tuneloop.core.ids import uuid7
from tuneloop.core.text import unstorable
from tuneloop.records.completion import Completion
from tuneloop.serve import api_request as read
from tuneloop.serve import replies
from tuneloop.serve.api_request import ApiRequest
from tuneloop.serve.app import whole
from tuneloop.serve.errors import ApiError
from tuneloop.serve.gateway import Caller, Gateway
from tuneloop.serve.journal import Journal

INPUT, STATE, JOURNAL, OUTPUT, ERRORS = "input.jsonl", "batch.json", "journal.jsonl", "output.jsonl", "errors.jsonl"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
OVER = ("completed", "failed", "expired", "cancelled")
_RETRIED = (408, 429, 500, 503, 504)
TRIES, PAUSE = 4, 1.0  # tries of a request whose engine fails, and seconds before the second one


@dataclass(frozen=True)
class Line:
    """A request of a batch.

    Args:
        number: of its line, from 1.
        custom_id: that its client gave it; None: it has none.
        url, body: as OpenAI's batch files have them.
        fault: why it can't be asked: a code and a sentence.
    """

    number: int
    custom_id: str | None
    url: str = ""
    body: dict[str, Any] | None = None
    fault: tuple[str, str] | None = None


Answer = Callable[[Line], Awaitable[dict[str, Any]]]  # the body of a line's answer; raises ApiError


def read_lines(path: Path, endpoint: str = "") -> list[Line]:
    """The requests of a batch file; what is no request, or has the id of an earlier one, has a fault.

    Args:
        endpoint: that all must be for; empty: any.
    """
    found: list[Line] = []
    first: dict[str, int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                found.append(_line(number, raw, endpoint, first))
    return found


def _line(number: int, raw: bytes, endpoint: str, first: dict[str, int]) -> Line:
    try:
        value = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return Line(number, None, fault=("invalid_json_line", f"line {number} is not valid JSON"))
    if why := unstorable(value):
        return Line(number, None, fault=("invalid_json_line", f"line {number} {why}"))
    if not isinstance(value, dict):
        return Line(number, None, fault=("invalid_json_line", f"line {number} is no JSON object"))
    name, body, url = value.get("custom_id"), value.get("body"), value.get("url", endpoint)
    if not isinstance(name, str) or not name:
        return Line(number, None, fault=("missing_custom_id", f"line {number} has no custom_id"))
    if name in first:
        what = f"line {number}: the custom_id {name[:80]!r} stands in line {first[name]} already"
        return Line(number, None, fault=("duplicate_custom_id", what))
    first[name] = number
    if value.get("method", "POST") != "POST" or url not in ENDPOINTS or (endpoint and url != endpoint):
        wanted = endpoint or " or ".join(ENDPOINTS)
        return Line(number, name, fault=("invalid_url", f"line {number}: it must be POST {wanted}"))
    if isinstance(given := value.get("fault"), list) and len(given) == 2:  # of rows that `tuneloop batch` can't read
        return Line(number, name, fault=(str(given[0]), str(given[1])))
    if not isinstance(body, dict):
        return Line(number, name, fault=("invalid_body", f"line {number}: body must be an object"))
    return Line(number, name, url, body)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


# --- doing it ------------------------------------------------------------------------------------


@dataclass
class Batch:
    """A batch at work.

    Args:
        folder: of the batch.
        answer: answers a line.
        rows: that are answered at the same time.
        room: returns when there is room for a further row.
        stopping: whether the process is about to end; rows are left for the next one then.
        clock: seconds since 1970.
    """

    folder: Path
    answer: Answer
    rows: int = 4
    room: Callable[[], Awaitable[None]] | None = None
    stopping: Callable[[], bool] = lambda: False
    report: Callable[[int, int], None] = lambda done, total: None
    clock: Callable[[], float] = time.time
    pause: float = PAUSE
    cancelled: bool = False

    @property
    def state(self) -> dict[str, Any]:
        """What `batch.json` holds."""
        value: dict[str, Any] = read_json(self.folder / STATE)
        return value

    def change(self, **fields: Any) -> dict[str, Any]:
        """Write fields of the state; a status has its time next to it."""
        state = {**self.state, **fields}
        if "status" in fields:
            state[f"{fields['status']}_at"] = int(self.clock())
        write_json(self.folder / STATE, state)
        return state

    async def run(self) -> str:
        """Do what is left; returns the status that it ends with.

        Raises:
            UserError: its files are damaged or can't be written.
        """
        state = self.state
        if state["status"] in OVER:
            return str(state["status"])
        lines = await asyncio.to_thread(read_lines, self.folder / INPUT, state.get("endpoint") or "")
        journal = Journal(self.folder / JOURNAL)
        await asyncio.to_thread(journal.open)
        try:
            if state["status"] == "validating":
                state = self.change(status="in_progress", request_counts=_counts(lines, journal))
            self.cancelled = state["status"] == "cancelling"
            if state["status"] in ("in_progress", "cancelling"):
                await self._rows(lines, journal, state.get("expires_at") or float("inf"))
                if self.stopping():
                    return str(self.state["status"])
            expired = not self.cancelled and len(journal.done) < len(lines)
            self.change(status="finalizing", request_counts=_counts(lines, journal))
            end = "cancelled" if self.cancelled else "expired" if expired else "completed"
            await asyncio.to_thread(_write_results, self.folder, lines, journal, end)
            self.change(status=end, request_counts=_counts(lines, journal))
            return end
        finally:
            journal.close()

    async def _rows(self, lines: Sequence[Line], journal: Journal, until: float) -> None:
        left = iter([line for line in lines if line.number not in journal.done])
        counted = time.monotonic()

        async def work() -> None:
            nonlocal counted
            for line in left:
                if line.fault is None and self.room is not None:
                    await self.room()
                if self.cancelled or self.stopping() or self.clock() >= until:
                    return
                result = await self._result(line)
                if result is None:
                    return
                await journal.add(line.number, result)
                self.report(len(journal.done), len(lines))
                if time.monotonic() - counted > 1.0:
                    counted = time.monotonic()
                    self.change(request_counts=_counts(lines, journal))

        await asyncio.gather(*(work() for _ in range(self.rows)))

    async def _result(self, line: Line) -> dict[str, Any] | None:
        """What the journal keeps of a line; None where the process is about to end."""
        if line.fault is not None:
            code, message = line.fault
            return {"custom_id": line.custom_id, "response": None, "error": {"code": code, "message": message}}
        for attempt in range(TRIES):
            try:
                body = await self.answer(line)
            except ApiError as error:
                if self.stopping():
                    return None
                if error.status in _RETRIED and error.code != "insufficient_quota" and attempt < TRIES - 1:
                    await asyncio.sleep(self.pause * 2**attempt)
                    continue
                response = {"status_code": error.status, "request_id": None, "body": error.body()}
                return {"custom_id": line.custom_id, "response": response, "error": None}
            response = {"status_code": 200, "request_id": body.get("id"), "body": body}
            return {"custom_id": line.custom_id, "response": response, "error": None}
        return None


def failed(result: dict[str, Any]) -> bool:
    """Whether a result belongs into the error file."""
    return result["error"] is not None or result["response"]["status_code"] != 200


def _counts(lines: Sequence[Line], journal: Journal) -> dict[str, int]:
    wrong = sum(map(failed, journal.done.values()))
    return {"total": len(lines), "completed": len(journal.done) - wrong, "failed": wrong}


def _write_results(folder: Path, lines: Sequence[Line], journal: Journal, end: str) -> None:
    """Output and error file, each line of the input in one of them."""
    missing = {
        "expired": ("batch_expired", "the batch's time was over"),
        "cancelled": ("batch_cancelled", "the batch was cancelled"),
    }.get(end, ("", ""))
    with replacing(folder / OUTPUT) as output, replacing(folder / ERRORS) as errors:
        for line in lines:
            found = journal.done.get(line.number) or {
                "custom_id": line.custom_id, "response": None, "error": {"code": missing[0], "message": missing[1]},
            }  # fmt: skip
            value = {"id": f"batch_req_{line.number}", **{k: found[k] for k in ("custom_id", "response", "error")}}
            target = errors if failed(found) else output
            target.write(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def make_batch(folder: Path, endpoint: str, *, seconds: float | None = None, **fields: Any) -> dict[str, Any]:
    """The first state of a batch, written.

    Args:
        endpoint: that all requests are for; empty: each its own.
        seconds: after which it expires; None: never.
        fields: further ones, as `metadata`.
    """
    now = time.time()
    state = {
        "version": 1, "id": folder.name, "object": "batch", "endpoint": endpoint, "errors": None, "status": "validating",
        "created_at": int(now), "expires_at": None if seconds is None else int(now + seconds),
        "request_counts": {"total": 0, "completed": 0, "failed": 0}, **fields,
    }  # fmt: skip
    write_json(folder / STATE, state)
    return state


# --- through the gateway ---------------------------------------------------------------------------


def answer_by(gateway: Gateway, caller: Caller, model: str = "") -> Answer:
    """Answers lines by a gateway, in the background.

    Args:
        caller: whose limits hold.
        model: takes the place of the lines' own.
    """

    async def one(asked: ApiRequest) -> tuple[Any, list[Completion]]:
        return await whole(gateway.answer(asked, caller, background=True))

    async def answer(line: Line) -> dict[str, Any]:
        assert line.body is not None
        body = {**line.body, "stream": False, **({"model": model} if model else {})}
        most = gateway.config.limits.most_choices
        if line.url == "/v1/completions":
            several = read.read_completions(body, most)
            found = [await one(each) for each in several]
            first = found[0][0]
            return replies.completions_body(several, first.model, first.id, [done for _, done in found])
        asked = read.read_chat(body, most) if line.url == "/v1/chat/completions" else read.read_responses(body)
        piece, done = await one(asked)
        if asked.kind == "responses":
            return replies.responses_body(asked, piece.model, piece.id, done[0].text, done[0])
        return replies.chat_body(asked, piece, done)

    return answer


async def file_parts(path: Path, size: int = 1 << 16) -> AsyncIterator[bytes]:
    """A file in parts, read in a thread."""
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, size):
            yield part


def new_id(prefix: str) -> str:
    """An id as OpenAI's: `file-...`, `batch_...`."""
    return prefix + uuid7().replace("-", "")
