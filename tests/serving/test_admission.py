"""Requests are let in by urgency and slack, nobody starves, and what can't be in time is refused at once."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tuneloop.serving.admission import Admission, QueuePlace, ServiceTime, Work
from tuneloop.serving.http.api_request import ApiError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def work(**fields: Any) -> Work:
    return Work(**{"model": "m", "prompt_tokens": 100, "longest": 100, **fields})


def taught(clock: Clock, **options: Any) -> Admission:
    """One that knows: 100 ms to the first token, 1 ms for each further one, answers of 100 tokens."""
    admission = Admission(clock=clock, **options)
    for _ in range(50):
        admission.times("m").learn(100, 1, 101, 100.0, 200.0)
    return admission


async def order_of(admission: Admission, works: list[Work]) -> list[int]:
    """In which order works are let in, one at a time."""
    order: list[int] = []

    async def one(i: int, item: Work) -> None:
        found = await admission.enter(item)
        order.append(i)
        await asyncio.sleep(0)
        admission.leave(found, 1)

    held = await admission.enter(work())
    tasks = [asyncio.create_task(one(i, item)) for i, item in enumerate(works)]
    await asyncio.sleep(0)
    admission.leave(held, 1)
    await asyncio.gather(*tasks)
    return order


def test_times_are_learned() -> None:
    times, draw = ServiceTime(), random.Random(0)
    for _ in range(300):
        prompt, active, tokens = draw.randint(10, 2000), draw.randint(1, 8), draw.randint(50, 150)
        first = (20 + prompt * 0.1 + active * 3) * draw.uniform(0.95, 1.05)
        times.learn(prompt, active, tokens, first, first + (tokens - 1) * (2 + active) * draw.uniform(0.95, 1.05))
    assert times.first_ms(1000, 4) == pytest.approx(132, rel=0.05)
    assert times.total_ms(1000, 4, 1000) == pytest.approx(132 + 100 * 6, rel=0.1)
    assert times.total_ms(1000, 4, 10) == pytest.approx(132 + 10 * 6, rel=0.1)
    assert times.calibration.error < 0.1 and times.calibration.coverage > 0.85


def test_the_urgent_go_first_then_those_with_least_slack() -> None:
    admission = Admission(1, refuse=False, clock=Clock())
    works = [work(rank="flex"), work(rank="low"), work(deadline_ms=900), work(), work(rank="high")]
    assert asyncio.run(order_of(admission, works)) == [4, 3, 2, 1, 0]


def test_a_request_that_has_waited_long_goes_before_new_urgent_ones() -> None:
    async def go() -> list[str]:
        clock, order = Clock(), []
        admission = Admission(1, refuse=False, clock=clock)

        async def one(name: str, item: Work) -> None:
            found = await admission.enter(item)
            order.append(name)
            admission.leave(found, 1)

        held = await admission.enter(work())
        tasks = [asyncio.create_task(one("old flex", work(rank="flex")))]
        await asyncio.sleep(0)
        clock.now += 31
        tasks += [asyncio.create_task(one("new high", work(rank="high"))) for _ in range(3)]
        await asyncio.sleep(0)
        admission.leave(held, 1)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(go())[0] == "old flex"


def test_a_key_with_many_requests_does_not_hold_up_another_one() -> None:
    admission = taught(Clock(), slots=1, refuse=False)
    works = [work(key="many") for _ in range(20)] + [work(key="one")]
    assert asyncio.run(order_of(admission, works)).index(20) <= 1


def test_what_can_not_be_in_time_is_refused_with_the_wait() -> None:
    async def go() -> None:
        admission = taught(Clock(), slots=1)
        await admission.enter(work())
        waiting = [asyncio.create_task(admission.enter(work(deadline_ms=5000))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await asyncio.wait_for(admission.enter(work(deadline_ms=150)), 5)
        assert refused.value.status == 429 and refused.value.code == "deadline"
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert float(refused.value.headers["x-tuneloop-predicted-ms"]) > 200
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert admission.waiting == 0

    asyncio.run(go())


def test_a_request_that_takes_long_even_alone_is_not_refused() -> None:
    async def go() -> QueuePlace:
        return await taught(Clock(), slots=1).enter(work(prompt_tokens=100_000, deadline_ms=50))

    assert asyncio.run(go()).predicted_ms > 0


def test_the_queue_has_an_end() -> None:
    async def go() -> None:
        admission = Admission(1, most_waiting=2, clock=Clock())
        await admission.enter(work())
        tasks = [asyncio.create_task(admission.enter(work())) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await asyncio.wait_for(admission.enter(work()), 5)
        assert refused.value.code == "queue_full"
        admission.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [match.status for match in found] == [503, 503]  # type: ignore[union-attr]

    asyncio.run(go())


def test_clients_that_leave_give_their_places_back() -> None:
    async def go() -> None:
        admission = Admission(2, clock=Clock())
        draw = random.Random(1)

        async def one() -> None:
            found = await admission.enter(work(key=str(draw.randint(0, 3))))
            try:
                await asyncio.sleep(draw.random() / 1000)
            finally:
                admission.leave(found, 1, 1.0, whole=True)

        tasks = [asyncio.create_task(one()) for _ in range(300)]
        for task in tasks:
            await asyncio.sleep(0)
            if draw.random() < 0.5:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not admission.active and not admission.waiting
        await asyncio.wait_for(admission.wait_until_idle(), 1)
        await asyncio.wait_for(admission.enter(work()), 1)

    asyncio.run(go())
