"""What a batch has done: a line for each request that is over, on the disk before it counts.

What stands in a whole line is never done again. Lines are written and synced in groups: those that end while a sync runs
share the next. A group that does not fit on the disk is taken back as a whole; see `core.journal`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.journal import JournalFile
from tuneloop.serving.batch.file import ANSWERED, REFUSED, BatchFile

T = TypeVar("T")


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads of their own: work on large files must not take those in which prompts are made. A fork has none of them."""
    return ThreadPoolExecutor(4, f"batch-{process}")


async def in_thread(work: Callable[..., T], *given: Any) -> T:
    """Do short work on files in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads(os.getpid()), work, *given)


def failed(result: dict[str, Any]) -> bool:
    """Whether a result belongs into the error file."""
    return result["error"] is not None or result["response"]["status_code"] != 200


def encoded(number: int, result: dict[str, Any]) -> bytes:
    """A line of a journal.

    Raises:
        TypeError: the result is no JSON.
    """
    return orjson.dumps({"number": number, **result}, option=orjson.OPT_APPEND_NEWLINE)


@dataclass
class Journal:
    """An append-only file of JSON lines, each with the number of its request.

    Args:
        path: of the file.
        rows: notes what each line holds.
    """

    path: Path
    rows: BatchFile
    _file: JournalFile = field(init=False)
    _waiting: list[tuple[int, int, bytes, asyncio.Future[None]]] = field(default_factory=list)
    _writing: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        taken = UserError(
            "Another process is doing this batch", where=str(self.path.parent), next_step="wait for it"
        )  # fmt: skip
        self._file = JournalFile(self.path, taken)

    def open(self) -> Iterator[None]:
        """Take the file for this process and read it in steps; a last line that was cut is dropped.

        Raises:
            UserError: it can't be read or written, another process has it, or a line in its middle is damaged.
        """
        for count, raw in enumerate(self._file.open(), 1):
            try:
                value = orjson.loads(raw)
                self.rows.set(value["number"], REFUSED if failed(value) else ANSWERED, self._file.end)
            except (ValueError, LookupError, TypeError):
                raise UserError(
                    f"The journal of a batch is damaged in line {count}", where=str(self.path),
                    next_step="delete it to begin that batch again",
                ) from None  # fmt: skip
            if count % 100 == 0:
                yield

    async def add(self, number: int, data: bytes, *, wrong: bool) -> None:
        """Append a request's line, from `encoded`; it is on the disk when this returns.

        Args:
            wrong: whether the result is an error.

        Raises:
            OSError: the disk is full, or can't be written.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((number, REFUSED if wrong else ANSWERED, data, future))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await future

    async def close(self) -> None:
        """Close the file once what is being written is written."""
        if self._writing is not None:
            await self._writing
        self._file.close()

    def read(self, file: Any, number: int) -> dict[str, Any]:
        """The result of a request.

        Args:
            file: the journal, open to read.

        Raises:
            UserError: it does not stand where it was written.
        """
        file.seek(self.rows.places[number])
        try:
            value: dict[str, Any] = orjson.loads(file.readline())
            if value["number"] == number:
                return value
        except (ValueError, LookupError, TypeError):
            pass
        raise UserError("The journal of a batch was changed while it was at work", where=str(self.path))

    # --- inside

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                place = await in_thread(self._append, b"".join(data for _, _, data, _ in group))
            except Exception as error:
                for *_, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            for number, state, data, future in group:
                self.rows.set(number, state, place)
                place += len(data)
                if not future.done():
                    future.set_result(None)

    def _append(self, data: bytes) -> int:
        """Write at the end; returns where that is. The file is read again where another program has written a new one in its
        place, as the erasure of a person does."""
        if self._file.was_changed:
            self.rows.forget_answers()
            for _ in self.open():
                pass
        return self._file.append(data)
