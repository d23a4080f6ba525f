"""What a server says on standard error, as JSON Lines for a collector of logs: its notes, and each request at its end.

No text, user or conversation of a request is in a line. A thread writes them, so that no answer waits for their reader;
where that is too slow, lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from tuneloop.core.ids import utc_now
from tuneloop.core.text import json_bytes
from tuneloop.core.units import counted, verb
from tuneloop.records.request import StoredRequest

# What a line has of a request: no error, which may hold words of the prompt; `status` is there.
FIELDS = (
    "id", "key", "model", "release", "adapter", "arm", "tier", "prompt_tokens", "completion_tokens", "ttft_ms",
    "total_ms", "seconds", "usd", "finish",
)  # fmt: skip
_TOPIC = re.compile(r"([a-z-]+) {2,}(.*)", re.DOTALL)  # as in "batch     continues with 2 of an earlier server"


@dataclass
class LogLines:
    """Writes JSON Lines while `writing` is open."""

    out: TextIO  # where to
    most: int = 10_000  # lines that may wait
    dropped: int = 0  # how many were
    _waiting: queue.Queue[dict[str, Any] | None] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = queue.Queue(self.most)

    def say(self, line: str) -> None:
        """A note of the server: its first word is the event, where it stands apart as a heading does."""
        match = _TOPIC.fullmatch(line)
        event, message = match.groups() if match else ("note", line)
        self._put({"time": utc_now(), "event": event, "message": message})

    def ended(self, record: StoredRequest, status: str) -> None:
        """A request that was answered, refused, or left; `status`: `ok`, `cancelled`, or that of HTTP."""
        values = {name: getattr(record, name) for name in FIELDS}
        self._put({"time": record.time, "event": "request", "status": status, **values})

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write what comes until the block ends, warnings of libraries included."""
        thread, handler = threading.Thread(target=self._write, name="lines", daemon=True), _Warnings(self)
        root = logging.getLogger()
        thread.start()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=1)
            thread.join(2)

    def _put(self, value: dict[str, Any]) -> None:
        try:
            self._waiting.put_nowait(value)
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        reported = 0
        with contextlib.suppress(OSError, ValueError):  # its reader has ended
            while (value := self._waiting.get()) is not None:
                if self.dropped != reported:
                    reported, more = self.dropped, self.dropped - reported
                    message = f"{counted(more, 'line')} {verb(more, 'was', 'were')} dropped"
                    self._line({"time": utc_now(), "event": "log", "message": message})
                self._line(value)

    def _line(self, value: dict[str, Any]) -> None:
        self.out.write(json_bytes(value).decode() + "\n")
        self.out.flush()


class _Warnings(logging.Handler):
    """Warnings of libraries, as lines."""

    def __init__(self, lines: LogLines) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Put it among the lines, with its traceback where it has one."""
        self.lines.say(f"{record.levelname.lower()}  {self.format(record)}")
