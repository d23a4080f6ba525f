"""A server's model next to those here: under its own name or as a candidate, with its own prices in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import StubEngine, live
from openai_service import KEY, Service, serving

from tuneloop.core.errors import UserError
from tuneloop.inference.protocol import complete
from tuneloop.inference.request import Request
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiRequest
from tuneloop.serving.http.app import whole
from tuneloop.serving.models import Candidate, deployment_of, hosted, started
from tuneloop.serving.server import _started
from tuneloop.serving.store.store import opened, read_requests

OLD = "ft:gpt-4o-mini-2024-07-18:acme:tickets:AbC123"
TURNS: Any = [{"role": "user", "content": "Hi you"}]
MakeTuned = Callable[..., Path]


@pytest.fixture
def successor(make_tuned: MakeTuned) -> Path:
    return make_tuned([{"prompt": f"Say {i}", "completion": "All is well."} for i in range(20)], name="successor")


def test_a_source_names_a_server_and_its_model() -> None:
    assert hosted(f"https://api.openai.com/v1#{OLD}") == ("https://api.openai.com/v1", OLD)
    assert [hosted(name) for name in ("runs/a#b", "https://x/v1", "https://x/v1#", "NAME@champion")] == [None] * 4


def test_both_models_answer_by_their_names_and_prices(successor: Path, tmp_path: Path) -> None:
    engine, front = StubEngine(), tmp_path / "front"
    with live(tmp_path / "far", engine) as (address, _):
        source = f"{address}/v1#stub"
        prices = {"input": 1.0, "output": 1.0, "sources": {source: {"input": 100.0, "output": 1000.0}}}
        config = ServeConfig.model_validate(
            {"adapters": {OLD: str(successor), "hosted": source}, "folder": str(front), "canaries": 0, "prices": prices}
        )

        async def main() -> list[str]:
            async with _started(config, {}) as gateway:
                return [(await ask(gateway, name)).text for name in ("hosted", OLD)]

        theirs, ours = asyncio.run(main())
    assert theirs == "Hello there." != ours
    assert len(engine.asked) == 1, "the other one was answered here"
    with opened(front) as store:
        usd = {
            request.model: (request.usd, request.prompt_tokens, request.completion_tokens)
            for request in read_requests(store)
        }
    price, read, written = usd["hosted"]
    assert price == pytest.approx((100 * read + 1000 * written) / 1e6) and written == 3
    price, read, written = usd[OLD]
    assert price == pytest.approx((read + written) / 1e6)


def test_a_service_that_tells_no_tokens_gets_the_turns_as_they_came(
    successor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Service(answer=lambda body: "delivery")) as service:
        service.models = [{"id": OLD, "object": "model"}]
        adapters = {OLD: f"{service.url}#{OLD}", "successor": str(successor)}
        config = ServeConfig.model_validate({"adapters": adapters, "folder": str(tmp_path / "front"), "canaries": 0})

        async def main() -> list[str]:
            async with _started(config, {}) as gateway:
                return [(await ask(gateway, name)).text for name in adapters]

        theirs, ours = asyncio.run(main())
    assert theirs == "delivery" != ours
    (body,) = service.bodies
    assert (body["model"], body["messages"]) == (OLD, TURNS)


async def ask(gateway: Gateway, model: str) -> Any:
    request = ApiRequest("chat", model=model, messages=TURNS, max_new_tokens=4)
    return (await whole(gateway.answer(request, Caller())))[1][0]


@pytest.mark.parametrize("champion", ["here", "far"])
def test_a_hosted_model_is_an_arm_of_an_experiment(successor: Path, tmp_path: Path, champion: str) -> None:
    with live(tmp_path / "far") as (address, _):
        sources = [str(successor), f"{address}/v1#stub"]
        served, candidate = sources if champion == "here" else sources[::-1]
        base = {} if champion == "here" else {"base": "", "adapters": {OLD: served, "other": str(successor)}}
        config = ServeConfig.model_validate(
            {"adapters": {OLD: served}, "folder": str(tmp_path / "front"), "canaries": 0, **base}
        )

        async def main() -> list[str]:
            deployment = await started(config, {"try": Candidate(OLD, candidate)})
            try:
                assert deployment.left_out == {}
                models = [deployment.models()[OLD], deployment.candidate_models()["try"]]
                requests = [Request(messages=TURNS, max_new_tokens=4, adapter=model.adapter) for model in models]
                return [(await complete(deployment.engine, request)).text for request in requests]
            finally:
                await deployment.engine.stop()

        answers = asyncio.run(main())
    assert (answers[0] == "Hello there.") == (champion == "far") and (answers[1] == "Hello there.") != (
        champion == "far"
    )


def test_a_hosted_model_that_is_gone_keeps_the_server_from_nothing(successor: Path, tmp_path: Path) -> None:
    with live(tmp_path / "far") as (address, _):
        config = ServeConfig(adapters={OLD: str(successor)}, folder=str(tmp_path / "front"), canaries=0)

        async def main() -> Any:
            deployment = await started(config, {"try": Candidate(OLD, f"{address}/v1#gone")})
            await deployment.engine.stop()
            return deployment

        assert "no model 'gone'" in asyncio.run(main()).left_out["try"]


def test_hosted_models_alone_need_a_base(tmp_path: Path) -> None:
    config = ServeConfig(adapters={OLD: f"http://127.0.0.1:9/v1#{OLD}"}, folder=str(tmp_path))
    with pytest.raises(UserError, match="hosted elsewhere") as refused:
        deployment_of(config)
    assert "engine=URL" in str(refused.value)
