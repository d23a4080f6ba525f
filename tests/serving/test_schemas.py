"""No schema of a request holds the server: other requests and `/healthz` are answered meanwhile, and it can be stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_day import by_day
from live_server import live

from patience import HANG, slowness
from serving import running
from tuneloop.serving.gateway import ServedModel

pytest.importorskip("llguidance", reason="needs llguidance")

BACKTRACKING = {"allOf": [{"const": "a" * 44}, {"pattern": "^((a+)+b|a*)$"}]}
NASTY: list[dict[str, Any]] = [
    {"enum": [f"value {i}" for i in range(12_000)]},
    {"type": "string", "allOf": [{"pattern": f"a{i}.*b"} for i in range(20)]},
    {"type": "integer", "multipleOf": 123_456_789},
    {"type": "string", "pattern": "^(a{1000}){1000}$"},
    {"type": "string", "pattern": "^a{1000000}$"},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5_000)}},
    {"$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(5_000)}, "$ref": "#/$defs/d0"},
    {"$ref": "http://127.0.0.1:9/schema.json"},
    {"not": {"type": "string"}},
    {"maxLength": 1e300},
]


@pytest.fixture(scope="module")
def address(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tuneloop.inference.local.serving import LocalEngine
    from tuneloop.inference.protocol import EngineSettings, Served

    engine = LocalEngine(Served(str(tiny_llama)), [], EngineSettings(slots=2))
    with live(tmp_path_factory.mktemp("serve"), engine, {"tiny": ServedModel("tiny")}) as (address, _):
        yield address


def ask(address: str, schema: Any, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    turns = [{"role": "user", "content": "Rain?"}]
    body = {"messages": turns, "response_format": form, "max_tokens": 60, **more}
    if path.endswith("responses"):
        form = {"type": "json_schema", "name": "x", "schema": schema}
        body = {"input": "Rain?", "text": {"format": form}, "max_output_tokens": 60}
    return httpx.post(
        address + path, content=json.dumps(body), headers={"content-type": "application/json"}, timeout=HANG
    )


def test_other_requests_are_answered_while_schemas_are_refused(address: str) -> None:
    replies: list[httpx.Response] = []

    def work() -> None:
        for schema in [*NASTY, BACKTRACKING]:
            replies.extend(ask(address, schema, path) for path in ("/v1/chat/completions", "/v1/responses"))

    worker, slowest, number = threading.Thread(target=work), 0.0, 0
    worker.start()
    while worker.is_alive():
        began = time.perf_counter()
        assert httpx.get(f"{address}/healthz", timeout=HANG).status_code == 200
        slowest, number = max(slowest, time.perf_counter() - began), number + 1
        time.sleep(0.02)
    assert slowest < 1.0 * slowness() and number > 20, slowest
    assert [reply.status_code for reply in replies] == [400, 400] * len(NASTY) + [200, 200]
    for reply in replies[: 2 * len(NASTY)]:
        error = reply.json()["error"]
        assert error["type"] == "invalid_request_error" and error["code"] == "no_schema" and error["message"]
    message = replies[-2].json()["choices"][0]
    assert message["finish_reason"] == "length" or message["message"]["content"] == json.dumps("a" * 44)


def test_a_tools_parameters_are_bounded_like_a_schema(address: str) -> None:
    for parameters in NASTY:
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        reply = ask(address, {}, response_format=None, tools=[tool], tool_choice="required")
        assert reply.status_code == 400 and reply.json()["error"]["code"] == "no_schema"


def test_bodies_that_are_deep_or_have_huge_numbers_are_no_fault_of_the_server(address: str) -> None:
    turns = '"messages": [{"role": "user", "content": "Rain?"}]'
    deep = "[" * 100_000
    bodies = [
        deep,
        '{"a":' * 5_000,
        f'{{{turns}, "metadata": {"[" * 900}{"]" * 900}}}',
        f'{{{turns}, "response_format": {deep}',
    ]
    for name in (
        "seed",
        "n",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "top_logprobs",
    ):
        bodies += [f'{{{turns}, "{name}": {value}}}' for value in ("9" * 400, "-1e308", "1e400", "9" * 30, "NaN")]
    for body in bodies:
        reply = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=HANG)
        assert reply.status_code == 400 or (reply.status_code == 200 and '"seed"' in body), (body[:90], reply.text)
        assert "error" in reply.json() or reply.status_code == 200


@pytest.mark.slow
def test_sigterm_works_while_a_schema_is_compiled(tiny_llama: Path, tmp_path: Path) -> None:
    with running(str(tiny_llama), folder=tmp_path / "serve", environment=dict(os.environ)) as (address, process):
        replies: list[Any] = []

        def work(schema: Any) -> None:
            try:
                replies.append(ask(address, schema))
            except httpx.HTTPError as error:
                replies.append(error)

        threads = [threading.Thread(target=work, args=(schema,)) for schema in [BACKTRACKING, *NASTY[1:3]]]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        began = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.wait(HANG)
        assert process.returncode == 0 and time.perf_counter() - began < 30 * slowness()
        for thread in threads:
            thread.join(HANG)


@pytest.mark.slow
@pytest.mark.parametrize("word", by_day(["word ", "https://a:b@", "<|eot_id|>"], ["https://a:b@"]))
def test_a_prompt_of_megabytes_holds_nobody(address: str, word: str) -> None:
    turns = [{"role": "user", "content": word * (4_000_000 // len(word))}]
    replies: list[httpx.Response] = []
    worker = threading.Thread(
        target=lambda: replies.append(
            httpx.post(f"{address}/v1/chat/completions", json={"messages": turns}, timeout=HANG)
        )
    )
    worker.start()
    slowest = 0.0
    while worker.is_alive():
        began = time.perf_counter()
        httpx.get(f"{address}/healthz", timeout=HANG)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.02)
    assert replies[0].status_code == 400 and replies[0].json()["error"]["code"] == "context_length_exceeded"
    assert slowest < 1.0 * slowness(), slowest
