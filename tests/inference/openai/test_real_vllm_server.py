"""Against the real vLLM with a base that samples and ends otherwise: scheduling, tools, seeds, a swap, a dying engine."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real_vllm
import served
from adapters import write_adapter
from live_server import live
from real_vllm import RealVllm
from thinking import check_reasoning
from vllm_contract import differences, post

from patience import slowness
from tuneloop.improve.experiment.live import Experiments
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import Served, ServingEngine, complete
from tuneloop.inference.request import GREEDY, Request
from tuneloop.models.adapters.peft_layout import hash_of_adapter
from tuneloop.models.files.names import resolve
from tuneloop.models.load import load_tokenizer
from tuneloop.records.completion import Completion
from tuneloop.serving.gateway import Caller, Gateway, ServedModel
from tuneloop.serving.http.api_request import ApiRequest
from tuneloop.serving.http.app import whole
from tuneloop.serving.server import _started, serve_config
from tuneloop.serving.swap import Swaps

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
WINDY: Any = [
    {"role": "system", "content": "You answer questions about the weather on other planets, in a few words."},
    {"role": "user", "content": "Is it windy on Jupiter?"},
]
LONG: Any = [{"role": "user", "content": "Tell a long story about a ship."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Paris"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as another one: it ends in `<|endoftext|>`, and samples with a repetition penalty."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(resolve("smollm2-135m"), folder, symlinks=True)
    for name, changes in {
        "config.json": {"eos_token_id": 0},
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "generation_config.json": {"eos_token_id": 0, "repetition_penalty": 1.8, "do_sample": True, "temperature": 0.9},
    }.items():
        file = folder / name
        values = json.loads(file.read_text()) if file.is_file() else {}
        file.unlink(missing_ok=True)
        file.write_text(json.dumps(values | changes))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, model = tmp_path_factory.mktemp("adapters"), Path(resolve("smollm2-135m"))
    return [write_adapter(model, folder / str(seed), seed, strength=0.15) for seed in (1, 2)]


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    server = RealVllm(base, log, "--dtype", "float32", "--generation-config", "auto").start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")


def endpoint(server: RealVllm, *adapters: Path, **settings: Any) -> EndpointEngine:
    options = EndpointSettings(f"{server.address}/v1", tokenizer="smollm2-135m", slots=4, **settings)
    return EndpointEngine(Served("base"), [Served(str(adapter)) for adapter in adapters], options)


async def answers(engine: ServingEngine) -> list[Completion]:
    names = [next(iter(engine.adapters)), "base"]
    return [await complete(engine, Request(FRANCE, adapter=name, max_new_tokens=40)) for name in names]


def test_answers_end_and_are_drawn_as_they_were_evaluated_whatever_the_base_s_settings(
    server: RealVllm, adapters: list[Path]
) -> None:
    ours = served.run(LocalEngine(Served("smollm2-135m"), [Served(str(adapters[0]))]), answers)
    theirs = served.run(endpoint(server, adapters[0]), answers)
    assert [their.token_ids for their in theirs] == [our.token_ids for our in ours]
    assert [their.finish for their in theirs] == [our.finish for our in ours] and ours[1].finish == "stop"

    async def ids(engine: EndpointEngine) -> list[int]:
        return list(await engine.render(FRANCE))

    prompt = served.run(endpoint(server), ids)
    body = {"model": "base", "prompt": prompt, "max_tokens": 40, "temperature": 0, "return_token_ids": True}
    _, plain = post(server.address, "/v1/completions", body)
    assert plain["choices"][0]["token_ids"] != list(ours[1].token_ids), (
        "the base's penalty applies unless another is sent"
    )
    _, neutral = post(server.address, "/v1/completions", body | {"repetition_penalty": 1.0})
    assert neutral["choices"][0]["finish_reason"] == "length", "the base ends in another token"


def test_a_priority_is_accepted_and_ignored_and_background_work_is_written_in_quanta(server: RealVllm) -> None:
    body = {"model": "base", "prompt": [64], "max_tokens": 1, "priority": -5}
    assert post(server.address, "/v1/completions", body)[0] == 200, "the usual policy does not read it"

    async def work(engine: EndpointEngine) -> None:
        whole = await complete(engine, Request(LONG, max_new_tokens=80))
        background = asyncio.create_task(complete(engine, Request(LONG, max_new_tokens=80, gives_way=True)))
        while not engine._turns.running:
            await asyncio.sleep(0.01)
        answer = await complete(engine, Request(FRANCE, max_new_tokens=8))
        assert not answer.error and not background.done()
        assert (await background).token_ids == whole.token_ids

    served.run(endpoint(server), work)


def test_a_client_that_leaves_frees_the_server_within_two_seconds(server: RealVllm) -> None:
    async def work(engine: EndpointEngine) -> None:
        stream = engine.stream(Request(LONG, max_new_tokens=900))
        await anext(stream)
        assert server.metric("vllm:num_requests_running") == 1
        await stream.aclose()  # type: ignore[attr-defined]
        until = time.monotonic() + 2 * slowness()
        while await asyncio.to_thread(server.metric, "vllm:num_requests_running"):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)

    served.run(endpoint(server), work)


def test_tools_seeds_and_log_probabilities_through_our_server(server: RealVllm, tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    decode = load_tokenizer("smollm2-135m").decode
    with live(tmp_path, endpoint(server), {"base": ServedModel("base", decode=decode)}) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600)
        ask = client.chat.completions.create
        reply = ask(
            model="base", messages=FRANCE, tools=[WEATHER], tool_choice="required", max_tokens=60, temperature=0
        )
        (call,) = reply.choices[0].message.tool_calls
        assert call.function.name == "weather" and reply.choices[0].finish_reason == "tool_calls"
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Oslo", "Paris") and 1 <= arguments["days"] <= 7
        drawn = [
            ask(model="base", messages=LONG, max_tokens=12, temperature=1.0, seed=seed).choices[0].message.content
            for seed in (7, 7, 8)
        ]
        assert drawn[0] == drawn[1] != drawn[2]
        likely = ask(model="base", messages=FRANCE, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
        tokens = likely.choices[0].logprobs.content
        assert "".join(entry.token for entry in tokens).strip() == likely.choices[0].message.content
        for token in tokens:
            tops = [top.logprob for top in token.top_logprobs]
            assert len(tops) == 3 and token.logprob == max(tops) and sum(map(math.exp, tops)) <= 1 + 1e-6


def test_reasoning_is_apart_whole_and_streamed(server: RealVllm, tmp_path: Path) -> None:
    check_reasoning(endpoint(server), tmp_path)


def test_what_vllm_refuses_reaches_the_caller_in_its_own_words(server: RealVllm) -> None:
    assert not differences(server.address, "base"), "else the stand-in of other tests is wrong, too"

    async def work(engine: EndpointEngine) -> None:
        answer = await complete(engine, Request(ids=[64] * 2000, max_new_tokens=4))
        assert answer.error.startswith(("rejected: HTTP 400", "too_long")), answer.error
        assert "1024" in answer.error or "1,024" in answer.error

    served.run(endpoint(server), work)


def test_no_request_fails_while_the_adapter_is_swapped(server: RealVllm, adapters: list[Path], tmp_path: Path) -> None:
    def config(adapter: Path) -> Any:
        more = [f"folder={tmp_path / 'serve'}", "tokenizer=smollm2-135m", "canaries=0", "base=base"]
        return serve_config([], [f"engine={server.address}/v1", f"adapters.m={adapter}", *more])

    async def ask(gateway: Gateway) -> str:
        request = ApiRequest("chat", model="m", messages=WINDY, max_new_tokens=8, sampling=GREEDY)
        return str((await whole(gateway.answer(request, Caller())))[1][0].text)

    async def main() -> None:
        async with _started(config(adapters[0]), {}) as gateway:
            before = await ask(gateway)
            over, texts = asyncio.Event(), [before]

            async def load() -> None:
                while not over.is_set():
                    texts.append(await ask(gateway))

            tasks = [asyncio.create_task(load()) for _ in range(2)]
            swaps = Swaps(config(adapters[1]), Experiments(tmp_path / "serve"), say=print)
            assert await swaps.swap(gateway, {"m": str(adapters[1])})
            await asyncio.gather(*swaps._ending)
            after = await ask(gateway)
            over.set()
            await asyncio.gather(*tasks)
            assert set(texts) <= {before, after} and before != after and len(texts) > 2
            engine: Any = gateway.engine
            names = set(await engine._models())
            assert hash_of_adapter(adapters[1]) in names and hash_of_adapter(adapters[0]) not in names

    asyncio.run(main())


def test_an_engine_that_dies_in_mid_answer_is_an_error_and_not_healthy(server: RealVllm) -> None:
    async def work(engine: EndpointEngine) -> None:
        (core,) = server.processes("EngineCore")
        stream = engine.stream(Request(LONG, max_new_tokens=900))
        updates = [await anext(stream)]
        os.kill(core, signal.SIGKILL)
        async with asyncio.timeout(60 * slowness()):
            async for update in stream:
                updates.append(update)
        last = updates[-1].completion
        assert last is not None and last.finish == "error" and last.error.startswith("engine: ")
        assert last.text == "".join(update.text for update in updates).strip(), "what was written is not lost"
        assert not await engine.healthy()

    served.run(endpoint(server), work)


def test_under_priorities_a_request_goes_before_background_work_that_waits(tmp_path: Path) -> None:
    """What is being written is not interrupted: vLLM does that only where its cache runs out of blocks."""
    more = ("--scheduling-policy", "priority", "--max-num-seqs", "1")
    server = RealVllm(Path(resolve("smollm2-135m")), tmp_path / "log.txt", "--dtype", "float32", *more).start()

    async def work(engine: EndpointEngine) -> None:
        async def under_way(name: str) -> None:
            until = time.monotonic() + 60 * slowness()
            while not await asyncio.to_thread(server.metric, f"vllm:num_requests_{name}"):
                assert time.monotonic() < until

        first = asyncio.create_task(complete(engine, Request(LONG, max_new_tokens=60)))
        await under_way("running")
        background = asyncio.create_task(complete(engine, Request(LONG, max_new_tokens=20, gives_way=True)))
        await under_way("waiting")
        answer = await complete(engine, Request(FRANCE, max_new_tokens=4))
        assert not answer.error and first.done() and not background.done()
        assert (await background).token_ids == (await first).token_ids[:20]

    try:
        served.run(endpoint(server, priorities=True), work)
    finally:
        server.kill()
