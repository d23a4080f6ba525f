"""What gives way is answered as if it had not, reads nothing twice, and lets a short request of another adapter through."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import served
from served import Files

from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.llamacpp.serving import VERSION, WHEEL, LlamaCppEngine
from tuneloop.inference.priority import Pace
from tuneloop.inference.protocol import BASE, ServingEngine, complete
from tuneloop.inference.request import Request, Sampling
from tuneloop.records.completion import Completion

needs_llamacpp = pytest.mark.skipif(
    not (installed() and installed(WHEEL, VERSION)), reason="llama.cpp is not installed"
)
ENGINES = [pytest.param(served.local, id="local"), pytest.param(served.llamacpp, id="llamacpp", marks=[needs_llamacpp])]
LONG = [{"role": "user", "content": "The history of the city begins with a small village on the river. " * 12}]
SHORT = [{"role": "user", "content": "Is it windy on Jupiter?"}]
LABELS = ("refund", "refund request", "delivery")


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"))


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest) -> Callable[..., ServingEngine]:
    found: Callable[..., ServingEngine] = request.param
    return found


async def uninterrupted(engine: Any, request: Request) -> Completion:
    """The answer in one go. llama.cpp's is asked as a single quantum, since its events leave out tokens of broken characters."""
    if not isinstance(engine, LlamaCppEngine):
        return await complete(engine, request)
    paces = engine._reads, engine._writes
    engine._reads, engine._writes = Pace(4096, 4096), Pace(4096, 4096)
    try:
        return await complete(engine, replace(request, gives_way=True))
    finally:
        engine._reads, engine._writes = paces


def test_an_answer_is_the_same_whether_it_gives_way_or_not(make: Any, files: Files) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"stop": ("e",)}, {"logprobs": 2}, {"sampling": Sampling(repetition_penalty=1.3)}, {"choices": LABELS},
        {"max_new_tokens": 1},
    ]  # fmt: skip

    async def work(engine: Any) -> None:
        for adapter in (BASE, *engine.adapters):
            for given in settings:
                request = Request(messages=LONG, adapter=adapter, **{"max_new_tokens": 40, **given})
                at_once = await uninterrupted(engine, request)
                gave_way = await complete(engine, replace(request, gives_way=True))
                assert gave_way.error == "" and gave_way.text == at_once.text and gave_way.finish == at_once.finish
                assert gave_way.token_ids == at_once.token_ids
                assert gave_way.prompt_tokens == at_once.prompt_tokens
                if at_once.logprobs is not None and gave_way.logprobs is not None:
                    assert [logprob.id for logprob in gave_way.logprobs] == [logprob.id for logprob in at_once.logprobs]

    served.run(make(files, (0, 1)), work)


def test_it_is_the_same_when_others_come_in_between(make: Any, files: Files) -> None:
    async def work(engine: Any) -> None:
        first, second = engine.adapters
        long = Request(messages=LONG, adapter=first, max_new_tokens=120, gives_way=True)
        wanted = await uninterrupted(engine, long)
        task = asyncio.ensure_future(complete(engine, long))
        others = 0
        while not task.done():
            found = await complete(engine, Request(messages=SHORT, adapter=second, max_new_tokens=2))
            assert found.error == ""
            others += 1
            await asyncio.sleep(0.02)
        assert others >= 2
        assert (await task).token_ids == wanted.token_ids

    served.run(make(files, (0, 1)), work)


def test_a_draw_is_the_same_whatever_happens_meanwhile(make: Any, files: Files) -> None:
    drawn = Sampling(temperature=1.0, seed=7)

    async def work(engine: Any) -> None:
        first, second = engine.adapters
        request = Request(messages=SHORT, adapter=first, max_new_tokens=40, sampling=drawn, gives_way=True)
        wanted = await complete(engine, request)
        task = asyncio.ensure_future(complete(engine, request))
        while not task.done():
            await complete(engine, Request(messages=SHORT, adapter=second, max_new_tokens=2))
            await asyncio.sleep(0.02)
        assert (await task).token_ids == wanted.token_ids
        assert len(set(wanted.token_ids)) > 10  # quanta that began with the same random numbers would repeat themselves

    served.run(make(files, (0, 1)), work)


def test_a_reader_who_leaves_ends_it(make: Any, files: Files) -> None:
    async def work(engine: Any) -> None:
        name = next(iter(engine.adapters))
        request = Request(messages=LONG, adapter=name, max_new_tokens=200, gives_way=True)
        for _ in range(4):  # more than there are places
            stream = engine.stream(request)
            async for _update in stream:
                break
            await stream.aclose()
        found = await complete(engine, replace(request, max_new_tokens=4))
        assert found.completion_tokens == 4

    served.run(make(files, (0, 1)), work)


@needs_llamacpp
def test_llama_cpp_reads_next_to_nothing_again(files: Files) -> None:
    read: list[tuple[int, int]] = []

    class Watched(LlamaCppEngine):
        async def _quantum(self, request: Request, ids: Any, tokens: int, slot: int) -> dict[str, Any]:
            said = await super()._quantum(request, ids, tokens, slot)
            read.append((len(ids), said["timings"]["prompt_n"]))
            return said

    async def work(engine: Any) -> None:
        first, second = engine.adapters
        task = asyncio.ensure_future(
            complete(engine, Request(messages=LONG, adapter=first, max_new_tokens=60, gives_way=True))
        )
        while not task.done():
            await complete(engine, Request(messages=SHORT, adapter=second, max_new_tokens=2))
            await asyncio.sleep(0.02)
        await task
        assert len(read) > 4
        for (before, _), (length, again) in itertools.pairwise(read):
            assert again <= length - before + 8

    made = served.llamacpp(files, (0, 1))
    assert isinstance(made, LlamaCppEngine)
    served.run(Watched(made._base, made._served, made._settings), work)


def test_all_of_it_is_done_though_somebody_is_always_being_answered(make: Any, files: Files) -> None:
    async def work(engine: Any) -> None:
        first, second = engine.adapters
        batch = [
            asyncio.ensure_future(
                complete(engine, Request(messages=SHORT, adapter=item, max_new_tokens=3, gives_way=True))
            )
            for item in (first, second, BASE)
        ]
        over = False

        async def busy() -> None:
            while not over:
                await complete(engine, Request(messages=SHORT, adapter=second, max_new_tokens=8))

        busy_ones = [asyncio.ensure_future(busy()) for _ in range(2)]
        began = time.monotonic()
        done = await asyncio.wait_for(asyncio.gather(*batch), 60)
        over = True
        await asyncio.gather(*busy_ones)
        assert all(item.completion_tokens == 3 for item in done), time.monotonic() - began

    served.run(make(files, (0, 1)), work)
