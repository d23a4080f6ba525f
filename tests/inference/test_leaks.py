"""An answer depends on its request alone, in every engine: not on which adapter answered before, what is cached, what is computed next to it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import real_vllm
import served
from by_day import by_day
from served import Files

from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.llamacpp.serving import VERSION, WHEEL
from tuneloop.inference.protocol import BASE, ServingEngine, complete
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion

needs_llamacpp = pytest.mark.skipif(
    not (installed() and installed(WHEEL, VERSION)), reason="llama.cpp is not installed"
)
needs_vllm = pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm")
ENGINES = [
    pytest.param(served.local, id="local"),
    pytest.param(served.endpoint, id="endpoint"),
    pytest.param(served.llamacpp, id="llamacpp", marks=[needs_llamacpp, pytest.mark.slow]),
    pytest.param(served.vllm, id="vllm", marks=[needs_vllm, pytest.mark.vllm]),
]
Make = Callable[..., ServingEngine]
SYSTEM = {"role": "system", "content": "You answer questions about the weather on other planets, in a few words."}
TURNS = [[SYSTEM, {"role": "user", "content": text}] for text in ("Is it windy on Jupiter?", "Does it rain?")]
OTHER = [
    {"role": "user", "content": "Count the moons of all planets, beginning with the one that is nearest to the sun."}
]
LABELS = ("refund", "refund request", "delivery")
WHO = (None, 0, 1)  # the base, and the adapters


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"))


def named(engine: ServingEngine, who: int | None) -> str:
    return BASE if who is None else list(engine.adapters)[who]


def request(engine: ServingEngine, who: int | None, turns: int = 0, **settings: Any) -> Request:
    return Request(
        messages=TURNS[turns], adapter=named(engine, who), **{"max_new_tokens": served.tokens(engine), **settings}
    )


@pytest.fixture(scope="module", params=ENGINES)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    found: Make = request.param
    yield found
    if found is served.vllm:
        hits = served.vllm_server().metric("vllm:prefix_cache_hits_total")
        assert hits > 0, "what may leak between adapters is what the prefix cache holds"
        print(f"{hits:,.0f} tokens came from the prefix cache")


@pytest.fixture(scope="module")
def cold(make: Make, files: Files) -> dict[Any, Completion]:
    """What an engine answers that holds one adapter only, asked for the first time."""
    found = {}
    for who, turns in itertools.product(WHO, range(2)):
        engine = make(files, () if who is None else (who,))

        async def ask(engine: ServingEngine, who: int | None = who, turns: int = turns) -> None:
            alone = None if who is None else 0
            found[who, turns] = await complete(engine, request(engine, alone, turns))
            if turns:
                found[who, turns, "choice"] = await complete(engine, request(engine, alone, turns, choices=LABELS))

        served.run(engine, ask)
    assert not any(match.error for match in found.values())
    assert len({found[who, 0].token_ids for who in WHO}) == 3, "the adapters must make a difference"
    return found


@pytest.mark.parametrize("slots", by_day([1, 3], [3]), ids=["same slot", "slots swapped"])
def test_after_any_other_adapter_the_answer_is_that_of_a_cold_engine(
    make: Make, files: Files, cold: dict[Any, Completion], slots: int
) -> None:
    """Each pair of base and adapters, the second with the first one's prompt in the cache, and with another."""

    async def work(engine: ServingEngine) -> None:
        for before, after in itertools.product(WHO, WHO):
            for turns in range(2):
                first = await complete(engine, request(engine, before, 0))
                second = await complete(engine, request(engine, after, turns))
                assert first.token_ids == cold[before, 0].token_ids, (before, after)
                assert second.token_ids == cold[after, turns].token_ids, (before, after, turns)
            # What has left its slot may come back from a cache: of the first adapter, when the second asks for it.
            await complete(engine, request(engine, before, 0))
            await complete(engine, replace(request(engine, after), messages=OTHER))
            third = await complete(engine, request(engine, after, 0))
            assert third.token_ids == cold[after, 0].token_ids, (before, after, "again")

    served.run(make(files, (0, 1), slots), work)


def test_adapters_that_are_asked_at_once_do_not_mix(make: Make, files: Files, cold: dict[Any, Completion]) -> None:
    async def work(engine: ServingEngine) -> None:
        asked = list(itertools.product(WHO, range(2))) * 3
        found = await asyncio.gather(*(complete(engine, request(engine, who, turns)) for who, turns in asked))
        assert [match.token_ids for match in found] == [cold[key].token_ids for key in asked]

    served.run(make(files, (0, 1), 3), work)


def test_choices_do_not_depend_on_what_was_asked_before(make: Make, files: Files, cold: dict[Any, Completion]) -> None:
    async def work(engine: ServingEngine) -> None:
        for before, after in itertools.product(WHO, WHO):
            await complete(engine, request(engine, before, 0, choices=LABELS))
            found = await complete(engine, request(engine, after, 1, choices=LABELS))
            alone = cold[after, 1, "choice"]
            assert found.text == alone.text and found.finish == "choice"
            if alone.label_scores is not None:
                assert found.label_scores == pytest.approx(dict(alone.label_scores), abs=1e-4)

    served.run(make(files, (0, 1)), work)


def test_a_cut_answer_leaves_nothing_behind(make: Make, files: Files, cold: dict[Any, Completion]) -> None:
    async def work(engine: ServingEngine) -> None:
        for before, after in itertools.product(WHO, WHO):
            cut = engine.stream(request(engine, before, 0, max_new_tokens=200))
            await anext(cut)
            await cut.aclose()  # type: ignore[attr-defined]
            found = await complete(engine, request(engine, after, 0))
            assert found.token_ids == cold[after, 0].token_ids, (before, after)

    served.run(make(files, (0, 1), 1), work)


def test_a_restarted_engine_answers_as_before(make: Make, files: Files, cold: dict[Any, Completion]) -> None:
    async def work(engine: ServingEngine) -> None:
        for who in WHO:
            await complete(engine, request(engine, who))
        await engine.stop()
        assert not await engine.healthy()
        await engine.start()
        assert await engine.healthy()
        for who in reversed(WHO):
            assert (await complete(engine, request(engine, who))).token_ids == cold[who, 0].token_ids

    served.run(make(files, (0, 1)), work)


def test_an_adapter_that_is_not_loaded_is_an_error_and_not_the_base(make: Make, files: Files) -> None:
    async def work(engine: ServingEngine) -> None:
        for name in ("f" * 64, "7", "adapter-2"):
            found = await complete(engine, Request(messages=TURNS[0], adapter=name))
            assert found.finish == "error" and found.error.startswith("no_adapter: ") and not found.text

    served.run(make(files, (0,)), work)
