"""Our own engine behind the serving protocol: streams, cancels, chooses, and never answers by another adapter."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.inference.local.serving import TOKENS, LocalEngine
from tuneloop.inference.local.target import LocalTarget
from tuneloop.inference.protocol import BASE, EngineSettings, Served, complete
from tuneloop.inference.request import Request
from tuneloop.records.completion import Completion

TURNS = [{"role": "user", "content": "Is it windy on Jupiter?"}]
LABELS = ("refund", "refund request", "delivery")


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter"), seed) for seed in (1, 2)]


def cold(base: Path, adapter: Path | None) -> LocalTarget:
    return LocalTarget(str(base), str(base), adapter)


@pytest.fixture
def served(tiny_llama: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a coroutine function with a started engine, and stop it."""

    def run(work: Callable[[LocalEngine], Coroutine[Any, Any, None]], slots: int = 64, tokens: int = TOKENS) -> None:
        async def main() -> None:
            loaded = [Served(str(folder)) for folder in adapters]
            engine = LocalEngine(Served(str(tiny_llama)), loaded, EngineSettings(slots=slots))
            monkeypatch.setattr("tuneloop.inference.local.serving.TOKENS", tokens)
            await engine.start()
            try:
                await work(engine)
            finally:
                await engine.stop()
            assert not await engine.healthy()

        asyncio.run(asyncio.wait_for(main(), HANG))

    return run


def test_a_merged_adapter_writes_the_same_answer_and_the_base_is_not_served(
    tiny_llama: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")  # rounding to bf16 changes the likeliest of random tokens
    expected = next(iter(cold(tiny_llama, adapters[0]).complete([asked("")]))).token_ids

    async def work() -> None:
        engine = LocalEngine(Served(str(tiny_llama)), [Served(str(adapters[0]))], EngineSettings(merge=True))
        await engine.start()
        (name,) = engine.adapters
        found, base = await asyncio.gather(complete(engine, asked(name)), complete(engine, asked(BASE)))
        await engine.stop()
        assert found.token_ids == expected and found.adapter == name
        assert base.finish == "error" and "merged into the base" in str(base.error)

    asyncio.run(asyncio.wait_for(work(), HANG))


def asked(adapter: str = BASE, **settings: Any) -> Request:
    return Request(messages=TURNS, adapter=adapter, **{"max_new_tokens": 12, **settings})


def test_each_adapter_answers_as_it_does_alone_when_all_are_asked_at_once(
    served: Callable[..., None], tiny_llama: Path, adapters: list[Path]
) -> None:
    expected = [next(iter(cold(tiny_llama, a).complete([asked("")]))).token_ids for a in (None, *adapters)]
    assert len(set(expected)) == 3, "the adapters must make a difference"

    async def work(engine: LocalEngine) -> None:
        assert await engine.healthy() and [facts.source for facts in engine.adapters.values()] == list(
            map(str, adapters)
        )
        names = [BASE, *engine.adapters] * 3
        found = await asyncio.gather(*(complete(engine, asked(name)) for name in names))
        assert [match.token_ids for match in found] == expected * 3
        assert [match.adapter for match in found] == names
        unnamed = await complete(engine, asked(""))
        assert unnamed.token_ids == expected[0], "where none is named, the base answers"

    served(work)


def test_the_pieces_of_a_stream_are_the_answer(served: Callable[..., None]) -> None:
    async def work(engine: LocalEngine) -> None:
        updates = [update async for update in engine.stream(asked())]
        last = updates[-1].completion
        assert last is not None and last.completion_tokens == 12 and len(updates) > 2
        assert "".join(update.text for update in updates).strip() == last.text

    served(work)


def test_who_stops_reading_frees_the_place_in_the_engine(served: Callable[..., None]) -> None:
    async def work(engine: LocalEngine) -> None:
        endless = engine.stream(asked(max_new_tokens=20_000))
        await anext(endless)
        await endless.aclose()
        answer = await complete(engine, asked(max_new_tokens=3))  # the only slot
        assert answer.completion_tokens == 3

    served(work, slots=1, tokens=21_000)


def test_stopping_cancels_what_is_being_written(served: Callable[..., None]) -> None:
    async def work(engine: LocalEngine) -> None:
        tasks = [asyncio.create_task(complete(engine, asked(max_new_tokens=9_000))) for _ in range(2)]
        await asyncio.sleep(0.1)
        await engine.stop()
        await engine.stop()
        assert [(await task).finish for task in tasks] == ["cancelled"] * 2
        with pytest.raises(UserError, match="not started"):
            await engine.tokenize("x")

    served(work, slots=1)


STOPPED_AT_WORK = """
import asyncio, sys, torch
from tuneloop.inference.local import engine, serving
from tuneloop.inference.protocol import BASE, Served, complete
from tuneloop.inference.request import Request

serving.STOP_WITHIN, step = 0.0, engine.Engine.step
def long_step(self):
    for _ in range(20):
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    return step(self)
engine.Engine.step = long_step

async def main():
    stopping = serving.LocalEngine(Served(sys.argv[1]))
    await stopping.start()
    asyncio.ensure_future(complete(stopping, Request([{"role": "user", "content": "x"}], adapter=BASE)))
    await asyncio.sleep(0.2)
    await stopping.stop()

asyncio.run(main())
"""


def test_a_process_ends_well_whose_engine_is_in_the_middle_of_a_step(
    tiny_llama: Path, cli_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", STOPPED_AT_WORK, str(tiny_llama)]
    done = subprocess.run(command, capture_output=True, text=True, env=cli_environment, timeout=HANG)
    assert done.returncode == 0, done.stderr


def test_choices_are_answered_by_the_tree_of_labels(
    served: Callable[..., None], tiny_llama: Path, adapters: list[Path]
) -> None:
    def scored(adapter: Path | None) -> Completion:
        return next(iter(cold(tiny_llama, adapter).score([asked("")], LABELS, exact=True)))

    expected = [scored(adapter) for adapter in (None, *adapters)]

    async def work(engine: LocalEngine) -> None:
        names = [BASE, *engine.adapters]
        writing = asyncio.create_task(complete(engine, asked(max_new_tokens=40)))
        found = await asyncio.gather(*(complete(engine, asked(name, choices=LABELS)) for name in names * 2))
        for answer, alone in zip(found, expected * 2, strict=True):
            assert answer.text == alone.text and answer.finish == "choice"
            assert answer.label_scores == pytest.approx(dict(alone.label_scores or {}), abs=1e-4)
            assert answer.label_probability == pytest.approx(alone.label_probability, abs=1e-4)
        assert (await writing).completion_tokens == 40

    served(work)


def test_the_prompt_is_rendered_by_the_template_of_the_adapter(tiny_llama: Path, adapters: list[Path]) -> None:
    own = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"

    async def main() -> None:
        engine = LocalEngine(Served(str(tiny_llama)), [Served(str(adapters[0]), own)])
        await engine.start()
        (name,) = engine.adapters
        plain, special = await engine.render(TURNS), await engine.render(TURNS, adapter=name)
        template = cold(tiny_llama, None).model.template
        assert plain == template.prompt_ids(TURNS)
        assert template.tokenizer.decode(special, skip_special_tokens=False).startswith("user: Is it windy")
        given = await complete(engine, Request(ids=special, adapter=name, max_new_tokens=6))
        assert given == await complete(engine, asked(name, max_new_tokens=6))
        assert await engine.tokenize("<|eot_id|>") == template.encode("<|eot_id|>") != [template.end_ids[0]]
        with pytest.raises(UserError, match="no adapter"):
            await engine.render(TURNS, adapter="f" * 64)
        await engine.stop()

    asyncio.run(asyncio.wait_for(main(), HANG))


def test_the_vocabulary_is_read_for_schemas_before_there_are_requests(
    served: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    llguidance = pytest.importorskip("llguidance")

    async def work(engine: LocalEngine) -> None:
        monkeypatch.setattr(llguidance, "LLTokenizer", None)  # reading it now would stop every other answer
        completion = await complete(engine, asked(BASE, schema={"enum": [1, 2]}))
        assert completion.text in ("1", "2"), completion.error

    served(work)


def test_what_cannot_be_answered_says_why(served: Callable[..., None]) -> None:
    async def work(engine: LocalEngine) -> None:
        bad = [
            asked("f" * 64),
            Request(ids=[5] * 600),
            Request(),
            asked(schema={"type": "array", "uniqueItems": True}),
            Request(ids=[5] * 511, choices=LABELS),
        ]
        found = [await complete(engine, request) for request in bad]
        assert {match.finish for match in found} == {"error"}
        text = [match.error.split(":")[0] for match in found]
        assert text == ["no_adapter", "too_long", "no_prompt", "no_schema", "too_long"]
        assert (await complete(engine, asked())).finish in ("stop", "length"), "and the engine goes on"

    served(work, tokens=512)


def test_an_engine_that_fails_says_so_to_everybody_and_is_not_healthy(
    served: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: LocalEngine) -> None:
        def broken(self: Any) -> Any:
            raise MemoryError("no room")

        monkeypatch.setattr("tuneloop.inference.local.engine.Engine.step", broken)
        first = await complete(engine, asked())
        later = await complete(engine, asked())
        assert first.finish == later.finish == "error" and "MemoryError: no room" in later.error
        assert not await engine.healthy()

    served(work)


def test_a_model_that_is_missing_or_slow_is_refused(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError):
        asyncio.run(LocalEngine(Served(str(tmp_path / "none"))).start())
    with pytest.raises(UserError, match="No adapter"):
        asyncio.run(LocalEngine(Served(str(tiny_llama)), [Served(str(tmp_path))]).start())
    ready = threading.Event()
    monkeypatch.setattr("tuneloop.models.adapters.shared.load_model", lambda name: ready.wait(5))
    own = shutil.copytree(tiny_llama, tmp_path / "own")  # nobody else has it loaded
    with pytest.raises(UserError, match=r"not loaded within 0\.001 s"):
        asyncio.run(LocalEngine(Served(str(own)), settings=EngineSettings(start_within=0.001)).start())
    ready.set()
