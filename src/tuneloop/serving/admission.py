"""Who is answered when, and who is refused at once because it would take too long.

The engine answers so many requests at a time (slots); further ones wait. Each has a due time: its arrival plus its
deadline times the patience of its class, minus the time that it will take, plus the time that the waiting requests of the
same key will take. The earliest due time goes first. So a more urgent class goes first, within it what has least slack,
no key holds up the others, and a request that has waited long enough is overtaken by nobody.

A request whose predicted time to the first token passes its deadline, because others are before it, is refused. One that
would take longer even alone is not: waiting would not help it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tuneloop.core.units import counted, verb
from tuneloop.serving.http.errors import ApiError
from tuneloop.serving.service_time import ServiceTime

LEARN_EVERY = 0.005  # seconds between two requests of a model that its times are learned from
PATIENCE = {"high": 0.25, "normal": 1.0, "low": 8.0, "flex": 60.0}  # class -> deadlines after which it is due


@dataclass
class Work:
    """A request that wants to be answered.

    Args:
        model: whose times are looked up.
        prompt_tokens, longest: of the prompt and of the longest answer.
        key: whose it is; empty: nobody's.
        rank: a word of `PATIENCE`.
        deadline_ms: to the first token.
        refusable: whether it is refused where its deadline can't be met.
    """

    model: str
    prompt_tokens: int
    longest: int
    key: str = ""
    rank: str = "normal"
    deadline_ms: float = 500.0
    refusable: bool = True


@dataclass
class Pass:
    """A request that has been let in; give it back with `Admission.leave`.

    Args:
        arrived, started: of the clock.
        active: requests that were being answered when it started, itself included.
        ahead: tokens of other prompts that were still to be read then.
        reading: whether its own prompt is.
        predicted_ms: to the first token, from its arrival; 0: nothing was known.
    """

    work: Work
    arrived: float
    started: float = 0.0
    active: int = 1
    ahead: int = 0
    reading: bool = True
    predicted_ms: float = 0.0
    total_ms: float = 0.0
    left: bool = False


@dataclass
class Tally:
    """What admission has done, for `/metrics` and `tuneloop top`."""

    accepted: int = 0
    refused: int = 0
    downgraded: int = 0
    on_time: int = 0
    late: int = 0


@dataclass
class Admission:
    """The queue before an engine. All methods are called from one event loop.

    Args:
        slots: requests that are answered at a time.
        most_waiting: requests that may wait.
        refuse: whether requests are refused that can't meet their deadline; else they wait.
        clock: seconds.
        gap_ms: between two that leave while all slots are taken, on average.
    """

    slots: int
    most_waiting: int = 512
    refuse: bool = True
    clock: Callable[[], float] = time.monotonic
    tally: Tally = field(default_factory=Tally)
    models: dict[str, ServiceTime] = field(default_factory=dict)
    active: dict[int, Pass] = field(default_factory=dict)
    closed: bool = False
    giving_way: int = 0
    gap_ms: float = 0.0
    _full_since: float = 0.0
    _queue: list[tuple[float, int, Pass, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0
    _waiting: Counter[str] = field(default_factory=Counter)
    _idle: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(self._waiting.values())

    def times(self, model: str) -> ServiceTime:
        """What is known of a model's times."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ServiceTime()
        return found

    # --- in and out

    async def enter(self, work: Work) -> Pass:
        """Wait until the engine has room.

        Raises:
            ApiError: the server is stopping, too many wait, or the deadline can't be met.
        """
        if self.closed:
            raise ApiError(503, "The server is stopping", code="stopping", headers={"Retry-After": "5"})
        found = Pass(work, self.clock())
        self._promise(found)
        if len(self.active) < self.slots and not self.waiting:
            self._start(found)
            return found
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._queue, (self._due(found), self._count, found, future))
        self._waiting[work.key] += 1
        self._next()  # those that seemed to wait may be clients that have left
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let in at the same moment
                self.leave(found, 0)
            else:
                future.cancel()
                self._gone(work.key)
            raise
        if self.closed and not found.started:
            raise ApiError(503, "The server is stopping", code="stopping", headers={"Retry-After": "5"})
        return found

    @property
    def _unread(self) -> int:
        """Tokens of prompts at work whose first token has not come."""
        return sum(each.work.prompt_tokens for each in self.active.values() if each.reading)

    def downgrade(self) -> None:
        """Note that a request that was refused for its deadline is answered in the tier flex instead."""
        self.tally.refused -= 1
        self.tally.downgraded += 1

    def answered(self, found: Pass) -> None:
        """Note that the first token of a request has come: its prompt is before nobody any more."""
        found.reading = False

    def leave(self, found: Pass, tokens: int, first_ms: float | None = None, *, whole: bool = False) -> None:
        """Give a place back. A second call does nothing.

        Args:
            tokens: written.
            first_ms: from the start to the first token; None: there was none.
            whole: it was answered to its end, so that it teaches how long requests take.
        """
        if found.left:
            return
        found.left = True
        if found.started and len(self.active) >= self.slots:
            gap = (self.clock() - self._full_since) * 1000
            self.gap_ms = gap if not self.gap_ms else 0.9 * self.gap_ms + 0.1 * gap
            self._full_since = self.clock()
        self.active.pop(id(found), None)
        if first_ms is not None:
            on_time = (found.started - found.arrived) * 1000 + first_ms <= found.work.deadline_ms
            self.tally.on_time += on_time
            self.tally.late += not on_time
            times, now = self.times(found.work.model), self.clock()
            if whole and now - times.learned >= LEARN_EVERY:
                times.learned = now
                total = (now - found.started) * 1000
                times.learn(found.work.prompt_tokens, found.active, tokens, first_ms, total, found.ahead)
        self._next()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Count work that gives way: it takes no slot, but has its bound.

        Raises:
            ApiError: the server is stopping, or so much is under way already.
        """
        if self.closed:
            raise ApiError(503, "The server is stopping", code="stopping", headers={"Retry-After": "5"})
        if self.giving_way >= self.most_waiting:
            self.tally.refused += 1
            raise ApiError(
                429, f"{counted(self.giving_way, 'request')} that {verb(self.giving_way, 'gives', 'give')} way {verb(self.giving_way, 'is', 'are')} waiting already", code="queue_full",
                headers={"Retry-After": "10"},
            )  # fmt: skip
        self.giving_way += 1
        try:
            yield
        finally:
            self.giving_way -= 1

    def close(self) -> None:
        """Let nobody in any more; those who wait are refused."""
        self.closed = True
        for _, _, _, future in self._queue:
            if not future.done():
                future.set_result(None)
        self._queue.clear()
        self._waiting.clear()
        self._next()

    async def quiet(self) -> None:
        """Wait until there is room that nobody asks for: then work of batches may go on."""
        while not self.closed and (self.waiting or len(self.active) >= self.slots):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    # --- inside

    def _start(self, found: Pass) -> None:
        self.tally.accepted += 1
        found.started = self.clock()
        found.ahead = self._unread
        self.active[id(found)] = found
        found.active = len(self.active)
        if found.active == self.slots and not self.waiting:
            self._full_since = found.started
        work = found.work
        found.total_ms = self.times(work.model).total_ms(work.prompt_tokens, found.active, work.longest)

    def _gone(self, key: str) -> None:
        self._waiting[key] -= 1
        if self._waiting[key] <= 0:
            del self._waiting[key]

    def _next(self) -> None:
        while self._queue and len(self.active) < self.slots:
            _, _, found, future = heapq.heappop(self._queue)
            if future.done():  # its client has left
                continue
            self._gone(found.work.key)
            self._start(found)
            future.set_result(None)
        if not self._queue and (self.closed or len(self.active) < self.slots):
            idle, self._idle = self._idle, []
            for future in idle:
                if not future.done():
                    future.set_result(None)

    def _due(self, found: Pass) -> float:
        work = found.work
        takes = self.times(work.model).total_ms(work.prompt_tokens, self.slots, work.longest)
        own = self._waiting[work.key] * takes / self.slots
        return found.arrived + (work.deadline_ms * PATIENCE[work.rank] - takes + own) / 1000

    def wait_ms(self, found: Pass) -> float:
        """Predicted milliseconds until a request that comes now is let in."""
        if len(self.active) < self.slots and not self.waiting:
            return 0.0
        now, due = self.clock(), self._due(found)
        free = sorted(max(each.total_ms - (now - each.started) * 1000, 0.0) for each in self.active.values())
        free += [0.0] * (self.slots - len(free))
        ahead = sorted(item[:3] for item in self._queue if item[0] <= due and not item[3].done())
        heapq.heapify(free)
        for _, _, other in ahead:
            takes = self.times(other.work.model).total_ms(other.work.prompt_tokens, self.slots, other.work.longest)
            heapq.heappush(free, heapq.heappop(free) + takes)
        # Requests that take longer than predicted seem to end at once; so many ones ahead can't leave faster than others did.
        return max(free[0], (len(ahead) + 1) * self.gap_ms)

    def _promise(self, found: Pass) -> None:
        """Refuse what can't be kept."""
        work, times = found.work, self.times(found.work.model)
        if self.waiting >= self.most_waiting:
            self.tally.refused += 1
            raise ApiError(
                429,
                f"{counted(self.waiting, 'request')} {verb(self.waiting, 'is', 'are')} waiting already",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        if not times.known:
            return
        wait, ahead = self.wait_ms(found), self._unread
        active = min(len(self.active) + 1, self.slots)
        first = times.first_ms(work.prompt_tokens, active, ahead)
        found.predicted_ms = wait + first
        promised = work.deadline_ms * max(PATIENCE[work.rank], 1.0)
        if (alone := times.first_ms(work.prompt_tokens, 1)) > promised:
            promised = times.calibration.bound(alone)
        bound = wait + times.calibration.bound(first)
        if self.refuse and work.refusable and (wait > 0 or ahead) and bound > promised:
            self.tally.refused += 1
            after = max(math.ceil((bound - promised) / 1000), 1)
            raise ApiError(
                429,
                f"The first token would come after {found.predicted_ms:.0f} ms, and {promised:.0f} ms are allowed; "
                f"{counted(self.waiting, 'request')} {verb(self.waiting, 'is', 'are')} waiting",
                code="deadline",
                headers={"Retry-After": str(after), "x-tuneloop-predicted-ms": f"{found.predicted_ms:.0f}"},
            )
