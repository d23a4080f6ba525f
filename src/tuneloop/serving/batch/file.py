"""The requests of a batch file, read as they are needed: what stays in memory is nine bytes a line.

A line that cannot be asked is a fault of that line alone, with a code and a sentence.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.json_schema import MOST_DEPTH, too_deep

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MOST_BYTES = 10_000_000  # of a line
MOST_ID = 4096  # characters of a custom_id: the path of a document may be so long
STEP = 0.05  # seconds of a step of work on files
AT_ONCE, AT_ONCE_BYTES = 64, 1 << 20  # lines, and bytes, that are read ahead

# What a line is. An answer is an answer or a refusal that the journal holds.
WAITING, ANSWERED, REFUSED, FAULTY, REPEATED, BLANK = range(6)


class InvalidBatch(Exception):
    """A file that is no batch at all.

    Args:
        code: a word that programs can test.
        message: what is wrong.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


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


@dataclass
class BatchFile:
    """A batch file, and what has become of each of its lines.

    Args:
        endpoint: that all requests must be for; empty: any.
        most_bytes: of a line; a longer one is a fault.
        states: of each line, by its number; that of line 0 means nothing.
        places: where the journal holds the answer of a line; of a line whose `custom_id` is used before, the number of
            the line that has it.
        counts: of lines in each state.
    """

    path: Path
    endpoint: str = ""
    most_bytes: int = MOST_BYTES
    states: bytearray = field(default_factory=lambda: bytearray([BLANK]))
    places: array[int] = field(default_factory=lambda: array("Q", [0]))
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 1])

    @property
    def total(self) -> int:
        """Requests, those with a fault included."""
        return len(self.states) - self.counts[BLANK]

    @property
    def failed(self) -> int:
        """Requests that have an error."""
        return self.counts[REFUSED] + self.counts[FAULTY] + self.counts[REPEATED]

    def set(self, number: int, state: int, place: int = 0) -> None:
        """Note what has become of a line; IndexError: there is no such line."""
        if not 0 < number < len(self.states):
            raise IndexError(number)
        self.counts[self.states[number]] -= 1
        self.counts[state] += 1
        self.states[number], self.places[number] = state, place

    def forget_answers(self) -> None:
        """Let all lines with an answer wait again."""
        for number, state in enumerate(self.states):
            if state in (ANSWERED, REFUSED):
                self.set(number, WAITING)

    # --- work in steps, each of about `STEP` seconds

    def check(self, most: int | None = None) -> Iterator[None]:
        """Look at each line.

        Args:
            most: lines that the file may have; None: any number.

        Raises:
            InvalidBatch: it has more of them, or no request.
            UserError: it can't be read.
        """
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
        made: list[Line] = []
        size, until = 0, time.monotonic() + STEP
        for number, raw in self._raw():
            if number < len(self.states) and self.states[number] == WAITING:
                made.append(self._line(number, raw))
                size += len(raw or b"")
            if len(made) >= AT_ONCE or size >= AT_ONCE_BYTES or time.monotonic() > until:
                yield made
                made, size, until = [], 0, time.monotonic() + STEP
        yield made

    def lines(self) -> Iterator[Line | int]:
        """All requests in order: the number of one with an answer, else the line itself, a repeated one with its fault."""
        for number, raw in self._raw():
            state = self.states[number] if number < len(self.states) else BLANK
            if state in (ANSWERED, REFUSED):
                yield number
            elif state != BLANK:
                line = self._line(number, raw)
                if state == REPEATED:
                    what = f"line {number}: the custom_id {str(line.custom_id)[:80]!r} is that of line {self.places[number]}"
                    line = Line(number, None, fault=("duplicate_custom_id", what))
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
        try:
            return self._parsed(number, raw)
        except Exception as error:  # a fault of ours must not end the other lines
            return Line(number, None, fault=("server", f"line {number} can't be read ({type(error).__name__})"))

    def _parsed(self, number: int, raw: bytes | None) -> Line:
        if raw is None:
            what = f"line {number} is longer than {self.most_bytes / 1e6:g} MB"
            return Line(number, None, fault=("line_too_long", what))
        try:  # as bodies of requests are read: strict, and no deeper than can be written again
            value = orjson.loads(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
            if too_deep(raw, value):
                raise ValueError(f"it is nested in more than {MOST_DEPTH} levels")
        except ValueError as error:
            what = f"line {number} is not valid JSON: {str(error).partition(': line ')[0]}"
            return Line(number, _id_of(raw), fault=("invalid_json_line", what[:300]))
        if not isinstance(value, dict):
            return Line(number, None, fault=("invalid_json_line", f"line {number} is no JSON object"))
        name, body, url = value.get("custom_id"), value.get("body"), value.get("url", self.endpoint)
        if not isinstance(name, str) or not name:
            return Line(number, None, fault=("missing_custom_id", f"line {number} has no custom_id"))
        if len(name) > MOST_ID:
            what = f"line {number}: custom_id has {len(name):,} characters, and {MOST_ID:,} are allowed"
            return Line(number, None, fault=("invalid_custom_id", what))
        if value.get("method", "POST") != "POST" or url not in ENDPOINTS or (self.endpoint and url != self.endpoint):
            wanted = self.endpoint or " or ".join(ENDPOINTS)
            return Line(number, name, fault=("invalid_url", f"line {number}: it must be POST {wanted}"))
        if (
            isinstance(given := value.get("fault"), list) and len(given) == 2
        ):  # of rows that `tuneloop batch` can't read
            return Line(number, name, fault=(str(given[0]), str(given[1])))
        if not isinstance(body, dict):
            return Line(number, name, fault=("invalid_body", f"line {number}: body must be an object"))
        return Line(number, name, url, body)

    def _mark_repeated(self, ids: array[int]) -> None:
        """Find the lines whose `custom_id` an earlier line has."""
        if not any_twice(ids):
            return
        import numpy as np

        hashes = np.frombuffer(ids, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
        first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        for at in np.flatnonzero(~new & (ordered != 0)):
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
        name = json.loads(raw.decode("utf-8", "replace")).get("custom_id")
        if isinstance(name, str) and 0 < len(name) <= MOST_ID and name.encode():
            return name
    return None
