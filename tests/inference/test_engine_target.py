"""An engine that serves answers rows as a model here does, with the rule for retries, in order, and each row once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter
from vllm_stand_in import MODEL, StandIn

from tuneloop.core.errors import UserError
from tuneloop.inference import targets
from tuneloop.inference.endpoint import Endpoint, RequestLimits
from tuneloop.inference.engine_target import EngineTarget
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import Served
from tuneloop.inference.request import Request, Sampling, Update, refused
from tuneloop.inference.targets import open_endpoint, open_target
from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.adapters.peft_layout import hash_of_adapter

TURNS: list[Any] = [[{"role": "user", "content": text}] for text in ("Rain?", "Where is my parcel?", "Why " * 9)]
LABELS = ("refund", "refund request", "delivery", "delivery time", "account", "other")


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tiny_llama, tmp_path_factory.mktemp("adapter") / "adapter", 3)


@pytest.fixture
def serves_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "ENGINES", (replace(targets.ENGINES[-1], target=None),))


def requests_of(**settings: Any) -> list[Request]:
    return [Request(turns, max_new_tokens=6, id=str(i), **settings) for i, turns in enumerate(TURNS)]


@pytest.mark.parametrize("tuned", [False, True])
def test_an_engine_without_a_target_of_its_own_is_measured_through_what_it_serves(
    tiny_llama: Path, adapter: Path, tuned: bool, request: pytest.FixtureRequest
) -> None:
    name = str(adapter if tuned else tiny_llama)
    ours = open_target(name, base=str(tiny_llama) if tuned else "")
    request.getfixturevalue("serves_only")
    served = open_target(name, base=str(tiny_llama) if tuned else "")
    assert isinstance(served, EngineTarget) and served.kind == ours.kind == ("adapter" if tuned else "model")
    with closing(served):
        written = list(served.complete(requests_of()))
        assert [a.token_ids for a in written] == [a.token_ids for a in ours.complete(requests_of())]
        drawn = requests_of(sampling=Sampling(1.0, seed=5))
        assert [a.token_ids for a in served.complete(drawn)] == [a.token_ids for a in ours.complete(drawn)]
        for theirs, own in zip(served.score(requests_of(), LABELS), ours.score(requests_of(), LABELS), strict=True):
            assert theirs.text == own.text and theirs.finish == "choice"
            assert theirs.label_probability == pytest.approx(own.label_probability, abs=1e-4)
        base = [a.token_ids for a in served.complete(requests_of(adapter=BASE))]
        assert (base == [a.token_ids for a in written]) == (not tuned)
        assert served.template.source == ours.template.source  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="only as far"):
            served.score(requests_of(), LABELS, exact=True)
        with pytest.raises(UserError, match="does not say how likely"):
            served.fits([])
    again = [a.token_ids for a in served.complete(requests_of())]  # it is started again
    assert again == [a.token_ids for a in written]
    served.close()


class Busy(LocalEngine):
    """Our engine, which is busy at first and counts what it answers at a time."""

    busy, most, now, answered = 4, 0, 0, 0

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.05)
        if self.busy:
            self.busy, self.now = self.busy - 1, self.now - 1
            yield Update(completion=replace(refused(request, "busy: come again"), retry_after=0.05))
            return
        self.answered += 1
        async for update in super().stream(request):
            self.now -= update.completion is not None  # before who waits for it begins another one
            yield update


def test_a_busy_engine_is_waited_for_and_answers_in_order_each_row_once(tiny_llama: Path) -> None:
    engine, model = Busy(Served(str(tiny_llama))), targets.open_local(str(tiny_llama))
    target = EngineTarget("busy", model, lambda: engine, limits=RequestLimits(concurrency=3, pause=0.01, retries=0))
    rows = [Request([{"role": "user", "content": f"row {i % 7}"}], max_new_tokens=3, id=str(i)) for i in range(14)]
    with closing(target):
        answers = list(target.complete(rows))
    assert engine.most == 3 and engine.answered == 7 and sum(answer.retries for answer in answers) == 4
    assert [a.cached for a in answers] == [False] * 7 + [True] * 7
    assert [a.token_ids for a in answers] == [a.token_ids for a in model.complete(rows)]


def test_one_row_that_can_t_be_answered_does_not_end_the_others(tiny_llama: Path, serves_only: None) -> None:
    long = Request([{"role": "user", "content": "word " * 25_000}], id="long")
    with closing(open_target(str(tiny_llama))) as target:  # type: ignore[type-var]
        answers = list(target.complete([*requests_of(), long]))
        assert [bool(a.error) for a in answers] == [False] * 3 + [True] and answers[3].error.startswith("too_long: ")
        assert next(target.complete([long])).error.startswith("too_long: ")


# --- a server by its URL ---------------------------------------------------------------------------


@pytest.fixture
def server(tiny_llama: Path) -> Iterator[tuple[StandIn, str]]:
    stand_in = StandIn(tiny_llama)
    with stand_in as url:
        yield stand_in, url


def test_a_server_whose_model_is_known_gets_token_ids_and_all_settings(
    server: tuple[StandIn, str], tiny_llama: Path, tmp_path: Path
) -> None:
    stand_in, url = server
    ours, endpoint = open_target(str(tiny_llama)), Endpoint(url, MODEL, cache=tmp_path, pause=0.01)
    target = open_endpoint(endpoint, base=str(tiny_llama))
    assert isinstance(target, EngineTarget) and target.kind == "endpoint" and target.endpoint == endpoint
    with closing(target):
        written = list(target.complete(requests_of()))
        body = stand_in.bodies[-1]
        assert body["prompt"] == target.template.prompt_ids(TURNS[-1]) and body["repetition_penalty"] == 1.0
        assert body["stop_token_ids"] == list(target.template.end_ids)
        assert [a.token_ids for a in written] == [a.token_ids for a in ours.complete(requests_of())]
        for theirs, own in zip(target.score(requests_of(), LABELS), ours.score(requests_of(), LABELS), strict=True):
            assert theirs.text == own.text
            assert theirs.label_probability == pytest.approx(own.label_probability, abs=0.01)
        stand_in.bodies.clear()
        assert all(answer.cached for answer in target.complete(requests_of())), "kept from before"
        assert not stand_in.bodies
        assert not any(answer.cached for answer in target.complete(requests_of(sampling=Sampling(1.0, seed=1))))


def test_a_server_gets_the_adapter_that_is_evaluated_and_loses_it_afterwards(
    server: tuple[StandIn, str], tiny_llama: Path, adapter: Path
) -> None:
    stand_in, url = server
    target = open_endpoint(Endpoint(url, str(adapter), pause=0.01), base=str(tiny_llama))
    ours = open_target(str(adapter), base=str(tiny_llama))
    assert isinstance(target, EngineTarget)
    with closing(target):
        answers = list(target.complete(requests_of()))
        assert list(stand_in.names) == [hash_of_adapter(adapter)]
        assert [a.token_ids for a in answers] == [a.token_ids for a in ours.complete(requests_of())]
        assert {a.adapter for a in answers} == {hash_of_adapter(adapter)}
    assert not stand_in.names


def test_what_a_server_can_t_do_is_said_once(tiny_llama: Path) -> None:
    with StandIn(tiny_llama, version="") as url:
        target = open_endpoint(Endpoint(url, MODEL, pause=0.01), base=str(tiny_llama))
        assert isinstance(target, EngineTarget)
        with closing(target), pytest.raises(UserError, match="only vLLM is known"):
            target.score(requests_of(), LABELS)
    gone = open_endpoint(Endpoint(url, MODEL, pause=0.01, timeout=0.2), base=str(tiny_llama))
    with pytest.raises(UserError, match="does not tell its models"):
        gone.load()
