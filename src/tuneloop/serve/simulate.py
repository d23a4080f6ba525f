"""A server on paper: the admission that serves, before an engine that only counts time.

`VirtualLoop` is an event loop whose clock jumps to the next event, so that the very code of admission and scheduling runs
in it as it does in a server, only faster. `SimulatedEngine` computes as llama.cpp does: prompts are read one after the other, then
all who are being answered get a token in each step. What gives way is computed in quanta. What a prompt and a step cost is
fitted to the log of real minutes (`fit_costs`).
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tuneloop.inference.pace import QUANTUM, SHARE
from tuneloop.inference.request import Request

T = TypeVar("T")


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
        prompt: of a prompt, whatever its length.
        read: of each token that is read.
        step: of a step that writes a token in each row.
        row: of each row in a step.
    """

    prompt: float
    read: float
    step: float
    row: float

    def seconds(self, read: int, written: int, rows: float = 1.0) -> float:
        """Seconds of the engine for tokens that are read and written.

        Args:
            rows: that are written together on average.
        """
        return (self.prompt + self.read * read + written * (self.row + self.step / max(rows, 1.0))) / 1000


@dataclass(frozen=True)
class Logged:
    """A request that was answered: when, in seconds of one clock, and how many tokens."""

    started: float
    first: float
    end: float
    prompt_tokens: int
    tokens: int


def fit_costs(log: Sequence[Logged]) -> Costs:
    """Costs that explain a log best, by least squares with no negative cost.

    Of each request two times are explained: to its first token, by the prompts that were read meanwhile, its own
    included, and from there to its end, by its tokens, those who were being written meanwhile, and the prompts in between.

    Raises:
        ValueError: fewer than four requests.
    """
    import numpy
    from scipy.optimize import nnls

    if len(log) < 4:
        raise ValueError("fewer than four requests: nothing can be fitted")
    rows, wanted = [], []
    for one in log:
        own = max(one.first - one.started, 1e-9)
        row = [1.0, float(one.prompt_tokens), 0.0, 0.0]
        for other in log:
            if other is not one:
                share = _overlap(other.started, other.first, one.started, one.first) / max(
                    other.first - other.started, 1e-9
                )
                row[0] += share
                row[1] += share * other.prompt_tokens
        scale = 1 / max(own, 0.05)
        rows.append([scale * x for x in row])
        wanted.append(scale * 1000 * own)
        if one.tokens > 1 and one.end > one.first:
            beside = [0.0, 0.0, float(one.tokens - 1), float(one.tokens - 1)]
            for other in log:
                if other is not one:
                    share = _overlap(other.started, other.first, one.first, one.end) / max(
                        other.first - other.started, 1e-9
                    )
                    beside[0] += share
                    beside[1] += share * other.prompt_tokens
                    beside[3] += (
                        (one.tokens - 1) * _overlap(other.first, other.end, one.first, one.end) / (one.end - one.first)
                    )
            scale = 1 / max(one.end - one.first, 0.05)
            rows.append([scale * x for x in beside])
            wanted.append(scale * 1000 * (one.end - one.first))
    found, _ = nnls(numpy.array(rows), numpy.array(wanted))
    return Costs(*(float(x) for x in found))


def _overlap(a: float, b: float, c: float, d: float) -> float:
    return max(min(b, d) - max(a, c), 0.0)


# --- the engine ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Row:
    request: Request
    length: int
    unread: int
    written: int = 0
    gone: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class SimulatedEngine:
    """An engine that takes the time of a real one and writes nothing. It runs in a `VirtualLoop`.

    Args:
        costs: of prompts and steps.
        slots: requests that are computed together.
        giving: rows that give way and are computed together.
        grain: tokens of a step at most, where nothing changes meanwhile; larger ones are simulated faster.
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
    _patient: deque[_Row] = field(default_factory=deque)
    _work: asyncio.Task[None] | None = None
    _owed: float = 0.0

    @property
    def load_ms(self) -> float:
        """Milliseconds of the work that people wait for."""
        costs = self.costs
        return sum(
            (costs.prompt + costs.read * row.unread if row.unread else 0.0)
            + (row.length - row.written) * (costs.row + costs.step / max(len(self._urgent), 1))
            for row in self._urgent
        )

    async def stream(self, request: Request) -> AsyncGenerator[int, None]:
        """The number of tokens that are written, as they come; at the end all of `max_new_tokens`."""
        row = _Row(request, request.max_new_tokens, len(request.ids))
        if request.gives_way and self.gives_way:
            self._patient.append(row)
        else:
            self._urgent.append(row)
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

    async def _compute(self) -> None:
        while True:
            self._urgent = [row for row in self._urgent if not row.gone and row.written < row.length]
            self._patient = deque(row for row in self._patient if not row.gone and row.written < row.length)
            if self._urgent and not (self._patient and self._owed >= QUANTUM):
                began = self.busy
                await self._answer()
                self._owed += SHARE * (self.busy - began) if self._patient else 0.0
            elif self._patient:
                await self._quantum()
                self._owed = 0.0
            else:
                return

    async def _spend(self, ms: float) -> None:
        self.busy += ms / 1000
        await asyncio.sleep(ms / 1000)

    async def _answer(self) -> None:
        """Read a prompt, or write a step of all who wait, with what gives way alongside."""
        unread = next((row for row in self._urgent[: self.slots] if row.unread), None)
        if unread is not None:
            await self._spend(self.costs.prompt + self.costs.read * unread.unread)
            self.read += unread.unread
            unread.unread = 0
            self._write([unread], 1)
            return
        rows = self._urgent[: self.slots]
        rows += [row for row in list(self._patient)[: self.giving] if not row.unread]
        await self._steps(rows, self.grain)

    async def _quantum(self) -> None:
        """A piece of a prompt, or a few tokens."""
        rows = list(self._patient)[: self.giving]
        unread = next((row for row in rows if row.unread), None)
        if unread is not None:
            piece = min(max(int(QUANTUM * 1000 / max(self.costs.read, 1e-6)), 32), 512, unread.unread)
            last = piece == unread.unread
            await self._spend(self.costs.read * piece + (self.costs.prompt if last else 0.0))
            self.read += piece
            unread.unread -= piece
            if last:
                self._write([unread], 1)
            return
        each = self.costs.step + self.costs.row * len(rows)
        await self._steps(rows, max(int(QUANTUM * 1000 / max(each, 1e-6)), 1))

    async def _steps(self, rows: Sequence[_Row], most: int) -> None:
        steps = max(min(most, min(row.length - row.written for row in rows)), 1)
        await self._spend(steps * (self.costs.step + self.costs.row * len(rows)))
        self._write(rows, steps)

    def _write(self, rows: Sequence[_Row], tokens: int) -> None:
        for row in rows:
            row.written += tokens
            self.written += tokens
            row.news.set()
