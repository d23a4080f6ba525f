"""The contract with a server that behaves as vLLM's documented API does: what is sent, what is read, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import served
from served import Files
from vllm_contract import differences
from vllm_stand_in import MODEL, TOGETHER, StandIn, schema_of

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.inference.openai.serving import QUANTUM, EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import BASE, Served, complete
from tuneloop.inference.request import Request, Sampling
from tuneloop.models.adapters.peft_layout import hash_of_adapter
from tuneloop.models.load import load_tokenizer
from tuneloop.serving.canary import CanaryRow, prove_base

TURNS: Any = [{"role": "user", "content": "Is it windy on Jupiter?"}]
LABELS = ("refund", "delivery", "other")


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"))


def against(
    server: StandIn, work: Callable[[EndpointEngine], Awaitable[Any]], adapters: tuple[str, ...] = (), **settings: Any
) -> None:
    """Run some work with an engine that asks a server."""
    with server as url:
        engine = EndpointEngine(
            Served(MODEL), [Served(adapter) for adapter in adapters], EndpointSettings(url, **settings)
        )
        served.run(engine, work)


def asked(adapter: str = BASE, **settings: Any) -> Request:
    return Request(messages=TURNS, adapter=adapter, **{"max_new_tokens": 8, **settings})


def test_prompts_are_the_trained_tokens_and_adapters_go_by_their_hash(files: Files) -> None:
    server, folder = StandIn(files.base), str(files.adapters[0])

    async def work(engine: EndpointEngine) -> None:
        (name,) = engine.adapters
        assert name == hash_of_adapter(files.adapters[0]) and engine.context == 512
        updates = [update async for update in engine.stream(asked(name, logprobs=2))]
        last = updates[-1].completion
        assert last is not None and "".join(update.text for update in updates).strip() == last.text
        assert len(last.token_ids) == len(last.logprobs or ()) == last.completion_tokens == 8
        assert [logprob.id for logprob in last.logprobs or ()] == list(last.token_ids)
        body = server.bodies[-1]
        assert body["model"] == name and body["prompt"] == await engine.render(TURNS, adapter=name)
        assert last.cached_tokens == 0
        server.cached = 16
        assert (await complete(engine, asked(name))).cached_tokens == 16
        assert (await complete(engine, asked())).token_ids != last.token_ids and server.bodies[-1]["model"] == MODEL

    against(server, work, (folder,), tokenizer=str(files.base))


@pytest.mark.parametrize(("version", "field"), [("0.12.1", "structured_outputs"), ("0.9.2", "guided_choice")])
def test_choices_are_asked_in_the_words_of_the_server_s_version(files: Files, version: str, field: str) -> None:
    server = StandIn(files.base, version=version)

    async def work(engine: EndpointEngine) -> None:
        found = await complete(engine, asked(choices=LABELS))
        assert found.text in LABELS and found.finish == "choice"
        wanted: Any = {"choice": list(LABELS)} if field == "structured_outputs" else list(LABELS)
        assert server.bodies[-1][field] == wanted

    against(server, work)


@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_server_that_ignores_choices_or_a_schema_is_noticed(files: Files, tokenizer: bool) -> None:
    async def work(engine: EndpointEngine) -> None:
        found = await complete(engine, asked(choices=LABELS))
        assert found.finish == "error" and found.error.startswith("no_choices: the server did not hold")
        assert (await complete(engine, asked(schema={"type": "nonsense"}))).error.startswith("no_schema: ")

    against(StandIn(files.base, holds=False), work, tokenizer=str(files.base) if tokenizer else "")


@pytest.mark.parametrize(
    ("tags", "schema", "form"),
    [
        (True, {"type": "object"}, "structural_tag"),
        (False, {"type": "object"}, "json_schema"),
        (True, {"type": "string", "pattern": "a+"}, "json_schema"),
    ],
)
def test_white_space_is_bounded_where_the_server_can_and_all_of_the_schema_is_held(
    files: Files, tags: bool, schema: dict[str, Any], form: str
) -> None:
    server = StandIn(files.base, tags=tags)

    async def work(engine: EndpointEngine) -> None:
        await complete(engine, asked(schema=schema))
        held = server.bodies[-1]["response_format"]
        assert held["type"] == form and schema_of(held) == schema
        assert ("max_whitespace_cnt" in held.get("format", {})) == (form == "structural_tag")

    against(server, work)


@pytest.mark.parametrize("most", [20, 128])
def test_labels_and_their_probabilities_are_those_of_our_own_engine(files: Files, most: int) -> None:
    labels = ("refund", "refund request", "delivery", "delivery time", "account", "other")
    local = served.local(files, (0,))

    async def ask(engine: Any) -> list[Any]:
        (adapter,) = engine.adapters
        return [
            await complete(engine, asked(name, choices=labels, gives_way=later))
            for name in (BASE, adapter)
            for later in (False, True)
        ]

    wanted, server = served.run(local, ask), StandIn(files.base, most_logprobs=most)

    async def work(engine: EndpointEngine) -> None:
        server.bodies.clear()
        replies = await ask(engine)
        assert server.bodies[0]["logprobs"] == most, "as many branches of the first token as the server gives"
        for answer, own in zip(replies, wanted, strict=True):
            assert answer.text == own.text and answer.finish == "choice"
            assert answer.label_probability == pytest.approx(own.label_probability, abs=0.01)
            assert answer.label_scores[answer.text] == pytest.approx(own.label_scores[own.text], abs=1e-3)

    against(server, work, (str(files.adapters[0]),), tokenizer=str(files.base))


def test_adapters_that_a_restart_has_lost_are_loaded_again_and_the_last_engine_unloads_them(files: Files) -> None:
    server, folder = StandIn(files.base), str(files.adapters[0])
    name = hash_of_adapter(files.adapters[0])
    settings = {"tokenizer": str(files.base)}
    with server as url:
        made = [EndpointEngine(Served(MODEL), [Served(folder)], EndpointSettings(url, **settings)) for _ in range(2)]

        async def work(first: EndpointEngine) -> None:
            await made[1].start()
            server.restart()
            assert await first.healthy() and list(server.names) == [name]
            assert not (await complete(first, asked(name))).error
            server.restart()
            server.lets_load = False
            assert not await first.healthy()
            server.lets_load = True
            assert await made[1].healthy()
            await made[1].stop()
            assert list(server.names) == [name], "the other engine still uses it"

        served.run(made[0], work)
        assert not server.names


@pytest.mark.parametrize("mixes", [False, True])
def test_a_server_that_gives_the_base_an_adapter_s_weights_is_noticed(
    files: Files, mixes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.serving.canary.MIXED", 0.1)  # random weights of a tiny model change little
    server = StandIn(files.base)
    rows = [CanaryRow(Request(TURNS), "")] * 3

    async def work(engine: EndpointEngine) -> None:
        await complete(engine, asked(next(iter(engine.adapters)), max_new_tokens=1))
        await asyncio.sleep(TOGETHER if mixes else 0)
        server.mixes = mixes
        with pytest.raises(UserError, match="The base answers otherwise") if mixes else nullcontext():
            await prove_base(engine, rows)

    against(server, work, (str(files.adapters[0]),), tokenizer=str(files.base))


def test_all_of_sampling_is_said_to_vllm_and_where_a_turn_ends(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        await complete(engine, asked())
        body = server.bodies[-1]
        usual = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert {name: body[name] for name in usual} == usual
        assert body["stop_token_ids"] == list(load_tokenizer(files.base).end_ids)

    against(server, work, tokenizer=str(files.base))


def test_the_base_s_generation_settings_do_not_change_an_answer(files: Files) -> None:
    server = StandIn(files.base, generation={"repetition_penalty": 50.0, "temperature": 2.0})

    async def ask(engine: EndpointEngine) -> list[int]:
        return list((await complete(engine, asked())).token_ids)

    wanted = served.run(served.local(files, ()), ask)

    async def work(engine: EndpointEngine) -> None:
        assert await ask(engine) == wanted
        plain = {"model": MODEL, "prompt": list(await engine.render(TURNS)), "max_tokens": 8, "stream": True}
        assert engine._wire is not None
        events = [event async for event in engine._wire.events("/v1/completions", json.dumps(plain).encode())]
        said = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-2])
        assert said != (await complete(engine, asked())).text, "else nothing was to be changed"

    against(server, work, tokenizer=str(files.base))


def test_the_stand_in_refuses_and_accepts_what_vllm_does(files: Files) -> None:
    with StandIn(files.base) as url:
        assert not differences(url.removesuffix("/v1"), MODEL)


def test_after_a_restart_only_what_the_server_was_started_with_is_there(files: Files) -> None:
    server = StandIn(files.base, {"support": files.adapters[0]})
    server.names["loaded"] = files.adapters[1]
    server.restart()
    assert list(server.names) == ["support"]


def test_without_a_tokenizer_the_server_renders(files: Files) -> None:
    server = StandIn(files.base, version="")

    async def work(engine: EndpointEngine) -> None:
        found = await complete(engine, asked())
        body = server.bodies[-1]
        assert body["messages"] == TURNS and "prompt" not in body and found.completion_tokens == 8
        assert found.prompt_tokens == len(await engine.render(TURNS)) and len(await engine.tokenize("Hello")) == 2
        assert (await complete(engine, asked(choices=LABELS))).error.startswith("no_choices: only vLLM")
        assert (await complete(engine, Request())).error.startswith("no_prompt")

    against(server, work)


def test_who_stops_reading_ends_the_answer_in_the_server(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        stream = engine.stream(asked(max_new_tokens=450))
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        until = time.monotonic() + HANG
        while not server.cut:
            assert time.monotonic() < until, "the server goes on writing for nobody"
            await asyncio.sleep(0.01)

    against(server, work)


def test_what_is_missing_is_told_at_the_start(files: Files) -> None:
    async def nothing(engine: EndpointEngine) -> None:
        raise AssertionError("it must not start")

    with pytest.raises(UserError, match="no adapter 'support'") as error:
        against(StandIn(files.base), nothing, ("support",))
    assert "--lora-modules support=FOLDER" in error.value.next_step
    with pytest.raises(UserError, match="does not load the adapter"):
        against(StandIn(files.base, lets_load=False), nothing, (str(files.adapters[0]),))
    locked = StandIn(files.base)
    locked.key = "secret"
    with pytest.raises(UserError, match="HTTP 401"):
        against(locked, nothing)
    with pytest.raises(UserError, match="does not tell its models"):
        gone = EndpointEngine(Served(MODEL), [], EndpointSettings("http://127.0.0.1:9", start_within=0.1))
        asyncio.run(gone.start())
    with pytest.raises(UserError, match="Not a server's URL"):
        asyncio.run(EndpointEngine(Served(MODEL), [], EndpointSettings("localhost")).start())
    with StandIn(files.base) as url, pytest.raises(UserError, match="no model 'other'"):
        asyncio.run(EndpointEngine(Served("other"), [], EndpointSettings(url)).start())


def test_an_adapter_that_the_server_was_started_with_is_not_loaded_again(files: Files) -> None:
    async def work(engine: EndpointEngine) -> None:
        assert list(engine.adapters) == ["support"]
        assert (await complete(engine, asked("support"))).adapter == "support"

    against(StandIn(files.base, {"support": files.adapters[0]}, lets_load=False), work, ("support",))


def test_a_server_whose_engine_has_died_is_not_healthy(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        assert await engine.healthy()
        server.engine_died = True
        assert not await engine.healthy()

    against(server, work)


def test_a_server_that_ends_is_an_error_and_not_healthy(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        assert await engine.healthy()
        await asyncio.to_thread(server.__exit__)
        found = await complete(engine, asked())
        assert found.finish == "error" and found.error.startswith("engine: ") and not await engine.healthy()

    against(server, work)


def test_what_gives_way_has_a_priority_where_vllm_schedules_by_it(files: Files) -> None:
    for priorities, version in ((True, "0.12.1"), (False, "0.12.1"), (True, "")):
        server = StandIn(files.base, version=version)

        async def work(engine: EndpointEngine) -> None:
            can = priorities and bool(version)  # noqa: B023
            assert engine.gives_way is can
            assert (await complete(engine, asked(gives_way=True))).error == ""
            assert server.bodies[-1].get("priority") == (1 if can else None)  # noqa: B023
            await complete(engine, asked())
            assert "priority" not in server.bodies[-1]  # noqa: B023

        against(server, work, priorities=priorities)


def test_what_gives_way_is_written_in_quanta_where_vllm_knows_no_priorities(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        assert engine.gives_way
        for settings in (
            {"max_new_tokens": 80},
            {"max_new_tokens": 32},
            {"max_new_tokens": 80, "stop": ("e",)},
            {"choices": LABELS},
        ):
            whole = await complete(engine, asked(**settings))
            server.bodies.clear()
            updates = [update async for update in engine.stream(asked(gives_way=True, **settings))]
            found = updates[-1].completion
            assert found is not None and (found.text, found.finish) == (whole.text, whole.finish)
            assert "".join(update.text for update in updates).strip() == found.text or "choices" in settings
            if "stop" not in settings:  # behind a stop string a quantum writes on
                assert found.token_ids == whole.token_ids and found.prompt_tokens == whole.prompt_tokens
            asked_for = [body["max_tokens"] for body in server.bodies]
            assert max(asked_for) <= QUANTUM
            for before, body in itertools.pairwise(
                server.bodies if "choices" not in settings else ()
            ):  # it goes on behind what is there
                assert body["prompt"][: len(before["prompt"])] == before["prompt"]
                assert len(body["prompt"]) == len(before["prompt"]) + QUANTUM
        drawn = [
            await complete(engine, asked(max_new_tokens=80, gives_way=True, sampling=Sampling(1.0, seed=3)))
            for _ in range(2)
        ]
        assert drawn[0].token_ids == drawn[1].token_ids, "a seed gives one answer"

    against(server, work, tokenizer=str(files.base))


def test_no_quantum_begins_while_somebody_is_answered_but_its_share(files: Files) -> None:
    server = StandIn(files.base)

    async def work(engine: EndpointEngine) -> None:
        async def row() -> Any:
            return await complete(engine, asked(max_new_tokens=200, gives_way=True))

        rows = [asyncio.create_task(row()) for _ in range(2)]
        while len(server.bodies) < 4:
            await asyncio.sleep(0.01)
        engine._turns.share = 1e-6  # one quantum may begin next to people, and no second one
        engine._turns.come("")
        await asyncio.sleep(0.3)
        before = len(server.bodies)
        whole = await complete(engine, asked(max_new_tokens=40))
        assert whole.error == "" and len(server.bodies) <= before + 3
        for item in rows:
            assert not item.done()
        engine._turns.share = 1.0
        engine._turns._rest_until = 0.0
        engine._turns.go("")
        assert len({(await row).text for row in rows}) == 1
        first = asyncio.create_task(row())
        await asyncio.sleep(0.05)
        first.cancel()  # its reader leaves, and others go on
        assert (await row()).error == "" and not engine._turns.running

    against(server, work, tokenizer=str(files.base))


@pytest.mark.parametrize("how", ["no tokenizer here", "tells no tokens"])
def test_without_tokens_nothing_is_written_in_quanta(files: Files, how: str) -> None:
    server = StandIn(files.base, tells_ids=how != "tells no tokens")

    async def work(engine: EndpointEngine) -> None:
        assert not engine.gives_way
        assert (await complete(engine, asked(max_new_tokens=80, gives_way=True))).error == ""
        assert [body["max_tokens"] for body in server.bodies[-1:]] == [80]

    against(server, work, **({} if how == "no tokenizer here" else {"tokenizer": str(files.base)}))
