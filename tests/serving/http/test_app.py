"""The HTTP surface: what goes in is checked, what comes out has OpenAI's shape, and who leaves stops the engine."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st
from live_server import StubEngine, live

from patience import HANG, slowness
from places import ROOT
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.inference.request import Request, Separation, Update
from tuneloop.records.completion import Completion
from tuneloop.records.request import LEFT
from tuneloop.serving.costs import costs_of
from tuneloop.serving.gateway import Gateway, ServedModel, engine_error
from tuneloop.serving.http.app import Call, RouteApp
from tuneloop.serving.keys import Limits, add_key, open_keys, revoke_key
from tuneloop.serving.store.store import opened, read_feedback, read_requests

CHAT: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "Hi you"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Gateway]]:
    models = {"stub": ServedModel("stub", release="stub/3"), "labels": ServedModel("labels", labels=("good", "bad"))}
    with live(tmp_path_factory.mktemp("serve"), StubEngine(), models, limits={"body_mb": 0.1}) as found:
        yield found


def post(server: tuple[str, Gateway], path: str, body: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server[0]}{path}", json=body, headers=named, timeout=HANG)


def events(text: str) -> list[Any]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_an_answer_has_its_id_its_release_and_its_tokens(server: tuple[str, Gateway]) -> None:
    reply = post(server, "/v1/chat/completions", CHAT)
    body = reply.json()
    assert body["choices"][0]["message"]["content"] == "Hello there."
    counts = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert body["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    assert reply.headers["x-tuneloop-request"] == body["id"] and reply.headers["x-tuneloop-release"] == "stub/3"


def test_answers_say_what_a_key_may_still_use(tmp_path: Path) -> None:
    with live(tmp_path) as server:
        bearer = {"Authorization": f"Bearer {add_key(tmp_path, 'anna', Limits(rpm=2, tpm=9000))[0]}"}
        for stream, left in ((False, "1"), (True, "0")):
            reply = post(server, "/v1/chat/completions", {**CHAT, "stream": stream, "max_tokens": 9}, **bearer)
            assert reply.headers["x-ratelimit-limit-requests"] == "2"
            assert reply.headers["x-ratelimit-remaining-requests"] == left
            assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 9000
        reply = post(server, "/v1/chat/completions", CHAT, **bearer)
        assert reply.status_code == 429 and 1 <= int(reply.headers["retry-after"]) <= 31
        assert reply.headers["x-ratelimit-remaining-requests"] == "0"
        assert reply.headers["x-ratelimit-reset-requests"][-1] == "s"


def test_a_stream_ends_with_usage_and_done(server: tuple[str, Gateway]) -> None:
    reply = post(server, "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}})
    found = events(reply.text)
    assert "".join(e["choices"][0]["delta"].get("content") or "" for e in found[:-2]) == "Hello there."
    assert found[-3]["choices"][0]["finish_reason"] == "stop"
    assert found[-2]["usage"]["completion_tokens"] == 3 and found[-1] == "[DONE]"


def test_several_choices_come_with_their_numbers(server: tuple[str, Gateway]) -> None:
    body = post(server, "/v1/chat/completions", {**CHAT, "n": 3, "max_tokens": 1}).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert {c["finish_reason"] for c in body["choices"]} == {"length"} and body["usage"]["completion_tokens"] == 3
    found = events(post(server, "/v1/chat/completions", {**CHAT, "n": 2, "stream": True}).text)
    texts = ["", ""]
    for event in found[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["delta"].get("content") or ""
    assert texts == ["Hello there."] * 2


def test_the_other_endpoints_answer(server: tuple[str, Gateway]) -> None:
    body = post(server, "/v1/completions", {"model": "stub", "prompt": ["a b", "c"], "echo": True}).json()
    assert [c["text"] for c in body["choices"]] == ["a bHello there.", "cHello there."]
    body = post(server, "/v1/completions", {"model": "stub", "prompt": [1, 2, 3]}).json()
    assert body["usage"]["prompt_tokens"] == 3
    body = post(server, "/v1/responses", {"model": "stub", "input": "Hi", "instructions": "Be kind"}).json()
    assert body["status"] == "completed" and body["output"][0]["content"][0]["text"] == "Hello there."
    found = events(post(server, "/v1/responses", {"model": "stub", "input": "Hi", "stream": True}).text)
    assert found[0]["type"] == "response.created" and found[-1]["type"] == "response.completed"
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    body = post(server, "/v1/classify", {"model": "labels", "input": ["x", "y"]}).json()
    assert [(d["label"], d["probability"]) for d in body["data"]] == [("good", 0.9)] * 2
    assert post(server, "/tokenize", {"prompt": "a b c"}).json()["count"] == 3
    names = [m["id"] for m in httpx.get(f"{server[0]}/v1/models").json()["data"]]
    assert names == ["stub", "labels"]
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/v1/models/labels"):
        assert httpx.get(f"{server[0]}{path}").status_code == 200
    text = httpx.get(f"{server[0]}/metrics").text
    assert "gen_ai_server_time_to_first_token" in text and "tuneloop_store_written" in text


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("chat/completions", {"model": "x", "messages": CHAT["messages"]}, 404, "does not exist"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": "hi"}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text only"),
        ("chat/completions", {**CHAT, "temperature": 3}, 400, "temperature"),
        ("chat/completions", {**CHAT, "temperature": "hot"}, 400, "temperature"),
        ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens"),
        ("chat/completions", {**CHAT, "max_tokens": 1.5}, 400, "max_tokens"),
        ("chat/completions", {**CHAT, "n": 10**30}, 400, "n must be"),
        ("chat/completions", {**CHAT, "n": True}, 400, "n must be"),
        ("chat/completions", {**CHAT, "stop": [""]}, 400, "stop"),
        ("chat/completions", {**CHAT, "tempature": 1}, 400, "did you mean temperature?"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": None}]},
            400,
            '"content": "Where is my parcel?"',
        ),
        ("chat/completions", {**CHAT, "parallel_tool_calls": "no"}, 400, "true or false"),
        ("responses", {"input": "x", "tools": [{"type": "function"}]}, 400, "tools[0].name"),
        ("responses", {"input": [{"type": "computer_call", "output": "x"}]}, 400, "input[0].type"),
        ("embeddings", {"input": "x"}, 501, "MiniLM is not installed"),
        ("images/generations", {"prompt": "x"}, 404, "this server has /v1/chat/completions"),
        ("chat/completions", {**CHAT, "tools": [{"type": "x"}]}, 400, "tools"),
        ("chat/completions", {**CHAT, "response_format": {"type": "xml"}}, 400, "response_format"),
        ("chat/completions", {**CHAT, "logit_bias": {"1": 1}}, 400, "logit_bias"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x " * 2000}]}, 400, "1,000 tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 200_000}]}, 413, "larger"),
        ("chat/completions", [1], 400, "object"),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": [[-1]]}, 400, "prompt"),
        ("responses", {"input": "x", "previous_response_id": "y"}, 400, "not found"),
        ("classify", {"model": "stub", "input": "x"}, 400, "texts"),
        ("feedback", {"kind": "thumbs", "value": True}, 400, "about a request or about a conversation"),
        ("feedback", {"request": "r", "kind": "thumbs", "value": 1, "x": 1}, 400, "x"),
        ("feedback", {"request": "r", "kind": "thumbs", "value": "banana"}, 400, "up or down"),
        ("feedback", {"request": "r", "kind": "rating", "value": 99}, 400, "1 to 5"),
        ("feedback", {"request": "r", "kind": "Not a kind", "value": 1}, 400, "small letters"),
        ("feedback", {"request": "r", "kind": "k", "value": [1]}, 400, "Not a value"),
        ("feedback", {"request": "r", "kind": "comment", "value": "x" * 20_001}, 400, "20,000"),
        ("feedback", {"request": "r" * 300, "kind": "k", "value": 1}, 400, "256 characters"),
        ("nothing", {}, 404, "no /v1/nothing"),
    ],
)
def test_bad_input_gets_a_sentence(server: tuple[str, Gateway], path: str, body: Any, status: int, says: str) -> None:
    reply = post(server, f"/v1/{path}", body)
    error = reply.json()["error"]
    assert reply.status_code == status and says in error["message"], error
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("raw", [b"", b"{", b'{"messages": NaN}', b"\xff", b"[" * 100_000, b'{"a":' * 5000])
def test_bodies_that_are_no_json_are_refused(server: tuple[str, Gateway], raw: bytes) -> None:
    reply = httpx.post(f"{server[0]}/v1/chat/completions", content=raw)
    assert reply.status_code in (400, 413) and reply.json()["error"]["message"]


def test_a_body_that_is_nested_too_deeply_is_refused(server: tuple[str, Gateway]) -> None:
    """The parser takes 1,024 levels; what writes the store takes fewer."""
    for levels, status in ((150, 200), (1000, 400)):
        deep = json.dumps({**CHAT, "metadata": 0}).replace('": 0', f'": {"[" * levels}1{"]" * levels}')
        reply = httpx.post(f"{server[0]}/v1/chat/completions", content=deep)
        assert reply.status_code == status, reply.text
    assert "200 levels" in reply.json()["error"]["message"]


def test_a_wrong_method_is_told_which_is_right(server: tuple[str, Gateway]) -> None:
    reply = httpx.delete(f"{server[0]}/v1/chat/completions")
    assert reply.status_code == 405 and reply.headers["allow"] == "POST"
    assert reply.json()["error"]["message"] == "DELETE is not possible here"


def test_pages_of_other_sites_are_refused(server: tuple[str, Gateway]) -> None:
    assert post(server, "/v1/chat/completions", CHAT, origin="https://evil.example").status_code == 403
    assert post(server, "/v1/chat/completions", CHAT, host="evil.example").status_code == 403
    assert post(server, "/v1/chat/completions", CHAT, origin=server[0]).status_code == 200


def test_one_sender_can_not_flood_the_store_with_feedback(tmp_path: Path) -> None:
    shop = {"origin": "https://shop.example"}
    limits = {"per_minute": 5, "pages_per_minute": 3, "origins": list(shop.values())}
    with live(tmp_path, feedback=limits) as (address, gateway):
        id_ = post((address, gateway), "/v1/chat/completions", CHAT).json()["id"]
        body = {"request": id_, "kind": "thumbs", "value": True}
        open_ = [httpx.post(f"{address}/v1/feedback", json=body, headers=shop) for _ in range(4)]
        assert [item.status_code for item in open_] == [200] * 3 + [429]  # readers together
        sent = [post((address, gateway), "/v1/feedback", {**body, "user": f"u{i}"}) for i in range(4)]
        assert [item.status_code for item in sent] == [200] * 2 + [429] * 2
        assert int(sent[-1].headers["retry-after"]) >= 1
        assert "One sender may send 5" in sent[-1].json()["error"]["message"]
        headers = {"Authorization": f"Bearer {add_key(tmp_path, 'anna', Limits(rights=['feedback']))[0]}"}
        assert httpx.post(f"{address}/v1/feedback", json=body, headers=headers).status_code == 200  # not held up
    with opened(tmp_path) as store:
        assert len(list(read_feedback(store))) == 6


def test_feedback_is_in_the_store_when_the_reply_comes(tmp_path: Path) -> None:
    with live(tmp_path, keys={"open_rights": ["feedback"]}) as server:
        body = {"request": "r1", "kind": "thumbs", "value": False}
        sent = [post(server, "/v1/feedback", body, idempotency_key="k1", x_tuneloop_user="u9") for _ in range(2)]
        assert [item.status_code for item in sent] == [200, 200] and sent[0].json()["id"] == sent[1].json()["id"]
        more = {**body, "key": "k2", "source": "app", "weight": 2}
        assert post(server, "/v1/feedback", more).status_code == 200
        for bad in (0, -1, 1e9, "heavy"):
            assert post(server, "/v1/feedback", {**more, "weight": bad}).status_code == 400
        unknown = post(server, "/v1/feedback", {**more, "request_id": "r1"})
        assert unknown.status_code == 400 and "did you mean request?" in unknown.text
        with opened(tmp_path) as store:
            found = [(f.value, f.user, f.source, f.weight) for f in read_feedback(store)]
            assert found == [(False, "u9", "api", None), (False, None, "app", 2.0)]


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine_and_is_accounted_for(tmp_path: Path, stream: bool) -> None:
    engine = StubEngine(words=["word "] * 1000, pause=0.01)
    with live(tmp_path, engine, prices={"output": 1.0}) as (address, gateway):
        parts = urlsplit(address)
        body = json.dumps({**CHAT, "stream": stream, "max_tokens": 1000}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(head.encode() + body)
            wait_for(lambda: engine.asked)
            time.sleep(0.2)
        wait_for(lambda: engine.ended == ["cancelled"])
        wait_for(lambda: gateway.store.counts.stored == 1)
        assert not gateway.admission.active
        with opened(tmp_path) as store:
            (found,) = read_requests(store)
    assert found.error == LEFT and found.completion_tokens > 3 and found.usd and found.usd > 0


def test_an_engine_that_dies_in_the_middle_is_told_as_an_event(tmp_path: Path) -> None:
    with live(tmp_path, StubEngine(fail_after=2)) as (address, _):
        found = events(httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "stream": True}).text)
        assert "it died" in found[-1]["error"]["message"]
        assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 503


def test_keys_are_needed_once_there_are_some(tmp_path: Path) -> None:
    with live(tmp_path, prices={"output": 1e6}) as (address, _):
        url = f"{address}/v1/chat/completions"
        assert httpx.post(url, json=CHAT).status_code == 200
        key, _ = add_key(tmp_path, "anna", Limits(budget_usd=10.0, adapters=["stub"]))
        assert httpx.post(url, json=CHAT).json()["error"]["code"] == "invalid_api_key"
        closed = ("/metrics", "/v1/models", "/v1/models/stub", "/v1/files", "/v1/batches", "/v1/files/x/content")
        assert {httpx.get(f"{address}{path}").status_code for path in closed} == {401}
        assert {httpx.post(f"{address}{path}", json={}).status_code for path in POSTS} == {401}
        for path in ("/healthz", "/readyz", "/openapi.json", "/feedback.js", "/"):
            shown = httpx.get(f"{address}{path}")
            assert shown.status_code == 200 and "anna" not in shown.text and str(tmp_path) not in shown.text
        headers = {"Authorization": f"Bearer {key}"}
        for expected in (200, 200, 200, 429):  # three tokens, three dollars each
            reply = httpx.post(url, json={**CHAT, "max_tokens": 3}, headers=headers)
            assert reply.status_code == expected
        assert reply.json()["error"]["code"] == "insufficient_quota"
        assert "has spent 9.0000 of" in reply.json()["error"]["message"]
        assert "tuneloop_active" in httpx.get(f"{address}/metrics", headers=headers).text
        revoke_key(tmp_path, "anna")
        assert httpx.post(url, json=CHAT, headers=headers).status_code == 401
        assert httpx.post(url, json=CHAT).status_code == 401  # not open again
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert key.split("-", 2)[2].encode() not in held


def test_a_key_that_is_revoked_opens_nothing_and_neither_does_the_loss_of_all_keys(tmp_path: Path) -> None:
    paths = [
        ("POST", "/v1/chat/completions"), ("POST", "/v1/feedback"), ("POST", "/v1/files"), ("GET", "/v1/files"),
        ("GET", "/v1/batches"), ("GET", "/v1/files/file-" + "0" * 32), ("GET", "/v1/files/file-" + "0" * 32 + "/content"),
        ("GET", "/v1/models"), ("POST", "/tokenize"), ("POST", "/v1/batches/batch_" + "0" * 32 + "/cancel"),
    ]  # fmt: skip
    with live(tmp_path, StubEngine(words=["word "] * 50, pause=0.02)) as (address, _):
        key, _kept = add_key(tmp_path, "anna")
        headers = {"Authorization": f"Bearer {key}"}

        def statuses(**given: Any) -> set[int]:
            body = {"json": {**CHAT, "max_tokens": 1}}
            return {
                httpx.request(method, address + path, **given, **(body if method == "POST" else {})).status_code
                for method, path in paths
            }

        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            revoke_key(tmp_path, "anna")  # what has begun ends, nothing new begins
            assert statuses(headers=headers) == statuses() == {401}
            assert "data: [DONE]" in list(lines)
        for change in (b"", b"{}", b"[]", b'{"version": 1, "keys": [', None):
            (tmp_path / "keys.json").unlink(missing_ok=True)
            if change is not None:
                (tmp_path / "keys.json").write_bytes(change)
            assert statuses(headers=headers) == statuses() == {401}
        open_keys(tmp_path)
        assert 401 not in statuses() and statuses(headers=headers) == {401}, "a revoked key is not the same as none"


def test_keys_are_read_as_clients_write_them_and_never_two_at_once(tmp_path: Path) -> None:
    key, _ = add_key(tmp_path, "anna")
    with live(tmp_path) as (address, _gateway):

        def status(*lines: tuple[str, str]) -> int:
            return httpx.get(f"{address}/v1/models", headers=list(lines)).status_code

        for good in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key}", f"Bearer\t{key}"):
            assert status(("Authorization", good)) == 200
        assert status(("x-api-key", key)) == 200
        assert status(("Authorization", "Basic YTpi"), ("x-api-key", key)) == 200
        for bad in (
            key,
            f"Token {key}",
            f"Bearer {key.upper()}",
            f"Bearer {key}x",
            f"Bearer {key} {key}",
            "Bearer",
            "Bearer tl-",
        ):
            assert status(("Authorization", bad)) == 401
        wrong = "tl-00000000-" + "A" * 43
        for lines in ((key, wrong), (wrong, key), (key, key)):
            assert status(*(("Authorization", f"Bearer {line}") for line in lines)) == 400
            assert status(*(("x-api-key", line) for line in lines)) == 400


def test_costs_tell_requests_that_never_ran_from_those_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = StubEngine()
    with live(tmp_path, engine, prices={"output": 1.0}, limits={"waiting": 1}) as (address, gateway):
        slow = {"Authorization": f"Bearer {add_key(tmp_path, 'slow', Limits(rpm=1))[0]}"}
        poor = {"Authorization": f"Bearer {add_key(tmp_path, 'poor', Limits(budget_usd=1e-9))[0]}"}
        free = {"Authorization": f"Bearer {add_key(tmp_path, 'free')[0]}"}
        long = {**CHAT, "messages": [{"role": "user", "content": "word " * 2000}]}
        sent = [(slow, CHAT), (slow, CHAT), (poor, CHAT), (free, long), (free, CHAT)]
        url = f"{address}/v1/chat/completions"
        assert [httpx.post(url, json=body, headers=key).status_code for key, body in sent] == [200, 429, 429, 400, 200]
        assert httpx.post(url, json=CHAT).status_code == 401  # nobody's: it is not in the store
        engine.fail_after = 0
        assert httpx.post(url, json=CHAT, headers=free).status_code == 503
        engine.fail_after = 1
        assert "it died" in httpx.post(url, json={**CHAT, "stream": True}, headers=free).text
        wait_for(lambda: gateway.store.counts.stored == 7)
    found = costs_of(tmp_path)
    assert (found.total.requests, found.total.refused, found.total.failed) == (7, 3, 2)
    rows = {row.name: (row.requests, row.refused, row.failed) for row in found.groups["key"]}
    assert rows == {"slow": (2, 1, 0), "poor": (1, 1, 0), "free": (4, 1, 2)}
    since = costs_of(tmp_path, "2020-01-01T00:00:00.000Z").total
    assert (since.refused, since.failed) == (3, 2)
    assert main(["costs", "-f", str(tmp_path)]) == 0
    head, whole = capsys.readouterr().out.splitlines()[1:3]
    assert head.split()[:3] == ["requests", "failed", "refused"] and whole.split()[1:4] == ["7", "2", "3"]


def test_a_budget_without_prices_lets_nothing_through(tmp_path: Path) -> None:
    with live(tmp_path) as (address, _):  # the key was made around the command
        key, _kept = add_key(tmp_path, "anna", Limits(budget_usd=1.0))
        reply = httpx.post(f"{address}/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {key}"})
        assert reply.status_code == 429 and "no prices" in reply.json()["error"]["message"]


def test_other_addresses_need_a_key_from_the_start(tmp_path: Path) -> None:
    with live(tmp_path, host="0.0.0.0") as (address, _):
        assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 401


def test_calls_of_functions_are_told_as_such(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    text = ['{"name": "wea', 'ther", "parameters"', ': {"city": "Rome"}}']
    with live(tmp_path, StubEngine(text)) as (address, _):
        url, body = f"{address}/v1/chat/completions", {**CHAT, "tools": tools}
        choice = httpx.post(url, json=body).json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
        function = choice["message"]["tool_calls"][0]["function"]
        assert function["name"] == "weather" and json.loads(function["arguments"]) == {"city": "Rome"}
        found = events(httpx.post(url, json={**body, "stream": True}).text)
        deltas = [e["choices"][0]["delta"] for e in found[:-1]]
        assert not any(d.get("content") for d in deltas) and any(d.get("tool_calls") for d in deltas)
        choice = httpx.post(url, json={**body, "tool_choice": "none"}).json()["choices"][0]
        assert choice["message"]["content"].startswith('{"name"')


def test_calls_at_the_same_time_are_one_where_no_more_are_wanted(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = '{"name": "weather", "parameters": {}}'
    with live(tmp_path, StubEngine([call, "; ", call])) as (address, _):
        url, body = f"{address}/v1/chat/completions", {**CHAT, "tools": tools}
        for wanted, count in ((None, 2), (True, 2), (False, 1)):
            asked = {**body, "parallel_tool_calls": wanted}
            assert len(httpx.post(url, json=asked).json()["choices"][0]["message"]["tool_calls"]) == count
            found = events(httpx.post(url, json={**asked, "stream": True}).text)
            calls = [c for e in found[:-1] for c in e["choices"][0]["delta"].get("tool_calls") or ()]
            assert len(calls) == count


def test_an_assistant_that_said_nothing_is_understood(server: tuple[str, Gateway]) -> None:
    turns = [*CHAT["messages"], {"role": "assistant", "content": None, "refusal": None}, *CHAT["messages"]]
    assert post(server, "/v1/chat/completions", {"model": "stub", "messages": turns}).status_code == 200


POSTS = tuple(f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "classify", "feedback", "files", "batches", "batches/x/cancel"))  # fmt: skip
HOSTS = (
    "evil.example",
    "evil.example:8100",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "[",
    "0.0.0.0:8100",
    "",
)


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics", "/healthz", *POSTS])
def test_a_page_of_another_site_gets_nothing(server: tuple[str, Gateway], path: str) -> None:
    address, gateway = server
    method, asked = ("POST" if path in POSTS else "GET"), len(gateway.engine.asked)  # type: ignore[attr-defined]
    forms = [{"origin": name} for name in ("http://evil.example", "http://localhost:3000", "null", "file://")]
    forms += [{"host": host} for host in HOSTS[:-1]] + [{"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}]
    for headers in forms:
        reply = httpx.request(method, f"{address}{path}", content=json.dumps(CHAT), headers=headers)
        assert reply.status_code == 403 and reply.json()["error"]["code"] in ("foreign_origin", "foreign_host"), headers
        assert not any(name.startswith("access-control") for name in reply.headers)
    assert len(gateway.engine.asked) == asked  # type: ignore[attr-defined]
    if method == "POST":
        for kind in ("text/plain", "text/plain;charset=UTF-8", "application/octet-stream"):
            reply = httpx.post(f"{address}{path}", content=json.dumps(CHAT), headers={"content-type": kind})
            assert reply.status_code in (400, 404, 415), (path, kind)
        assert httpx.options(f"{address}{path}", headers={"origin": "http://evil.example"}).status_code in (403, 405)
    assert len(gateway.engine.asked) == asked  # type: ignore[attr-defined]


def test_the_page_may_load_and_send_nothing_elsewhere(server: tuple[str, Gateway]) -> None:
    headers = httpx.get(f"{server[0]}/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    for path in ("/", "/v1/models", "/nothing", "/metrics"):
        assert httpx.get(f"{server[0]}{path}").headers["cache-control"] == "no-store", path
    script = httpx.get(f"{server[0]}/feedback.js", headers={"sec-fetch-site": "cross-site"})  # for other sites
    assert script.status_code == 200 and script.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/nothing/here", {}, 404),
        ("GET", "/v1/chat/completions/", {}, 404),  # and no way to the Host of the request
        ("GET", "/nothing", {"headers": {"host": "["}}, 404),
        ("GET", "/v1/models/%ff%00", {}, 404),
        ("GET", "/v1/files/..%2f..%2fetc", {}, 404),
        ("DELETE", "/v1/models", {}, 405),
        ("OPTIONS", "/v1/models", {}, 405),
        ("OPTIONS", "/v1/feedback", {}, 405),
        ("PATCH", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/chat/completions", {"content": b"{"}, 400),
        ("POST", "/v1/chat/completions", {"content": b'{"messages": "\xff"}'}, 400),
        ("POST", "/v1/chat/completions", {"content": b"[" * 50_000}, 400),
        ("POST", "/v1/chat/completions", {"content": b"{}", "headers": {"content-type": "text/xml"}}, 415),
        ("POST", "/v1/chat/completions", {"content": b"x", "headers": {"content-encoding": "gzip"}}, 415),
        ("POST", "/v1/files", {"content": b"x", "headers": {"content-encoding": "br"}}, 400),
        ("POST", "/v1/chat/completions", {"content": b"x" * 200_000}, 413),
        ("POST", "/v1/batches", {"content": (b"x" * 10_000 for _ in range(20))}, 413),
        ("POST", "/tokenize", {"content": (b"x" * 10_000 for _ in range(20))}, 413),
    ],
)
def test_errors_have_one_shape(
    server: tuple[str, Gateway], method: str, path: str, sent: dict[str, Any], status: int
) -> None:
    reply = httpx.request(method, f"{server[0]}{path}", timeout=HANG, **sent)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert "server" not in reply.headers and httpx.head(f"{server[0]}/nothing").status_code == 404


@pytest.mark.parametrize("fault", [RuntimeError("at /home/anna/secret.py"), UserError("no", where="/home/anna/x"), OSError("x"), PermissionError(13, "no", "/home/anna")])  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/models", "/v1/files", "/v1/batches"])
def test_what_fails_inside_stays_inside(
    server: tuple[str, Gateway], path: str, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: Any) -> Any:
        raise fault

    monkeypatch.setattr(Gateway, "caller", broken)
    reply = post(server, path, CHAT) if path in (*POSTS, "/tokenize") else httpx.get(f"{server[0]}{path}")
    assert reply.status_code == 500 and reply.json()["error"]["type"] == "server_error"
    assert "anna" not in reply.text and "Traceback" not in reply.text and "failed" in caplog.text


def test_models_tell_when_they_were_made_and_no_path(tmp_path: Path) -> None:
    models = {"a": ServedModel("a", source="/home/anna/runs/a", created=1_700_000_000)}
    engine = StubEngine(base="/home/anna/models/tiny.gguf", fail_after=0)
    with live(tmp_path, engine, models) as (address, _):
        listed = httpx.get(f"{address}/v1/models")
        (model,) = listed.json()["data"]
        assert model["created"] == 1_700_000_000 and model["root"] == "a" and model["parent"] == "tiny.gguf"
        assert httpx.get(f"{address}/v1/models/a").json() == model and "/home" not in listed.text


def test_what_an_engine_says_tells_no_places() -> None:
    said = "engine: can't open /home/anna/models/x.gguf, or http://bo:secret@10.0.0.1:8000/v1 (2/3 tried)"
    error = engine_error(Completion(finish="error", error=said))
    assert error.status == 503 and error.message == "can't open ..., or ... (2/3 tried)"


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_costs_no_accepted_request(tmp_path: Path, full: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = 3 if full else 1000
    with live(tmp_path) as (address, gateway):
        gateway.store.most_waiting = most
        form: dict[str, Any] = {"files": {"file": ("x.jsonl", b"{}\n" * 9)}, "data": {"purpose": "batch"}}
        file = httpx.post(f"{address}/v1/files", **form).json()["id"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # as on a full disk, no file can grow
        try:
            replies = [httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=HANG) for _ in range(6)]
            assert [reply.status_code for reply in replies] == ([200] * 3 + [503] * 3 if full else [200] * 6)
            refused = replies[3:] if full else []
            vote = {"request": replies[0].json()["id"], "kind": "thumbs", "value": "up"}
            refused.append(httpx.post(f"{address}/v1/feedback", json=vote))
            batch = {"endpoint": "/v1/chat/completions", "input_file_id": file}
            for work in (httpx.post(f"{address}/v1/files", **form), httpx.post(f"{address}/v1/batches", json=batch)):
                assert work.status_code == 507 and work.json()["error"]["code"] == "disk_full"
            for reply in refused:
                assert reply.status_code == 503 and reply.headers["retry-after"] == "5"
                assert reply.json()["error"]["code"] == "store" and str(tmp_path) not in reply.text
            assert httpx.get(f"{address}/readyz").status_code == 200
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        ids = {reply.json()["id"] for reply in replies if reply.status_code == 200}
        end = time.monotonic() + 20 * slowness()
        while gateway.store.waiting and time.monotonic() < end:
            time.sleep(0.05)
        assert httpx.post(f"{address}/v1/chat/completions", json=CHAT).status_code == 200
    with opened(tmp_path) as store:
        assert {request.id for request in read_requests(store)} >= ids


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "messages", "prompt", "input", "model", "n", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "tools",
    "tool_choice", "response_format", "logprobs", "top_logprobs", "stream_options", "service_tier", "user", "text",
    "instructions", "top", "request", "conversation", "kind", "value", "key", "echo", "metadata",
)  # fmt: skip
PATHS = ("chat/completions", "completions", "responses", "classify", "feedback", "../tokenize", "batches")


@hypothesis.given(
    path=st.sampled_from(PATHS), right=st.booleans(), fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4)
)
def test_no_body_makes_the_server_fail(
    server: tuple[str, Gateway], path: str, right: bool, fields: dict[str, Any]
) -> None:
    whole = {
        "chat/completions": {"messages": CHAT["messages"]}, "completions": {"prompt": "x"}, "responses": {"input": "x"},
        "classify": {"model": "labels", "input": "x"}, "feedback": {"request": "r", "kind": "x", "value": 1},
        "../tokenize": {"prompt": "x"}, "batches": {"endpoint": "/v1/completions"},
    }[path]  # fmt: skip
    reply = httpx.post(
        f"{server[0]}/v1/{path}", content=json.dumps({**(whole if right else {}), **fields}), timeout=HANG
    )
    assert reply.status_code < 500, (path, fields, reply.text)
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"]


def test_the_dashboard_asks_for_metrics_that_there_are(server: tuple[str, Gateway]) -> None:
    assert post(server, "/v1/chat/completions", CHAT).status_code == 200
    told = {line.split("{")[0].split(" ")[0] for line in httpx.get(f"{server[0]}/metrics").text.splitlines()}
    board = json.loads((ROOT / "examples" / "serve" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:tuneloop|gen_ai)_\w+", query)}
    labels = {name for query in queries for name in re.findall(r"by \(([^)]*)\)", query)}
    asked -= {part.strip() for group in labels for part in group.split(",")}
    assert len(asked) >= 15 and asked <= told, asked - told
    assert asked >= {name for name in told if name.startswith("tuneloop_") and not name.endswith("_created")} - {
        "tuneloop_shadow_dropped", "tuneloop_requests_created",
    }  # fmt: skip


class Thinking(StubEngine):
    """A stub whose reasoning is taken apart, as engines do it."""

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        separated = Separation(request, None)
        async for update in super().stream(request):
            yield separated(update)


def test_reasoning_is_given_and_streamed_apart_and_both_are_logged(tmp_path: Path) -> None:
    with live(tmp_path, Thinking(["<th", "ink>\nSent ", "on Monday.", "\n</thi", "nk>\n\nOn its", " way."])) as (
        address,
        gateway,
    ):
        url = f"{address}/v1/chat/completions"
        message = httpx.post(url, json=CHAT).json()["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("On its way.", "Sent on Monday.")
        deltas = [e["choices"][0]["delta"] for e in events(httpx.post(url, json={**CHAT, "stream": True}).text)[:-1]]
        assert "".join(d.get("content") or "" for d in deltas) == "On its way."
        assert "".join(d.get("reasoning_content") or "" for d in deltas) == "Sent on Monday."
        first = next(i for i, d in enumerate(deltas) if d.get("content"))
        assert not any(d.get("reasoning_content") for d in deltas[first:])
        body = httpx.post(f"{address}/v1/responses", json={"model": "stub", "input": "Hi"}).json()
        assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
        assert body["output"][0]["content"][0]["text"] == "Sent on Monday."
        raw = httpx.post(f"{address}/v1/completions", json={"model": "stub", "prompt": "x"}).json()["choices"][0][
            "text"
        ]
        assert raw == "<think>\nSent on Monday.\n</think>\n\nOn its way."
        wait_for(lambda: gateway.store.counts.stored == 4)
    with opened(tmp_path) as store:
        logged = [request.completion for request in read_requests(store)]
    both = {"role": "assistant", "content": "On its way.", "reasoning_content": "Sent on Monday.", "probability": 0.9}
    assert logged.count(both) == 2 and {**both, "response": {"instructions": False, "one_call": False}} in logged


def test_reasoning_that_a_client_sends_back_reaches_the_template(tmp_path: Path) -> None:
    engine = StubEngine()
    seen: list[Any] = []

    async def render(messages: Any, tools: Any = (), *, adapter: str = "base") -> list[int]:
        seen.extend(messages)
        return [1]

    engine.render = render  # type: ignore[method-assign]
    turns = [*CHAT["messages"], {"role": "assistant", "content": "Yes", "reasoning": "Hm"}, *CHAT["messages"]]
    with live(tmp_path, engine) as (address, _):
        assert httpx.post(f"{address}/v1/chat/completions", json={**CHAT, "messages": turns}).status_code == 200
    assert seen[1] == {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}


@pytest.mark.parametrize(
    "call", ['<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>', "[TOOL_CALLS]weather[ARGS]{}"]
)
def test_what_is_said_before_a_call_is_its_content(call: str, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    text = ["I ", "look. ", *(call[i : i + 4] for i in range(0, len(call), 4))]
    with live(tmp_path, StubEngine(text)) as (address, _):
        url, body = f"{address}/v1/chat/completions", {**CHAT, "tools": tools}
        choice = httpx.post(url, json=body).json()["choices"][0]
        assert choice["message"]["content"] == "I look." and choice["finish_reason"] == "tool_calls"
        deltas = [e["choices"][0]["delta"] for e in events(httpx.post(url, json={**body, "stream": True}).text)[:-1]]
        assert "".join(d.get("content") or "" for d in deltas).strip() == "I look."
        calls = [c for d in deltas for c in d.get("tool_calls") or ()]
        assert [c["function"]["name"] for c in calls] == ["weather"]


def test_a_request_that_a_stopping_server_ends_is_answered() -> None:
    sent: list[Any] = []

    async def work() -> None:
        at_work = asyncio.Event()

        async def handler(call: Call) -> None:
            at_work.set()
            await asyncio.Event().wait()

        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        answering = asyncio.create_task(RouteApp(handler, HANG)(scope, receive, send))
        await at_work.wait()
        answering.cancel()
        await answering

    asyncio.run(work())
    assert sent[0]["status"] == 503 and json.loads(sent[1]["body"])["error"]["code"] == "stopping"
