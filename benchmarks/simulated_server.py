"""A server on paper: the admission that serves, before an engine that only counts time.

`VirtualLoop` is an event loop whose clock jumps to the next event, so that the very code of admission and scheduling runs
in it as it does in a server, only faster. `SimulatedEngine` computes as llama.cpp does: each step reads all prompts that
have come, as far as a batch holds them, and writes a token in each row that is read; it takes longer by each token in it.
What gives way is computed in quanta, by the rules of `Turns`. What a step costs is measured on a real engine that has
nothing else to do (`measured_costs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tuneloop.inference.priority import QUANTUM, SHARE
from tuneloop.inference.request import Request

T = TypeVar("T")
BATCH = 2048  # tokens that llama.cpp takes in a step
LEAST_READ, MOST_READ, MOST_WRITTEN = 8, 512, 32  # tokens of a quantum, as in `engines.llamacpp`


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: the time to the next event is added to the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will happen")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next event."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Seconds of the simulated clock."""
        return self._jumping.now


def simulate(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run something in simulated time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


# --- what things cost ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Milliseconds of an engine.

    Args:
        prompt: until a request is in a step: sending, taking a slot. Others are computed meanwhile.
        read: of each token that is read.
        step: of a step, whatever is in it.
        row: of each row that gets a token in a step, the one behind its prompt included.
        again: of a step for each quantum that begins in it.
    """

    prompt: float
    read: float
    step: float
    row: float
    again: float = 0.0

    def seconds(self, read: int, written: int, rows: float = 1.0) -> float:
        """Seconds of the engine for tokens that are read and written.

        Args:
            rows: that are written together on average.
        """
        return (self.read * read + written * (self.row + self.step / max(rows, 1.0))) / 1000


@dataclass(frozen=True)
class Timed:
    """A request that was answered by itself, or several equal ones together: milliseconds to the first token and to the end."""

    rows: int
    prompt_tokens: int
    tokens: int
    first_ms: float
    end_ms: float


def measured_costs(found: Sequence[Timed]) -> Costs:
    """Costs that explain best what an idle engine took, by least squares of relative errors with no negative cost.

    The first token takes `prompt + step + row + read * tokens`, each further one of several rows `step + row * rows`. When the
    first tokens of several come is left out: the first step has those alone that have come by then.

    Raises:
        ValueError: fewer than four measurements.
    """
    import numpy
    from scipy.optimize import nnls

    if len(found) < 4:
        raise ValueError("fewer than four measurements: nothing can be fitted")
    rows, wanted = [], []
    for match in found:
        if match.rows == 1:
            rows.append([1.0, float(match.prompt_tokens), 1.0, 1.0])
            wanted.append(match.first_ms)
        if match.tokens > 1:
            rows.append([0.0, 0.0, 1.0, float(match.rows)])
            wanted.append((match.end_ms - match.first_ms) / (match.tokens - 1))
    scale = 1 / numpy.maximum(numpy.array(wanted), 1e-3)
    costs, _ = nnls(numpy.array(rows) * scale[:, None], numpy.array(wanted) * scale)
    return Costs(*(float(x) for x in costs))


# --- the engine ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    request: Request
    length: int
    unread: int
    ready: float  # of the clock: from then on it can be in a step
    written: int = 0
    quantum: int = 0  # tokens that it may still write, where it gives way
    gone: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class SimulatedEngine:
    """An engine that takes the time of a real one and writes nothing. It runs in a `VirtualLoop`.

    Args:
        costs: of prompts and steps.
        slots: requests that are computed together.
        giving: rows that give way and are computed together.
        grain: steps that are simulated at once, where nothing changes meanwhile; more are simulated faster.
        gives_way: whether it computes in quanta what gives way.
    """

    costs: Costs
    slots: int = 16
    giving: int = 4
    grain: int = 1
    gives_way: bool = True
    busy: float = 0.0
    read: int = 0
    written: int = 0
    _urgent: list[_Row] = field(default_factory=list)
    _patient: list[_Row] = field(default_factory=list)
    _work: asyncio.Task[None] | None = None
    _come: asyncio.Event = field(default_factory=asyncio.Event)
    _rest_until: float = 0.0
    _reader: _Row | None = None  # whose turn it is to read a piece of its prompt
    _begun: int = 0  # quanta that begin in the next step

    @property
    def load_ms(self) -> float:
        """Milliseconds of the work that people wait for."""
        costs = self.costs
        return sum(
            costs.read * row.unread + (row.length - row.written) * (costs.row + costs.step / max(len(self._urgent), 1))
            for row in self._urgent
        )

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        """The number of tokens that are written, as they come; at the end all of `max_new_tokens`."""
        row = _Row(request, request.max_new_tokens, len(request.ids), self._now() + self.costs.prompt / 1000)
        (self._patient if request.gives_way and self.gives_way else self._urgent).append(row)
        self._come.set()
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._compute())
        told = 0
        try:
            while told < row.length:
                await row.news.wait()
                row.news.clear()
                if row.written > told:
                    told = row.written
                    yield told
        finally:
            row.gone = True

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _compute(self) -> None:
        while True:
            self._urgent = [row for row in self._urgent if not row.gone and row.written < row.length]
            self._patient = [row for row in self._patient if not row.gone and row.written < row.length]
            if not self._urgent and not self._patient:
                return
            rows = [row for row in self._urgent[: self.slots] if row.ready <= self._now()]
            work = self._batch(rows) + self._quanta()
            if work:
                await self._step(work)
            else:
                await self._until_somebody_is_ready()

    async def _until_somebody_is_ready(self) -> None:
        self._come.clear()
        times = [row.ready for row in (*self._urgent[: self.slots], *self._patient[: self.giving])]
        until = min((time for time in times if time > self._now()), default=self._rest_until)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._come.wait(), max(until - self._now(), 1e-6))

    def _batch(self, rows: Sequence[_Row]) -> list[tuple[_Row, int]]:
        """Rows that people wait for, each with the tokens of its prompt that a step reads; 0: it writes."""
        room, found = BATCH, []
        for row in rows:
            part = min(row.unread, room)
            room -= part
            if part or not row.unread:
                found.append((row, part))
        return found

    def _quanta(self) -> list[tuple[_Row, int]]:
        """Rows that give way and may be in this step, as `Turns` lets their quanta begin."""
        now, found = self._now(), []
        rows = [row for row in self._patient[: self.giving] if row.ready <= now]
        reading = [row for row in rows if row.unread and not row.quantum]
        item = self.costs.step + self.costs.row * max(len(rows), 1)
        for row in rows:
            if row.unread:
                continue
            if not row.quantum:
                row.quantum = min(max(int(QUANTUM * 1000 / max(item, 1e-6)), 1), MOST_WRITTEN)
                self._begun += 1
            found.append((row, 0))
        row = self._reader
        if row is None or row.gone:
            self._reader = None
            # While others are answered, pieces of prompts wait.
            if reading and not (self._urgent and (found or now < self._rest_until)):
                self._reader = reading[0]
                self._reader.ready = now + self.costs.prompt / 1000  # it is sent now, and nobody else reads meanwhile
        elif row.ready <= now:
            piece = int(QUANTUM * 1000 / max(self.costs.read, 1e-6))
            found.append((row, min(max(piece, LEAST_READ), MOST_READ, row.unread)))
            self._begun += 1
        return found

    async def _step(self, work: Sequence[tuple[_Row, int]]) -> None:
        """Compute a step, or several equal ones."""
        read = sum(part for _, part in work)
        writing = [row for row, part in work if not part]
        steps = 1
        if not read and not any(row.quantum for row in writing):
            steps = max(min(self.grain, min(row.length - row.written for row in writing)), 1)
        ends = sum(
            part == row.unread for row, part in work if part
        )  # prompts that are read now, and their first tokens
        ms = steps * (self.costs.step + self.costs.row * (len(writing) + ends)) + self.costs.read * read
        ms += self.costs.again * self._begun
        self._begun = 0
        self.busy += ms / 1000
        await asyncio.sleep(ms / 1000)
        self.read += read
        for row, part in work:
            row.unread -= part
            if not row.unread:
                self._write(row, 1 if part else steps)
            if row in self._patient:
                self._after_quantum(row, part, ms)

    def _after_quantum(self, row: _Row, part: int, ms: float) -> None:
        """A row that gives way is asked again for its next quantum, and a piece of a prompt beside others has its share."""
        row.quantum = max(row.quantum - 1, 0)
        if part:
            self._reader = None
        if part or not row.quantum:
            sent = 0.0 if row.unread else self.costs.prompt  # a piece of a prompt is sent when it has its turn
            row.ready = self._now() + sent / 1000
        if part and self._urgent:
            self._rest_until = self._now() + ms / 1000 * (1 / SHARE - 1)

    def _write(self, row: _Row, tokens: int) -> None:
        row.written += tokens
        self.written += tokens
        row.news.set()
