"""`serve` before servers of OpenAI's API: one or several URLs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from base64 import b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG
from tuneloop.core.errors import UserError
from tuneloop.inference.endpoint import Endpoint
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.openai.target import EndpointTarget
from tuneloop.inference.protocol import Served
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
        urls = [item.replace("://", "://anna:s3%20cret@") + "/v1" for item in (address, other)]
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


class Dying(BaseHTTPRequestHandler):
    """A server of one model that ends at its first request for an answer: before its first word, or behind it."""

    begins = lives = False

    def do_GET(self) -> None:
        found = self.path == "/v1/models"
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "stub"}]}).encode() if found else b"{}")

    def do_POST(self) -> None:
        if not self.lives:
            self.server.socket.shutdown(socket.SHUT_RDWR)  # nothing listens any more
        if self.begins:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            event = {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("begins", "lives"), [(False, False), (True, False), (True, True)])
def test_an_engine_that_is_dead_can_not_be_reached(tmp_path: Path, stream: bool, begins: bool, lives: bool) -> None:
    handler = type("Handler", (Dying,), {"begins": begins, "lives": lives})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = EndpointSettings(f"http://127.0.0.1:{server.server_address[1]}")
        with live(tmp_path, EndpointEngine(Served("stub"), [], settings)) as (address, _):
            body = {"messages": HELLO, "stream": stream}
            for number in range(2):  # the second one while nothing listens
                reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=HANG)
                told, began = reply.text, begins and stream and (lives or not number)
                assert reply.status_code == (200 if began else 503) and ("Hel" in told) == began
                assert ("the engine cannot be reached" in told) == (not lives), told
                assert ("broke off" in told) == lives and "[DONE]" not in told
        server.shutdown()
