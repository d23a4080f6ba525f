"""A simulated engine takes the time that its costs say, in a clock that jumps; costs are found again in its log."""

from __future__ import annotations

import asyncio
import time

import pytest
from benchmarks.replayed_traffic import Replay, time_alone
from benchmarks.simulated_server import Costs, SimulatedEngine, measured_costs, simulate

from tuneloop.inference.request import Request

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
    assert first == pytest.approx(0.115) and end == pytest.approx(0.115 + 10 * 0.010)


def test_a_step_reads_all_prompts_that_have_come_and_writes_in_the_other_rows() -> None:
    async def work() -> list[tuple[float, float]]:
        engine = SimulatedEngine(COSTS)
        writing = timed(engine, request(10, 40))
        return await asyncio.gather(writing, *(timed(engine, request(100, 2), after=0.1) for _ in range(3)))

    writer, *readers = simulate(work)
    assert len({first for first, _ in readers}) == 1
    # A step that was under way, then one with three prompts and a row, which got its token in it.
    assert 0.316 + 0.005 <= readers[0][0] <= 0.316 + 0.005 + 0.010
    assert writer[1] - writer[0] == pytest.approx(39 * 0.010 + 0.300 + 6 * 0.002, abs=0.001)


def test_what_gives_way_hardly_delays_and_is_done_in_the_end() -> None:
    async def work() -> list[tuple[float, float]]:
        engine = SimulatedEngine(COSTS)
        return await asyncio.gather(
            timed(engine, request(3000, 40, gives_way=True)), timed(engine, request(40, 5), after=1.0)
        )

    long, short = simulate(work)
    assert short[0] < 2 * 0.053
    assert long[1] > 3.0


def test_rows_that_give_way_write_beside_answers_and_read_a_small_share_of_the_time() -> None:
    async def work() -> tuple[int, int]:
        engine = SimulatedEngine(COSTS)
        answer = asyncio.ensure_future(timed(engine, request(10, 400)))
        writing = asyncio.ensure_future(timed(engine, request(4, 200, gives_way=True)))
        reading = asyncio.ensure_future(timed(engine, request(2000, 1, gives_way=True)))
        await asyncio.gather(answer, writing)
        reading.cancel()
        return engine.read - 14, engine.written

    read, written = simulate(work)
    assert written > 400 + 150, "it writes alongside"
    assert 0 < read < 600, "and does not read alongside"


def test_costs_are_found_by_measuring_an_engine_that_is_idle() -> None:
    given = Replay(8, 500.0, (), 0, 10.0)
    found = measured_costs(simulate(lambda: time_alone(SimulatedEngine(COSTS), given)))
    for name in ("prompt", "read", "step", "row"):
        assert getattr(found, name) == pytest.approx(getattr(COSTS, name), rel=0.05), name
    with pytest.raises(ValueError, match="fewer"):
        measured_costs([])
