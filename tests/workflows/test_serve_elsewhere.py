"""`serve` before servers of OpenAI's API: one or several URLs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import StubEngine, live

from tuneloop.core.errors import UserError
from tuneloop.serve.api_request import ApiRequest
from tuneloop.serve.app import whole
from tuneloop.serve.config import ServeConfig
from tuneloop.serve.errors import ApiError
from tuneloop.serve.gateway import Caller, Gateway, ServedModel
from tuneloop.workflows.serve import _started, serve_config
from tuneloop.workflows.serve_models import deployment_of

HELLO: Any = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi you"}]


def before(config: ServeConfig, work: Callable[[Gateway], Any]) -> Any:
    async def main() -> Any:
        async with _started(config, deployment_of(config), print) as gateway:
            return await work(gateway)

    return asyncio.run(main())


async def ask(gateway: Gateway, **more: Any) -> Any:
    return (await whole(gateway.answer(ApiRequest("chat", messages=HELLO, **more), Caller())))[1][0]


def test_turns_go_to_a_server_that_renders_them(tmp_path: Path) -> None:
    engine = StubEngine()
    with live(tmp_path / "a", engine) as (address, _):
        config = serve_config([f"{address}/v1"], [f"folder={tmp_path / 'front'}"])
        done = before(config, ask)
        assert done.text == "Hello there." and (done.prompt_tokens, done.completion_tokens) == (4, 3)
        wrong = serve_config([address], [f"folder={tmp_path / 'front'}", "base=nobody"])
        with pytest.raises(UserError, match="no model 'nobody'"):
            before(wrong, ask)

        async def refused(gateway: Gateway) -> None:
            long: Any = [{"role": "user", "content": "x " * 2000}]
            with pytest.raises(ApiError, match="1,000 tokens") as raised:
                await whole(gateway.answer(ApiRequest("chat", messages=long), Caller()))
            assert raised.value.status == 400

        before(config, refused)

        async def tools(gateway: Gateway) -> None:
            with pytest.raises(ApiError, match="tokenizer") as raised:
                await ask(gateway, tools=[{"type": "function", "function": {"name": "f"}}])
            assert raised.value.status == 400

        before(config, tools)


def test_a_server_that_goes_is_gone_around(tmp_path: Path) -> None:
    first, second = StubEngine(), StubEngine()
    with live(tmp_path / "b", second) as (other, _), live(tmp_path / "a", first) as (address, _):
        config = serve_config([], [f"engine={address},{other}", f"folder={tmp_path / 'front'}"])
        stop = asyncio.Event()

        async def work(gateway: Gateway) -> list[str]:
            found = [(await ask(gateway)).text for _ in range(8)]
            first.fail_after = 0
            found += [(await ask(gateway)).text for _ in range(8)]
            stop.set()
            return found

        assert set(before(config, work)) == {"Hello there."}
        assert first.asked and second.asked


def test_several_models_have_to_be_chosen_from(tmp_path: Path) -> None:
    models = {name: ServedModel(name) for name in ("x", "y")}
    with live(tmp_path, StubEngine(), models) as (address, _):
        with pytest.raises(UserError, match="2 models"):
            deployment_of(ServeConfig(engine=address))
        assert deployment_of(ServeConfig(engine=address, base="y")).base == "y"
    with pytest.raises(UserError, match="does not tell its models"):
        deployment_of(ServeConfig(engine=address))
