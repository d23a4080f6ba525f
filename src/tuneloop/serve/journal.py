"""What a batch has done: a line for each request that is over, on the disk before it counts.

The journal survives the death of its process at any moment. A line that was cut is dropped when it is opened again; what
stands in a whole line is never done again. Lines are synced in groups: those that end while a sync runs share the next.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk


@dataclass
class Journal:
    """An append-only file of JSON lines, each with the number of its request.

    Args:
        path: of the file.
        done: number of a request -> its line.
    """

    path: Path
    done: dict[int, dict[str, Any]] = field(default_factory=dict)
    _descriptor: int = -1
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)
    _syncing: bool = False

    def open(self) -> None:
        """Read what is there, drop a line that was cut, and open the file to append.

        Raises:
            UserError: it can't be read or written, or a line in its middle is damaged.
        """
        with user_errors_of_the_disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            raw = self.path.read_bytes() if self.path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            for line in whole.splitlines():
                try:
                    value = json.loads(line)
                    self.done[int(value["number"])] = value
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        "The journal of a batch is damaged", where=str(self.path), next_step="delete it to begin again"
                    ) from None
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.ftruncate(self._descriptor, len(whole))

    async def add(self, number: int, value: dict[str, Any]) -> None:
        """Append a request's result; it is on the disk when this returns.

        Raises:
            OSError: the disk is full.
        """
        line = {"number": number, **value}
        data = json.dumps(line, ensure_ascii=True).encode() + b"\n"
        written = os.write(self._descriptor, data)
        if written != len(data):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError("the disk is full")
        self.done[number] = line
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._syncing:
            self._syncing = True
            try:
                while self._waiting:
                    group, self._waiting = self._waiting, []
                    await asyncio.shield(asyncio.to_thread(os.fsync, self._descriptor))
                    for each in group:
                        if not each.done():
                            each.set_result(None)
            finally:
                self._syncing = False
        await future

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
