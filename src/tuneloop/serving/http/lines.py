"""What a server says on standard error, as JSON Lines for a collector of logs: its own notes, and each request that has ended.

No text, user or conversation of a request stands in a line. A thread writes them, so that no answer waits for whoever
reads them; where that is too slow, lines are dropped, and it is said how many.
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

# What a line tells of a request. Its error is left out: words of the prompt may stand in it; `status` is there.
FIELDS = (
    "id", "key", "model", "release", "adapter", "arm", "tier", "prompt_tokens", "completion_tokens", "ttft_ms",
    "total_ms", "seconds", "usd", "finish",
)  # fmt: skip
_TOPIC = re.compile(r"([a-z-]+) {2,}(.*)", re.DOTALL)  # as in "batch     goes on with 2 of an earlier server"


@dataclass
class LogLines:
    """Writes JSON Lines while `writing` is open.

    Args:
        out: where to.
        most: lines that may wait.
        dropped: how many were.
    """

    out: TextIO
    most: int = 10_000
    dropped: int = 0
    _waiting: queue.Queue[dict[str, Any] | None] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = queue.Queue(self.most)

    def say(self, line: str) -> None:
        """A note of the server: its first word is the event, where it stands apart as a heading does."""
        found = _TOPIC.fullmatch(line)
        event, message = (found[1], found[2]) if found else ("note", line)
        self._put({"time": utc_now(), "event": event, "message": message})

    def ended(self, record: StoredRequest, status: str) -> None:
        """A request that was answered, refused, or left.

        Args:
            status: `ok`, `cancelled`, or that of HTTP.
        """
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
        told = 0
        with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
            while (value := self._waiting.get()) is not None:
                if self.dropped != told:
                    told, more = self.dropped, self.dropped - told
                    self._line(
                        {
                            "time": utc_now(),
                            "event": "log",
                            "message": f"{counted(more, 'line')} {verb(more, 'was', 'were')} dropped",
                        }
                    )
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
