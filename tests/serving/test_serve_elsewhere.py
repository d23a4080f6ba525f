"""`serve` before servers of OpenAI's API: one or several URLs."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_server import StubEngine, live

from tuneloop.core.errors import UserError
from tuneloop.inference.openai.target import Endpoint, EndpointTarget
from tuneloop.inference.request import Request
from tuneloop.inference.targets import open_target
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Caller, Gateway, ServedModel
from tuneloop.serving.http.api_request import ApiError, ApiRequest
from tuneloop.serving.http.app import whole
from tuneloop.serving.models import deployment_of
from tuneloop.serving.server import _started, _write_state, serve_config

HELLO: Any = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi you"}]


def before(config: ServeConfig, work: Callable[[Gateway], Any]) -> Any:
    async def main() -> Any:
        async with _started(config, {}) as gateway:
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


def test_a_login_in_a_url_is_sent_and_stands_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logins: list[str] = []
    caller = Gateway.caller

    def noting(gateway: Gateway, header: Callable[[str], str]) -> Caller:
        logins.append(header("authorization"))
        return caller(gateway, header)

    monkeypatch.setattr(Gateway, "caller", noting)
    monkeypatch.setenv("OPENAI_API_KEY", "another")  # the login goes before it
    with live(tmp_path / "a") as (address, _), live(tmp_path / "b") as (other, _):
        urls = [each.replace("://", "://anna:s3%20cret@") + "/v1" for each in (address, other)]
        config = serve_config(urls, [f"folder={tmp_path / 'front'}"])

        async def work(gateway: Gateway) -> str:
            _write_state(config, gateway, "http://127.0.0.1:1")
            answers = [(await ask(gateway)).text for _ in range(4)]
            return answers[0] + gateway.engine.name

        answer = before(config, work)
        assert answer.startswith("Hello there.") and address in answer
        target = open_target(urls[0], endpoint=lambda url: Endpoint(url, "stub"))
        assert isinstance(target, EndpointTarget)
        (reply,) = target.complete([Request(messages=HELLO)])
        assert reply.text == "Hello there." and reply.engine == f"{address}/v1/chat/completions"
        with pytest.raises(UserError) as refused:
            before(serve_config(urls, [f"folder={tmp_path / 'x'}", "base=nobody"]), ask)
    with pytest.raises(UserError) as gone:
        before(serve_config(urls, [f"folder={tmp_path / 'x'}"]), ask)
    expected = "Basic " + b64encode(b"anna:s3 cret").decode()
    assert len(logins) > 5 and set(logins) == {expected}
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = "".join(capsys.readouterr()) + repr((target, reply, target.identity, refused.value, gone.value)) + answer
    for word in ("s3%20cret", "s3 cret", expected[6:]):
        assert word.encode() not in kept and word not in said and word not in str(gone.value)
    assert b"anna:***@" in kept


def test_several_models_have_to_be_chosen_from(tmp_path: Path) -> None:
    models = {name: ServedModel(name) for name in ("x", "y")}
    with live(tmp_path, StubEngine(), models) as (address, _):
        with pytest.raises(UserError, match="2 models"):
            deployment_of(ServeConfig(engine=address))
        assert deployment_of(ServeConfig(engine=address, base="y")).base == "y"
    with pytest.raises(UserError, match="does not tell its models"):
        deployment_of(ServeConfig(engine=address))
