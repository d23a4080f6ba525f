"""Against the real vLLM: what is served is what our own engine answers, and nothing is lost when it restarts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import real_vllm
import served
from adapters import write_adapter
from real_vllm import RealVllm

from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.openai.label_search import UNREAD
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import Served, ServingEngine, complete
from tuneloop.inference.request import Request
from tuneloop.inference.targets import open_target
from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.adapters.peft_layout import hash_of_adapter
from tuneloop.models.files.names import resolve
from tuneloop.records.completion import Completion

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
TOPICS = ("refund", "delivery", "account", "card", "top up", "other")
LABELS = tuple(f"{topic}{rest}" for topic in TOPICS for rest in ("", " request", " fee", " not working"))
# Longer than several blocks of the prefix cache.
SYSTEM = (
    "You name the kind of a ticket. " + "Tickets come from customers of a shop that sells kitchenware by mail. " * 20
)
TURNS: list[Any] = [
    [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    for text in ("My parcel has not arrived.", "I want my money back.", "I can't log in.", "When will it come?")
]
TOLERANCE = 2e-3  # of probabilities and log probabilities: both engines compute in float32, in another order


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, base = tmp_path_factory.mktemp("adapters"), Path(resolve("smollm2-135m"))
    return [write_adapter(base, folder / str(seed), seed, strength=0.04) for seed in (1, 2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealVllm]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    server = RealVllm(Path(resolve("smollm2-135m")), log, "--dtype", "float32").start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")


def endpoint(server: RealVllm, adapters: Sequence[Path]) -> EndpointEngine:
    settings = EndpointSettings(f"{server.address}/v1", tokenizer="smollm2-135m", slots=4)
    return EndpointEngine(Served("base"), [Served(str(adapter)) for adapter in adapters], settings)


async def answers(engine: ServingEngine, **settings: Any) -> list[Completion]:
    """The base alone, then the adapters in one batch.

    vLLM's kernels for processors give a row of the base the weights of the last adapter slot, where another row of the
    batch has an adapter and the slot has held one; those for GPUs do not.
    """
    found: list[Completion] = []
    for names in ([BASE], list(engine.adapters)):
        requests = [Request(turns, adapter=name, **settings) for name in names for turns in TURNS]
        found += await asyncio.gather(*(complete(engine, request) for request in requests))
    return found


def on_both(server: RealVllm, adapters: Sequence[Path], **settings: Any) -> list[tuple[Completion, Completion]]:
    async def work(engine: ServingEngine) -> list[Completion]:
        return await answers(engine, **settings)

    local = LocalEngine(Served("smollm2-135m"), [Served(str(adapter)) for adapter in adapters])
    ours, theirs = served.run(local, work), served.run(endpoint(server, adapters), work)
    return list(zip(ours, theirs, strict=True))


def test_prompts_are_the_tokens_that_vllm_itself_renders(server: RealVllm) -> None:
    async def work(engine: EndpointEngine) -> None:
        for turns in TURNS:
            body = {"model": "base", "messages": turns, "add_generation_prompt": True}
            assert list(await engine.render(turns)) == (await engine._reply("/tokenize", body, 30))["tokens"]

    served.run(endpoint(server, []), work)


def test_greedy_answers_are_ours_but_for_near_ties(server: RealVllm, adapters: list[Path]) -> None:
    pairs = on_both(server, adapters, max_new_tokens=12, logprobs=5)
    for ours, theirs in pairs:
        assert not theirs.error and theirs.logprobs and ours.logprobs
        at = next((i for i, (a, b) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)) if a != b), None)
        if at is not None:
            top = dict(theirs.logprobs[at].top)
            gap = theirs.logprobs[at].logprob - top.get(ours.token_ids[at], min(top.values()))
            assert gap < TOLERANCE, "only a tie may be decided otherwise"
    assert len({theirs.text for _, theirs in pairs}) > len(TURNS), "the adapters must make a difference"


def test_labels_and_probabilities_are_those_of_scoring_all_labels(server: RealVllm, adapters: list[Path]) -> None:
    pairs = on_both(server, adapters, choices=LABELS)
    for ours, theirs in pairs:
        assert not theirs.error and theirs.finish == "choice" and theirs.label_scores and ours.label_scores
        assert theirs.label_scores[theirs.text] == pytest.approx(ours.label_scores[theirs.text], abs=TOLERANCE)
        if theirs.text != ours.text:
            best, other = (ours.label_scores[text] for text in (ours.text, theirs.text))
            assert best - other < TOLERANCE, "only a tie may be decided otherwise"
    exact = open_target("smollm2-135m").score([Request(turns) for turns in TURNS], LABELS, exact=True)
    for true, (_, theirs) in zip(exact, pairs, strict=False):  # the base comes first
        assert theirs.label_probability == pytest.approx(true.label_probability, abs=UNREAD / 2 + TOLERANCE)
    assert server.metric("vllm:prefix_cache_hits_total") > 0, "later requests of a row read what the first has left"


def test_an_answer_fulfils_a_schema_and_ends_at_a_stop_string(server: RealVllm) -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}, "required": ["kind"]}

    async def work(engine: EndpointEngine) -> None:
        held = await complete(engine, Request(TURNS[0], schema=schema, max_new_tokens=60))
        assert not held.error and json.loads(held.text)["kind"] in ("a", "b")
        free = await complete(engine, Request(TURNS[0], max_new_tokens=20))
        word = free.text.split()[2]
        assert word not in (await complete(engine, Request(TURNS[0], max_new_tokens=20, stop=(word,)))).text

    served.run(endpoint(server, []), work)


def test_a_client_that_leaves_frees_the_server(server: RealVllm) -> None:
    async def work(engine: EndpointEngine) -> None:
        stream = engine.stream(Request(TURNS[0], max_new_tokens=900))
        await anext(stream)
        assert server.metric("vllm:num_requests_running") == 1
        await stream.aclose()  # type: ignore[attr-defined]
        until = time.monotonic() + 10
        while await asyncio.to_thread(server.metric, "vllm:num_requests_running"):
            assert time.monotonic() < until
            await asyncio.sleep(0.1)

    served.run(endpoint(server, []), work)


def test_a_killed_server_comes_back_with_its_adapters(adapters: list[Path], tmp_path: Path) -> None:
    server = RealVllm(Path(resolve("smollm2-135m")), tmp_path / "log.txt").start()
    try:
        engine, name = endpoint(server, adapters[:1]), hash_of_adapter(adapters[0])

        async def work() -> None:
            await engine.start()
            request = Request(TURNS[0], adapter=name, max_new_tokens=8)
            before = await complete(engine, request)
            server.kill()
            assert not await engine.healthy()
            lost = await complete(engine, request)
            assert lost.finish == "error" and lost.error.startswith("engine: ")
            await asyncio.to_thread(server.start)
            assert await engine.healthy()
            assert (await complete(engine, request)).token_ids == before.token_ids
            await engine.stop()

        asyncio.run(work())
    finally:
        server.kill()
