"""Several engines as one: quick ones get more, prompts return to who has read them, and one that fails is left out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import StubEngine

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.core.ui import reporting
from tuneloop.inference.openai import serving as endpoints
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import Served, ServingEngine, complete
from tuneloop.inference.request import Request, Update
from tuneloop.records.completion import Completion
from tuneloop.serving.pool import EnginePool


class Moody(StubEngine):
    """A stub that can be down, busy, or wrong in its canary."""

    down = False
    wrong = False
    says = ""

    async def start(self) -> None:
        if self.down:
            raise UserError("it does not start", where=self.name)

    async def healthy(self) -> bool:
        return not self.down

    async def stream(self, request: Request) -> Any:
        if self.down or self.says:
            self.asked.append(request)
            yield Update(completion=Completion(finish="error", error=self.says or "engine: it is down"))
            return
        async for update in super().stream(request):
            yield update


def request(first: int, n: int = 100) -> Request:
    return Request(ids=tuple(range(first, first + n)), max_new_tokens=3)


def with_pool(engines: list[Moody], work: Callable[[EnginePool], Any], every: float = 0.02) -> tuple[Any, list[str]]:
    said: list[str] = []

    async def prove(engine: ServingEngine) -> None:
        if engine.wrong:  # type: ignore[attr-defined]
            raise UserError("other answers than in the evaluation")

    async def main() -> Any:
        with reporting(say=said.append):
            pool = EnginePool(engines, prove, every=every)
            await pool.start()
            try:
                with reporting(say=said.append):
                    await pool.prove()
                return await work(pool)
            finally:
                await pool.stop()

    return asyncio.run(main()), said


def test_one_that_fails_is_left_out_and_comes_back_after_its_canary() -> None:
    a, b = Moody(name="a"), Moody(name="b")

    async def work(pool: EnginePool) -> None:
        a.down = a.wrong = True
        found = await asyncio.gather(*(complete(pool, request(1000 * i)) for i in range(12)))
        assert {match.text for match in found} == {"Hello there."}  # asked again elsewhere, nobody notices
        assert len(b.asked) == 12 and pool.members[0].out and pool.members[0].faults == 1
        a.down = False
        await asyncio.sleep(0.1)
        assert pool.members[0].out  # it is healthy, and its canary is wrong
        a.wrong = False
        while pool.members[0].out:
            await asyncio.sleep(0.01)
        before = len(a.asked)
        await asyncio.gather(*(complete(pool, request(1000 * i)) for i in range(50, 62)))
        assert len(a.asked) > before

    _, said = with_pool([a, b], work)
    assert [line.split("a ", 1)[1] for line in said if "engine    a" in line] == [
        "is ready",
        "is left out: it is down",
        "is back",
    ]


def test_what_has_begun_is_not_asked_again() -> None:
    a, b = Moody(name="a", fail_after=2), Moody(name="b", fail_after=2)

    async def work(pool: EnginePool) -> Completion:
        return await complete(pool, request(0))

    found, _ = with_pool([a, b], work)
    assert found.finish == "error" and len(a.asked) + len(b.asked) == 1


def test_a_busy_one_is_gone_around_and_not_left_out() -> None:
    a, b = Moody(name="a"), Moody(name="b")
    a.says = "busy: HTTP 429"

    async def work(pool: EnginePool) -> None:
        assert (await complete(pool, request(0))).text == "Hello there."
        b.says = a.says
        assert (await complete(pool, request(0))).error == "busy: HTTP 429"
        b.says = "rejected: HTTP 400: no"
        a.says = "rejected: HTTP 400: no"
        asked = len(a.asked) + len(b.asked)
        assert (await complete(pool, request(0))).error.startswith("rejected")
        assert len(a.asked) + len(b.asked) == asked + 1 and not any(member.out for member in pool.members)

    with_pool([a, b], work)


def test_a_quick_engine_gets_more() -> None:
    slow, quick = Moody(name="slow", pause=0.02), Moody(name="quick", pause=0.002)

    async def work(pool: EnginePool) -> tuple[int, int]:
        async def client(number: int) -> None:
            for i in range(12):
                await complete(pool, request(10_000 * number + 100 * i))

        await asyncio.gather(*(client(number) for number in range(6)))
        return len(slow.asked), len(quick.asked)

    (few, many), _ = with_pool([slow, quick], work)
    assert many > 2 * few, (few, many)


def test_prompts_return_to_the_engine_that_has_read_their_beginning() -> None:
    engines = [Moody(name=name, pause=0.001) for name in "abc"]

    async def work(pool: EnginePool) -> list[int]:
        for turn in range(1, 5):
            await asyncio.gather(*(complete(pool, request(10_000 * talk, 64 * turn)) for talk in range(9)))
        homes = [Counter(e.name for e in engines for r in e.asked if r.ids[0] == 10_000 * talk) for talk in range(9)]
        return [max(home.values()) for home in homes]

    found, _ = with_pool(engines, work)
    assert sum(found) >= 30, found  # of 36; by chance it would be some 20


def test_without_any_engine_it_says_why() -> None:
    a, b = Moody(name="a"), Moody(name="b")
    a.down = b.down = True

    async def work(pool: EnginePool) -> None: ...

    with pytest.raises(UserError, match="does not start"):
        with_pool([a, b], work)
    a.down = b.down = False
    a.wrong = b.wrong = True
    with pytest.raises(UserError, match="other answers"):
        with_pool([a, b], work)


SERVER = """
import sys, time
from pathlib import Path
from live_server import StubEngine, live
with live(Path(sys.argv[1]), StubEngine(words=["word "] * 20, pause=0.05), limits={"max_new_tokens": 20}) as (address, _):
    print(address, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[list[tuple[str, subprocess.Popen[str]]]]:
    """Address and process of two servers."""
    with contextlib.ExitStack() as stack:
        started = []
        for name in "ab":
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(folder / name)], stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append(process)
        yield [(process.stdout.readline().strip(), process) for process in started if process.stdout]


def test_one_that_hangs_is_left_out_what_it_had_is_asked_elsewhere_and_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "HEALTHY_WITHIN", 1.0)
    lines: list[str] = []
    turns: Any = [{"role": "user", "content": "Hi"}]

    async def prove(engine: ServingEngine) -> None: ...

    async def work(addresses: list[str], processes: list[Any]) -> None:
        settings = [EndpointSettings(address) for address in addresses]
        with reporting(say=lines.append):
            pool = EnginePool([EndpointEngine(Served("stub"), [], setting) for setting in settings], prove, every=0.2)
            await pool.start()
            try:
                first, second = pool.members
                streams = [pool.stream(Request(messages=turns)) for _ in range(4)]
                begun = [await anext(stream) for stream in streams]  # two on each
                assert all(update.text for update in begun) and first.active == second.active == 2
                os.kill(processes[0].pid, signal.SIGSTOP)
                began = time.monotonic()
                later = await asyncio.gather(*(complete(pool, Request(messages=turns)) for _ in range(6)))
                assert time.monotonic() - began < 6 * slowness() and first.out == "it does not answer"
                assert {item.text for item in later} == {("word " * 20).strip()}
                ends = [[update async for update in stream][-1].completion for stream in streams]
                assert sorted(end.error for end in ends if end) == ["", "", *["engine: it does not answer"] * 2]
                assert list(await pool._first(lambda engine: engine.tokenize("a b"))) == [0, 1]
                os.kill(processes[0].pid, signal.SIGCONT)
                while first.out:
                    await asyncio.sleep(0.05)
                os.kill(processes[1].pid, signal.SIGSTOP)
                assert (await complete(pool, Request(messages=turns))).text
                os.kill(processes[0].pid, signal.SIGSTOP)
                assert (await complete(pool, Request(messages=turns))).error == "engine: it does not answer"
            finally:
                await pool.stop()

    with servers(tmp_path) as started:
        asyncio.run(asyncio.wait_for(work([a for a, _ in started], [p for _, p in started]), 60 * slowness()))
    shown = [line.split(started[0][0])[1].strip() for line in lines if started[0][0] in line]
    assert shown[:2] == ["is left out: it does not answer", "is back"]
