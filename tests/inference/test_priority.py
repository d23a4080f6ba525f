"""Who computes now: those who wait come first, adapters take turns, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tuneloop.inference.priority import QUANTUM, Fair, Pace, Slots, Turns, shared_beginning


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))  # type: ignore[arg-type]


async def begun(turns: Turns, adapter: str, *, reads: bool = False) -> asyncio.Task[float]:
    task = asyncio.ensure_future(turns.begin(adapter, reads=reads))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_a_quantum_waits_while_somebody_is_answered() -> None:
    async def work() -> None:
        clock = Clock()
        turns = Turns(share=0.1, clock=clock)
        turns.row("a", 1)
        turns.come("b")
        first = await begun(turns, "a")
        assert first.done()  # its share: none was computed yet
        clock.now = 1.0
        turns.end("a", 0.0, reads=False)  # it took a second of ten
        second = await begun(turns, "a")
        assert not second.done()
        turns.go("b")
        await second

    run(work)


def test_a_small_share_is_left_though_somebody_is_always_answered() -> None:
    async def work() -> None:
        turns = Turns(share=0.5)
        turns.row("a", 1)
        turns.come("b")
        for _ in range(3):
            began = await turns.begin("a", reads=True)
            await asyncio.sleep(0.01)
            turns.end("a", began, reads=True)

    run(work)


def test_one_piece_of_a_prompt_is_read_at_a_time() -> None:
    async def work() -> None:
        turns = Turns()
        turns.row("a", 3)
        first, second, writes = [await begun(turns, "a", reads=reads) for reads in (True, True, False)]
        assert first.done() and not second.done() and writes.done()
        turns.end("a", 0.0, reads=True)
        await second
        third = await begun(turns, "a", reads=True)
        turns.end("a", 0.0, reads=False)  # of the one that writes
        assert not third.done()
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        turns.end("a", 0.0, reads=True)
        assert (await begun(turns, "a", reads=True)).done()

    run(work)


def test_quanta_write_alongside_answers_of_their_own_adapter_only() -> None:
    async def work() -> None:
        clock = Clock()
        turns = Turns(concurrent=2, clock=clock)
        turns.row("a", 4)
        turns.come("a")
        turns._rest_until = 100.0
        item, two, three = [await begun(turns, "a") for _ in range(3)]
        assert item.done() and two.done() and not three.done()
        turns.end("a", 0.0, reads=False)
        await three
        turns.come("b")  # now two adapters are asked for
        turns.end("a", 0.0, reads=False)
        turns.end("a", 0.0, reads=False)
        assert not (await begun(turns, "a")).done()

    run(work)


def test_adapters_take_turns_and_do_not_mix() -> None:
    async def work() -> None:
        clock = Clock()
        turns = Turns(turn=2.0, clock=clock)
        turns.row("a", 2)
        turns.row("b", 1)
        a = await begun(turns, "a")
        assert a.done()
        b = await begun(turns, "b")
        assert not b.done()
        turns.end("a", 0.0, reads=False)
        assert not b.done() and (await begun(turns, "a")).done()  # the turn of a is not over
        clock.now = 2.5
        turns.end("a", 0.0, reads=False)
        await b
        assert not (await begun(turns, "a")).done()  # now a waits
        turns.row("b", -1)
        turns.end("b", 2.5, reads=False)

    run(work)


def test_one_that_is_left_while_it_waits_is_forgotten() -> None:
    async def work() -> None:
        turns = Turns()
        turns.come("b")
        turns._rest_until = turns.clock() + 100
        turns.row("a", 1)
        task = await begun(turns, "a")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        turns.go("b")
        assert not turns.running
        await turns.begin("a", reads=False)

    run(work)


def test_a_slot_that_has_read_the_beginning_is_taken() -> None:
    async def work() -> None:
        slots = Slots(range(3))
        first, second = await slots.take("a", [1, 2, 3]), await slots.take("a", [7, 8, 9])
        slots.give(first, "a", [1, 2, 3, 4])
        slots.give(second, "a", [7, 8, 9])
        assert await slots.take("a", [7, 8, 9, 10]) == second
        assert await slots.take("b", [1, 2, 3, 4]) not in (first, second)  # another adapter has read something else

    run(work)


def test_who_waits_for_a_slot_gets_it_in_order() -> None:
    async def work() -> None:
        slots, order = Slots(range(1)), []
        slot = await slots.take("a", [1])

        async def one(name: int) -> None:
            found = await slots.take("a", [1])
            order.append(name)
            slots.give(found, "a", [1])

        tasks = [asyncio.ensure_future(one(i)) for i in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        slots.give(slot, "a", [1])
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3]

    run(work)


def test_the_shared_beginning_is_found() -> None:
    assert shared_beginning([1, 2, 3], [1, 2, 4]) == 2
    assert shared_beginning((1, 2), [1, 2, 4]) == 2
    assert shared_beginning([], [1]) == 0
    long = list(range(3000))
    assert shared_beginning(long, [*long[:1777], -1, *long[1778:]]) == 1777


async def entered(fair: Fair, adapter: str) -> asyncio.Task[None]:
    task = asyncio.ensure_future(fair.enter(adapter))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_an_adapter_that_waits_gets_its_turn_though_the_other_is_always_asked() -> None:
    async def work() -> None:
        clock = Clock()
        fair = Fair(turn=1.0, clock=clock)
        assert all([(await entered(fair, "a")).done() for _ in range(2)]) and not fair.over("a")
        b = await entered(fair, "b")
        assert not b.done() and not fair.over("a"), "the turn of a goes on"
        assert (await entered(fair, "a")).done()
        clock.now = 1.0
        assert fair.over("a") and not fair.over("b")
        late = await entered(fair, "a")
        assert not late.done(), "no further one of a begins"
        for _ in range(3):
            assert not b.done()
            fair.leave()
        await b
        more = await entered(fair, "b")
        assert more.done() and not fair.over("b"), "b has a turn of its own"
        clock.now = 2.0
        assert fair.over("b")
        fair.leave()
        fair.leave()
        await late

    run(work)


def test_three_adapters_take_turns_in_the_order_of_asking_and_who_leaves_is_forgotten() -> None:
    async def work() -> None:
        fair = Fair(turn=0.0)
        await fair.enter("a")
        b, c, b2, gone = [await entered(fair, name) for name in ("b", "c", "b", "d")]
        gone.cancel()
        await asyncio.sleep(0)
        fair.leave()
        await asyncio.gather(b, b2)
        assert not c.done()
        fair.leave()
        fair.leave()
        await c
        fair.leave()
        assert (await entered(fair, "d")).done()

    run(work)


def test_a_turn_that_came_to_one_who_just_left_goes_to_the_next() -> None:
    async def work() -> None:
        fair = Fair()
        await fair.enter("a")
        b, c = [await entered(fair, name) for name in ("b", "c")]
        fair.leave()
        b.cancel()
        await asyncio.wait_for(c, 5)

    run(work)


def test_a_quantum_has_as_many_tokens_as_fit() -> None:
    pace = Pace(2, 64)
    assert pace.tokens == 2
    pace.learn(2, 2 * QUANTUM / 10)
    assert pace.tokens == 10
    for _ in range(50):
        pace.learn(10, 10 * QUANTUM * 5)
    assert pace.tokens == 2
