"""What is computed now, in an engine that works on one adapter at a time: awaited answers before background work.

Background work (batches, the tier flex) is done in quanta of a few tokens. Each quantum begins separately: while
nothing else is being answered, or a small share of the time next to it. Quanta of one adapter are computed together;
those of another one have their turn once the first have worked for a while. One piece of a prompt is read at a time:
several would be one long step, for which all requests that come meanwhile would wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

QUANTUM = 0.03  # seconds of background work, as far as whole tokens allow
SHARE = 0.05  # of the time that such work gets where something else is being answered all the time
FAIR_TURN = 0.25  # seconds in which people's answers of one adapter continue while those of another one wait
TURN = 2.0  # seconds in which the quanta of one adapter continue while those of another one wait


@dataclass
class Pace:
    """How many tokens a quantum takes, learned from those before: as many as are computed in `QUANTUM` seconds."""

    least: int  # this and `most`: tokens of a quantum
    most: int
    each: float = 0.0  # seconds of a token; 0: nothing is known yet

    @property
    def tokens(self) -> int:
        """Tokens of the next quantum."""
        return self.least if not self.each else min(max(int(QUANTUM / self.each), self.least), self.most)

    def learn(self, tokens: int, seconds: float) -> None:
        """Take a quantum in."""
        if tokens > 0:
            now = seconds / tokens
            self.each = now if not self.each else 0.8 * self.each + 0.2 * now


@dataclass
class Turns:
    """The order of quanta before one engine. All methods are called from one event loop."""

    concurrent: int = 0  # quanta that write next to answers of the same adapter
    turn: float = TURN  # seconds of an adapter while another one waits
    share: float = SHARE  # of the time, where something else is being answered all the time
    clock: Callable[[], float] = time.monotonic  # seconds
    urgent: Counter[str] = field(default_factory=Counter)
    running: Counter[str] = field(default_factory=Counter)
    _reading: bool = False
    _waiting: list[tuple[str, bool, asyncio.Future[None]]] = field(default_factory=list)
    _rows: Counter[str] = field(default_factory=Counter)
    _turn_of: str = ""
    _since: float = 0.0
    _rest_until: float = 0.0
    _timer: asyncio.TimerHandle | None = None

    # --- answers that are waited for

    def come(self, adapter: str) -> None:
        """An answer is waited for from now on: no further quantum begins but its share."""
        self.urgent[adapter] += 1

    def go(self, adapter: str) -> None:
        """The answer is over."""
        _less(self.urgent, adapter)
        self._next()

    # --- background work

    def row(self, adapter: str, by: int) -> None:
        """Count a row of work in (1) or out (-1)."""
        self._rows[adapter] += by
        if self._rows[adapter] <= 0:
            del self._rows[adapter]
        self._next()

    async def begin(self, adapter: str, *, reads: bool) -> float:
        """Wait until a quantum may be computed; returns when that is. Follow it with `end`.

        Args:
            reads: whether it reads a piece of the prompt, which takes longer than writing.
        """
        if self._may(adapter, reads):
            self._take(adapter, reads)
            return self.clock()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((adapter, reads, future))
        self._next()
        await _granted(future, lambda: self.end(adapter, self.clock(), reads=reads))
        return self.clock()

    def end(self, adapter: str, began: float, *, reads: bool) -> None:
        """A quantum is over that began at some time of the clock."""
        _less(self.running, adapter)
        self._reading = self._reading and not reads
        now = self.clock()
        if self.urgent:
            self._rest_until = max(self._rest_until, now + (now - began) * (1 / self.share - 1))
        self._next()

    def _take(self, adapter: str, reads: bool) -> None:
        if adapter != self._turn_of:
            self._turn_of, self._since = adapter, self.clock()
        self.running[adapter] += 1
        self._reading = self._reading or reads

    def _may(self, adapter: str, reads: bool) -> bool:
        if reads and self._reading:
            return False
        if self.urgent:
            same = not reads and set(self.urgent) == {adapter}
            if same and sum(self.running.values()) < self.concurrent:
                return True
            return not self.running and self.clock() >= self._rest_until
        if adapter == self._turn_of or self._turn_of not in self._rows:
            over = self.clock() - self._since >= self.turn
            others = any(name != adapter and not future.done() for name, _, future in self._waiting)
            return all(name == adapter for name in self.running) and not (adapter == self._turn_of and over and others)
        return not self.running and self.clock() - self._since >= self.turn

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting = [entry for entry in self._waiting if not entry[2].done()]
        for waiter in list(self._waiting):
            adapter, reads, future = waiter
            if self._may(adapter, reads):
                self._waiting.remove(waiter)
                self._take(adapter, reads)
                future.set_result(None)
        if self._waiting and not self.running:
            until = self._rest_until if self.urgent else self._since + self.turn
            delay = max(until - self.clock(), 0.001)
            self._timer = asyncio.get_running_loop().call_later(delay, self._next)


@dataclass
class Fair:
    """Which adapter's answers are computed now, in an engine that never mixes them in a pass: each in its turn.

    Left alone, llama.cpp continues with the adapter of its first slot as long as there are requests for it. All methods
    are called from one event loop.
    """

    turn: float = FAIR_TURN  # seconds that an adapter has while another one waits
    clock: Callable[[], float] = time.monotonic  # seconds
    _now: str = ""
    _since: float = 0.0
    _running: int = 0
    _waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)

    async def enter(self, adapter: str) -> None:
        """Wait for the adapter's turn. Follow it with `leave`."""
        if not self._running or (adapter == self._now and not self.over(adapter)):
            self._take(adapter)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((adapter, future))
        await _granted(future, self.leave)

    def leave(self) -> None:
        """An answer is over, or makes room."""
        self._running -= 1
        self._waiting = [waiter for waiter in self._waiting if not waiter[1].done()]
        if self._running or not self._waiting:
            return
        adapter = self._waiting[0][0]
        for name, future in self._waiting:
            if name == adapter:
                self._take(adapter)
                future.set_result(None)

    def over(self, adapter: str) -> bool:
        """Whether answers of this adapter are to make room: its turn is over, and another one waits."""
        waits = any(name != adapter and not future.done() for name, future in self._waiting)
        return waits and self.clock() - self._since >= self.turn

    def _take(self, adapter: str) -> None:
        if not self._running:
            self._now, self._since = adapter, self.clock()
        self._running += 1


async def _granted(future: asyncio.Future[None], undo: Callable[[], None]) -> None:
    """Wait for a turn or a slot, and give it back where this is cancelled after it was granted."""
    try:
        await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled():
            undo()
        raise


def _less(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if counter[name] <= 0:
        del counter[name]


@dataclass
class Slots:
    """Which slot of the engine computes a request: one that has read the longest beginning of it under its adapter."""

    numbers: Sequence[int]  # of the slots
    _free: list[int] = field(default_factory=list)  # the one that rests longest first
    _contents: dict[int, tuple[str, Sequence[int]]] = field(default_factory=dict)
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._free = list(self.numbers)

    async def take(self, adapter: str, ids: Sequence[int]) -> int:
        """Wait for a free slot, in the order of the requests."""
        while not self._free or any(not waiter.done() for waiter in self._waiting):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await _granted(future, self._wake)
            if self._free:
                break
        best, longest = self._free[0], 0
        for slot in self._free:
            name, content = self._contents.get(slot, ("", ()))
            if name == adapter and (common := shared_beginning(content, ids)) > longest:
                best, longest = slot, common
        self._free.remove(best)
        return best

    def give(self, slot: int, adapter: str, ids: Sequence[int]) -> None:
        """Give a slot back, with what it has read."""
        self._contents[slot] = adapter, ids
        self._free.append(slot)
        self._wake()

    def _wake(self) -> None:
        self._waiting = [waiter for waiter in self._waiting if not waiter.done()]
        if self._waiting and self._free:
            self._waiting.pop(0).set_result(None)


def shared_beginning(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two texts begin with alike; halved again and again, since slices are compared quickly."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if tuple(a[low:middle]) == tuple(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
