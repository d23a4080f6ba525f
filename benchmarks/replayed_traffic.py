"""Traffic of a trace before an engine, under one of several schedules: the server's own, and those that it is compared with.

`serve_replay.py` is the benchmark. The engine is a real one or a `SimulatedEngine`; the code is the same. There is always
another row of a batch to be done.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from benchmarks.simulated_server import Costs, SimulatedEngine, Timed, simulate

from tuneloop.inference.request import Request
from tuneloop.models.adapters.assignment import BASE
from tuneloop.serving.admission import Admission, QueuePlace, Work
from tuneloop.serving.http.api_request import ApiError

Schedule = Literal["fifo", "shortest", "static", "gate", "ours"]
SCHEDULES: tuple[Schedule, ...] = ("fifo", "shortest", "static", "gate", "ours")


class Streams(Protocol):
    """What an engine must do to be replayed to: write an answer as it comes."""

    def stream(self, request: Request) -> Any:
        """Yields something for each piece."""


@dataclass(frozen=True)
class Arrival:
    """A request of a trace: seconds from the beginning, tokens of prompt and answer; its adapter, where it names one."""

    at: float
    prompt_tokens: int
    tokens: int
    adapter: str = ""


@dataclass
class Outcome:
    """What became of a request, in seconds of the loop's clock.

    Args:
        asked_prompt: tokens of its prompt.
        read, written: tokens that were computed.
        refused: it was told at once to come later.
        moved: another engine was asked in place of this one.
    """

    arrived: float
    batch: bool = False
    started: float = 0.0
    first: float = 0.0
    end: float = 0.0
    asked_prompt: int = 0
    read: int = 0
    written: int = 0
    refused: bool = False
    whole: bool = False
    moved: bool = False


@dataclass(frozen=True)
class Replay:
    """How a trace is replayed.

    Args:
        slots: requests that the engine answers at a time.
        objective_ms: to the first token.
        batch: rows of batches, done again and again; empty: none.
        rows: of them that are answered at a time.
        seconds: after which no batch goes on; those who wait are answered to their end.
        ids: the prompt of an arrival.
        adapter, batch_adapter: who answers.
        pause: seconds that each of them rests behind a row.
    """

    slots: int
    objective_ms: float
    batch: Sequence[Arrival]
    rows: int
    seconds: float
    ids: Callable[[Arrival], Sequence[int]] = field(default=lambda item: range(item.prompt_tokens))
    adapter: str = BASE
    batch_adapter: str = BASE
    pause: float = 0.0


@dataclass
class _Places:
    """Slots that are given away by an order: the lowest rank first, among equals who came first."""

    free: int
    _waiting: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _count: int = 0

    async def take(self, rank: float) -> None:
        """Wait for a place."""
        if self.free and not self._waiting:
            self.free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._waiting, (rank, self._count, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give()
            raise

    def give(self) -> None:
        """Give it back."""
        while self._waiting:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
                return
        self.free += 1


async def ask_in_time(
    arrivals: Sequence[Arrival], ask: Callable[[int, Arrival], Coroutine[Any, Any, Any]]
) -> Sequence[asyncio.Task[Any]]:
    """Ask each request at its time, by its number, and wait for no answer: the tasks that do."""
    clock, tasks = asyncio.get_running_loop().time, []
    began = clock()
    for number, arrival in enumerate(arrivals):
        if (left := began + arrival.at - clock()) > 0:
            await asyncio.sleep(left)
        tasks.append(asyncio.ensure_future(ask(number, arrival)))
    return tasks


async def ask_one_of(runs: Sequence[Run], arrival: Arrival) -> None:
    """Ask the first engine that does not refuse; what the others refused counts as moved, but for the last one."""
    for path, run in enumerate(runs):
        outcome = await run.request(arrival)
        if not outcome.refused:
            return
        outcome.moved = path + 1 < len(runs)


async def replay(engine: Streams, arrivals: Sequence[Arrival], schedule: Schedule, given: Replay) -> list[Outcome]:
    """Replay a trace; returns what became of each request and each row of a batch, those that were cut included."""
    run = Run(engine, schedule, given, Admission(given.slots, refuse=schedule == "ours"))
    run.admission.clock = asyncio.get_running_loop().time
    run.began = run.now()
    rows = [asyncio.ensure_future(run.batch_rows(number)) for number in range(given.rows if given.batch else 0)]
    tasks = await ask_in_time(arrivals, lambda _, item: run.request(item))
    if (left := run.began + given.seconds - run.now()) > 0:
        await asyncio.sleep(left)
    for task in rows:
        task.cancel()
    await asyncio.gather(*rows, return_exceptions=True)
    await asyncio.gather(*tasks)
    return run.found


@dataclass
class Run:
    """One engine with an admission of its own, and what becomes of the requests that are asked of it."""

    engine: Streams
    schedule: Schedule
    given: Replay
    admission: Admission
    began: float = 0.0
    found: list[Outcome] = field(default_factory=list)
    places: _Places = field(default_factory=lambda: _Places(0))

    def __post_init__(self) -> None:
        self.places = _Places(self.given.slots)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def request(self, arrival: Arrival) -> Outcome:
        outcome = Outcome(self.now(), asked_prompt=arrival.prompt_tokens)
        self.found.append(outcome)
        if self.schedule in ("fifo", "shortest"):
            await self._in_line(arrival, outcome, arrival.adapter or self.given.adapter)
            return outcome
        work = Work("model", arrival.prompt_tokens, arrival.tokens, deadline_ms=self.given.objective_ms)
        try:
            path = await self.admission.enter(work)
        except ApiError:
            outcome.refused = True
            return outcome
        first = None
        try:
            await self._answer(arrival, outcome, arrival.adapter or self.given.adapter, gives_way=False, path=path)
            first = 1000 * (outcome.first - outcome.started) if outcome.first else None
        finally:
            self.admission.leave(path, outcome.written, first, whole=outcome.whole)
        return outcome

    async def _in_line(self, arrival: Arrival, outcome: Outcome, adapter: str) -> None:
        """In the order of coming, or the shortest first."""
        await self.places.take(arrival.prompt_tokens + 10.0 * arrival.tokens if self.schedule == "shortest" else 0.0)
        try:
            await self._answer(arrival, outcome, adapter, gives_way=False)
        finally:
            self.places.give()

    async def batch_rows(self, number: int) -> None:
        """Rows of a batch, one after the other."""
        for item in itertools.islice(itertools.cycle(self.given.batch), number, None, self.given.rows):
            if self.given.pause:
                await asyncio.sleep(self.given.pause)
            outcome = Outcome(self.now(), batch=True, asked_prompt=item.prompt_tokens)
            adapter = self.given.batch_adapter
            if self.schedule == "ours":
                self.found.append(outcome)
                await self._answer(item, outcome, adapter, gives_way=True)
            elif self.schedule in ("fifo", "shortest"):
                self.found.append(outcome)
                await self._in_line(item, outcome, adapter)
            else:
                await self._when_quiet()
                self.found.append(outcome)
                path = await self.admission.enter(Work("batch", item.prompt_tokens, item.tokens, refusable=False))
                try:
                    await self._answer(item, outcome, adapter, gives_way=False)
                finally:
                    self.admission.leave(path, outcome.written)

    async def _when_quiet(self) -> None:
        """Until a row may begin: a slot is free and nobody waits; under the gate, the engine has nothing else to do."""
        while True:
            await self.admission.wait_until_idle()
            if self.schedule != "gate" or not any(p.work.model != "batch" for p in self.admission.active.values()):
                return
            await asyncio.sleep(0.005)

    async def _answer(
        self, arrival: Arrival, outcome: Outcome, adapter: str, *, gives_way: bool, path: QueuePlace | None = None
    ) -> None:
        request = Request(
            ids=self.given.ids(arrival), max_new_tokens=max(arrival.tokens, 1), adapter=adapter, gives_way=gives_way
        )  # fmt: skip
        outcome.started = self.now()
        stream: AsyncIterator[Any] = self.engine.stream(request)
        async with aclosing(stream) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                outcome.end = self.now()
                if not outcome.first:
                    outcome.first, outcome.read = outcome.end, arrival.prompt_tokens
                    if path is not None:
                        path.reading = False
                completion = getattr(piece, "completion", None)
                if isinstance(piece, int):
                    outcome.written = piece
                elif completion is None:
                    outcome.written += 1
                else:
                    outcome.written = completion.completion_tokens
        outcome.whole = True


# --- what came of it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What a schedule did.

    Args:
        within: share of the accepted requests whose first token came within the objective.
        ttft_p50, ttft_p99: ms to the first token, of accepted ones.
        batch_tokens: read and written for batches.
        utilisation: share of the time that the engine needs for all this at its costs.
        usd_per_million: dollars for a million tokens.
    """

    schedule: str
    requests: int
    refused: int
    within: float
    ttft_p50: float
    ttft_p99: float
    batch_tokens: int
    utilisation: float
    usd_per_million: float


def figures(
    schedule: str, outcomes: Sequence[Outcome], given: Replay, costs: Costs, usd_per_hour: float, engines: int = 1
) -> Figures:
    """The figures of a replay."""
    asked = [outcome for outcome in outcomes if not outcome.batch]
    accepted = [item for item in asked if not item.refused]
    times = sorted(1000 * (item.first - item.arrived) for item in accepted if item.first) or [0.0]
    read, written = sum(outcome.read for outcome in outcomes), sum(outcome.written for outcome in outcomes)
    rows = max(min(_mean_rows(outcomes, given.seconds) / engines, float(given.slots)), 1.0)
    seconds = costs.seconds(read, written, rows)
    hours = engines * given.seconds / 3600
    return Figures(
        schedule, len(asked), len(asked) - len(accepted),
        sum(time <= given.objective_ms for time in times) / max(len(accepted), 1),
        times[len(times) // 2], times[min(int(0.99 * len(times)), len(times) - 1)],
        batch_tokens(outcomes, given.seconds), min(seconds / (engines * given.seconds), 1.0),
        usd_per_hour * hours / max(read + written, 1) * 1e6,
    )  # fmt: skip


def batch_tokens(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Tokens that were read and written for batches within some seconds.

    A row that was cut while its prompt was read counts by the time that others took to read theirs: whole prompts alone
    would be steps of a twentieth of all.
    """
    rows = [outcome for outcome in outcomes if outcome.batch]
    begin = min((outcome.arrived for outcome in outcomes), default=0.0)
    read = [row.first - row.started for row in rows if row.first]
    usual = max(sum(read) / max(len(read), 1), 1e-9)
    cut = [row for row in rows if row.started and not row.first]
    part = sum(item.asked_prompt * min((begin + seconds - item.started) / usual, 1.0) for item in cut)
    return int(sum(row.read + row.written for row in rows) + max(part, 0.0))


def _mean_rows(outcomes: Sequence[Outcome], seconds: float) -> float:
    """Requests that were being written at the same time, on average."""
    return sum(outcome.end - outcome.first for outcome in outcomes if outcome.first) / max(seconds, 1e-9)


def as_it_was(outcomes: Sequence[Outcome]) -> list[Arrival]:
    """The requests of a replay with the lengths that their answers had; of those that were refused the mean."""
    asked = [outcome for outcome in outcomes if not outcome.batch]
    lengths = [item.written for item in asked if item.whole]
    mean = max(sum(lengths) // max(len(lengths), 1), 1)
    begin = min((outcome.arrived for outcome in outcomes), default=0.0)
    return [Arrival(item.arrived - begin, item.asked_prompt, item.written if item.whole else mean) for item in asked]


async def time_alone(engine: Streams, given: Replay, repeats: int = 3) -> list[Timed]:
    """What an engine that has nothing else to do takes for prompts of several lengths, and for several rows together.

    The first one is not counted. Each is the median of its repeats, by the time to the first token.
    """
    found = []
    for rows, prompt, tokens in (
        (1, 16, 8),
        (1, 8, 24),
        (1, 64, 8),
        (1, 160, 8),
        (1, 320, 2),
        (4, 8, 24),
        (given.slots, 8, 24),
    ):
        times = []
        for _ in range(repeats):
            run = Run(engine, "fifo", given, Admission(given.slots))
            item = Arrival(0.0, prompt, tokens)
            done = await asyncio.gather(*(run.request(item) for _ in range(rows)))
            last = [max(getattr(entry, name) - entry.started for entry in done) * 1000 for name in ("first", "end")]
            times.append(Timed(rows, prompt, min(entry.written for entry in done), *last))
        found.append(sorted(times, key=lambda time: time.first_ms)[repeats // 2])
    return found[1:]


def calibrate(costs: Costs, logs: Mapping[Schedule, Sequence[Outcome]], given: Replay, tries: int = 300) -> Costs:
    """Costs with which the simulator comes nearest to what was measured: beside its clients an engine is slower than alone.

    Least squares of the relative errors of three figures of each schedule: the mean time to the first token, the mean time
    from there to the end, and the tokens of batches. A cost that these hardly depend on stays near what it was.

    Args:
        costs: as measured on an engine that had nothing else to do.
        logs: outcomes of replays in real time.
        given: how they were done.
        tries: costs that are tried.
    """
    import numpy
    from scipy.optimize import minimize

    def summary(outcomes: Sequence[Outcome]) -> Any:
        asked = [outcome for outcome in outcomes if not outcome.batch and outcome.whole]
        first = sum(item.first - item.started for item in asked) / max(len(asked), 1)
        rest = sum(item.end - item.first for item in asked) / max(len(asked), 1)
        batch = batch_tokens(outcomes, given.seconds)
        return numpy.log(numpy.maximum([first, rest, batch], 1e-3))

    def scaled(by: Any) -> Costs:
        return Costs(*(float(cost * math.exp(x)) for cost, x in zip(known, by, strict=True)))

    def error(by: Any) -> float:
        found = 0.01 * float(by @ by)
        for schedule, (arrivals, wanted) in real.items():
            engine = SimulatedEngine(scaled(by), given.slots, max(given.rows, 1))
            paper = simulate(lambda: replay(engine, arrivals, schedule, given))  # noqa: B023
            found += float(((summary(paper) - wanted) ** 2).sum())
        return found

    # Who comes waits for the step that is under way, half of it on average, so neither of these two is nothing.
    token = costs.step + costs.row
    known = (max(costs.prompt, token / 2), costs.read, costs.step, costs.row, costs.again or token)
    real = {schedule: (as_it_was(outcomes), summary(outcomes)) for schedule, outcomes in logs.items()}
    best, steps = numpy.zeros(5), 0.4 * numpy.vstack([numpy.zeros(5), numpy.eye(5)])
    for sign in (1, -1, 1):  # the search ends early in the small steps of whole rows, so it begins anew where it ended
        options = {"initial_simplex": best + sign * steps, "maxfev": tries // 3, "xatol": 0.01}
        best = minimize(error, best, method="Nelder-Mead", options=options).x
    return scaled(best)


# --- many engines ----------------------------------------------------------------------------------


async def replay_on_many(
    engines: Sequence[Any], arrivals: Sequence[Arrival], given: Replay, router: Literal["turns", "least"]
) -> list[Outcome]:
    """Replay a trace before many simulated engines, each with an admission of its own.

    Args:
        router: `turns`: one engine after the other; `least`: of two that are drawn, the one with less work before it
            (Mitzenmacher 2001), and the other one where that one refuses.
    """
    import random

    draw = random.Random(0)
    runs = [Run(engine, "ours", given, Admission(given.slots)) for engine in engines]
    clock = asyncio.get_running_loop().time
    for run in runs:
        run.admission.clock = clock
    began = clock()
    rows = [
        asyncio.ensure_future(run.batch_rows(number))
        for run in runs
        for number in range(given.rows if given.batch else 0)
    ]

    async def ask(number: int, arrival: Arrival) -> None:
        some = [runs[number % len(runs)]] if router == "turns" else draw.sample(runs, min(2, len(runs)))
        await ask_one_of(sorted(some, key=lambda run: run.engine.load_ms), arrival)  # type: ignore[attr-defined]

    tasks = await ask_in_time(arrivals, ask)
    if (left := began + given.seconds - clock()) > 0:
        await asyncio.sleep(left)
    for task in rows:
        task.cancel()
    await asyncio.gather(*rows, return_exceptions=True)
    await asyncio.gather(*tasks)
    return [match for run in runs for match in run.found if not match.moved]
