"""Schedules are compared on the same traffic: ours keeps the objective where others lose it to the batch, or refuse in time."""

from __future__ import annotations

import random
from typing import Any

import pytest
from benchmarks.replayed_traffic import (
    SCHEDULES,
    Arrival,
    Figures,
    Outcome,
    Replay,
    Schedule,
    as_it_was,
    calibrate,
    figures,
    replay,
    replay_on_many,
)
from benchmarks.simulated_server import Costs, SimulatedEngine, simulate

COSTS = Costs(3.0, 1.0, 6.0, 2.0)


def traffic(load: float, seconds: float = 60.0, seed: int = 1) -> list[Arrival]:
    draw, at, found = random.Random(seed), 0.0, []
    while at < seconds:
        item = Arrival(at, draw.randrange(20, 200), draw.randrange(2, 40))
        at += draw.expovariate(load / COSTS.seconds(item.prompt_tokens, item.tokens, 3.0))
        found.append(item)
    return found


def done(schedule: Any, load: float, **settings: Any) -> Figures:
    given = Replay(
        **{"slots": 16, "objective_ms": 500.0, "batch": [Arrival(0, 400, 60)], "rows": 4, "seconds": 60.0} | settings
    )
    found = simulate(lambda: replay(SimulatedEngine(COSTS), traffic(load), schedule, given))
    return figures(schedule, found, given, COSTS, 1.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_request_is_answered_or_refused(schedule: Any) -> None:
    arrivals = traffic(0.5, 20.0)
    given = Replay(16, 500.0, [Arrival(0, 400, 60)], 4, 20.0)
    found = simulate(lambda: replay(SimulatedEngine(COSTS), arrivals, schedule, given))
    asked = [match for match in found if not match.batch]
    assert len(asked) == len(arrivals)
    assert all(item.refused != item.whole for item in asked)
    assert sum(item.written for item in asked if item.whole) == sum(
        arrival.tokens for arrival, item in zip(arrivals, asked, strict=True) if item.whole
    )
    assert any(match.batch and match.whole for match in found)


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_ours_keeps_the_objective_beside_a_batch(load: float) -> None:
    ours, static = done("ours", load), done("static", load)
    assert ours.within >= 0.98 and ours.refused < 0.1 * ours.requests
    assert static.within < 0.8
    assert ours.batch_tokens > 0.6 * static.batch_tokens


def test_too_much_traffic_is_refused_in_time() -> None:
    ours, static = done("ours", 1.4, batch=()), done("static", 1.4, batch=())
    assert ours.within > 0.97 and 0.05 < ours.refused / ours.requests < 0.45
    assert static.within < 0.5 and static.refused == 0


def test_the_simulator_is_calibrated_by_the_log_of_real_minutes_and_holds_for_others() -> None:
    given, slower = Replay(8, 500.0, [Arrival(0, 100, 40)], 2, 30.0), Costs(4.0, 1.3, 8.0, 2.6, 6.0)
    schedules: tuple[Schedule, ...] = ("ours", "static")

    def minutes(seed: int, schedule: Schedule) -> list[Outcome]:
        return simulate(lambda: replay(SimulatedEngine(slower, 8, 2), traffic(0.3, 30.0, seed), schedule, given))

    costs = calibrate(COSTS, {schedule: minutes(1, schedule) for schedule in schedules}, given, tries=90)
    for schedule in schedules:
        later = minutes(2, schedule)
        paper = simulate(lambda: replay(SimulatedEngine(costs, 8, 2), as_it_was(later), schedule, given))  # noqa: B023
        a, b = (figures(schedule, item, given, costs, 1.0) for item in (later, paper))
        assert b.batch_tokens == pytest.approx(a.batch_tokens, rel=0.1)
        assert b.within == pytest.approx(a.within, abs=0.05) and b.ttft_p50 == pytest.approx(a.ttft_p50, rel=0.15)


def test_many_engines_share_the_traffic() -> None:
    given = Replay(16, 500.0, [Arrival(0, 400, 60)], 2, 20.0)
    arrivals = sorted((item for seed in range(10) for item in traffic(0.5, 20.0, seed)), key=lambda item: item.at)
    for router in ("turns", "least"):
        engines = [SimulatedEngine(COSTS, grain=8) for _ in range(10)]
        found = simulate(lambda: replay_on_many(engines, arrivals, given, router))  # type: ignore[arg-type] # noqa: B023
        made = figures(router, found, given, COSTS, 1.0, 10)
        assert made.requests == len(arrivals) and made.within > 0.97
        assert all(engine.busy > 10 for engine in engines)
