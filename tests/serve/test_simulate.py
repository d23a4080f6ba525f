"""A simulated engine takes the time that its costs say, in a clock that jumps; costs are found again in its log."""

from __future__ import annotations

import asyncio
import time

import pytest

from tuneloop.inference.request import Request
from tuneloop.serve.replay import Arrival, Replay, log_of, replay
from tuneloop.serve.simulate import Costs, Logged, SimulatedEngine, fit_costs, simulate

COSTS = Costs(5.0, 1.0, 8.0, 2.0)


def request(prompt: int, tokens: int, *, gives_way: bool = False) -> Request:
    return Request(ids=range(prompt), max_new_tokens=tokens, gives_way=gives_way)


async def timed(engine: SimulatedEngine, asked: Request, after: float = 0.0) -> tuple[float, float]:
    """Seconds to the first token and to the end."""
    await asyncio.sleep(after)
    clock, first = asyncio.get_running_loop().time, 0.0
    began = clock()
    async for _ in engine.stream(asked):
        first = first or clock() - began
    return first, clock() - began


def test_a_day_takes_a_moment() -> None:
    async def work() -> float:
        await asyncio.sleep(86400)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert simulate(work) == pytest.approx(86400)
    assert time.monotonic() - began < 5


def test_what_waits_for_nothing_is_told() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing will happen"):
        simulate(work)


def test_one_request_takes_what_its_tokens_cost() -> None:
    first, end = simulate(lambda: timed(SimulatedEngine(COSTS), request(100, 11)))
    assert first == pytest.approx(0.105) and end == pytest.approx(0.105 + 10 * 0.010)


def test_what_gives_way_hardly_delays_and_is_done_in_the_end() -> None:
    async def work() -> list[tuple[float, float]]:
        engine = SimulatedEngine(COSTS)
        return await asyncio.gather(
            timed(engine, request(3000, 40, gives_way=True)), timed(engine, request(40, 5), after=1.0)
        )

    long, short = simulate(work)
    assert short[0] < 2 * 0.045
    assert long[1] > 3.0


def test_costs_are_found_in_a_log() -> None:
    async def work() -> list[Logged]:
        arrivals = [Arrival(i * 0.11, 20 + 37 * i % 160, 4 + 13 * i % 40) for i in range(80)]
        return log_of(await replay(SimulatedEngine(COSTS), arrivals, "static", Replay(8, 500.0, (), 0, 10.0)))

    found = fit_costs(simulate(work))
    assert found.read == pytest.approx(COSTS.read, rel=0.25)
    assert found.seconds(1000, 500, 2.0) == pytest.approx(COSTS.seconds(1000, 500, 2.0), rel=0.1)
    with pytest.raises(ValueError, match="fewer"):
        fit_costs([])
