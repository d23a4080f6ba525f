"""Asking an endpoint, a real server on this machine that misbehaves: retried, bounded, reported, and nothing lost."""

from __future__ import annotations

import asyncio
import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_http import Quiet, listening

from patience import slowness
from tuneloop.core.errors import UserError
from tuneloop.inference.endpoint import Endpoint, key_from
from tuneloop.inference.openai.api import read_reply
from tuneloop.inference.openai.serving import _AnswerInText
from tuneloop.inference.openai.target import complete
from tuneloop.inference.request import Request, Separation, Update
from tuneloop.records.completion import failures

Script = Callable[[int, dict[str, Any]], tuple[int, dict[str, str], bytes]]


def completion(text: str, **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()


class Server:
    """Answers POSTs by a script from (number of the request, its body) to status, headers, body."""

    def __init__(self, script: Script) -> None:
        self.requests: list[tuple[dict[str, Any], dict[str, str], float]] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        outer = self

        class Handler(Quiet):
            def do_POST(self) -> None:
                body = json.loads(self.body())
                with lock:
                    number = len(outer.requests)
                    outer.requests.append((body, dict(self.headers), time.monotonic()))
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                status, headers, payload = script(number, body)
                with lock:
                    outer.at_once -= 1
                self.answer(status, payload, headers)

        self.handler, self.url = Handler, ""


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Server]]:
    with ExitStack() as running:

        def start(script: Script) -> Server:
            server = Server(script)
            server.url = f"{running.enter_context(listening(server.handler))}/v1"
            return server

        yield start


def echo(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, completion(body["messages"][-1]["content"].upper())


def asks(*texts: str) -> list[Request]:
    return [Request([{"role": "user", "content": text}], max_new_tokens=16) for text in texts]


def endpoint(server: Server, **more: Any) -> Endpoint:
    return Endpoint(server.url, "m", pause=0.01, **{"timeout": 5.0, **more})


def test_answers_come_in_order_several_at_once_with_counts(serve: Any) -> None:
    def slow(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.05)
        return echo(number, body)

    server = serve(slow)
    texts = [f"row {i}" for i in range(12)]
    replies = complete(endpoint(server, concurrency=4, api_key="k-1"), asks(*texts))
    assert [reply.text for reply in replies] == [text.upper() for text in texts]
    assert server.most_at_once == 4
    assert all(headers["Authorization"] == "Bearer k-1" for _, headers, _ in server.requests)
    priced = Endpoint(server.url, "m", usd_per_million_input=10.0, usd_per_million_output=100.0).usage(replies)
    assert (priced["prompt_tokens"], priced["tokens"], priced["requests"]) == (84, 36, 12)
    assert priced["usd"] == pytest.approx((84 * 10 + 36 * 100) / 1e6) == priced["usd_spent"]


def test_a_rerun_costs_nothing(serve: Any, tmp_path: Path) -> None:
    server = serve(echo)
    asked = endpoint(server, cache=tmp_path, usd_per_million_input=1.0)
    first = complete(asked, asks("a", "b", "a"))
    assert len(server.requests) == 2, "equal requests are asked once"
    again = complete(asked, asks("a", "b", "a"))
    assert len(server.requests) == 2
    assert [r.text for r in again] == [r.text for r in first] and all(r.cached for r in again)
    counted = asked.usage(again)
    assert counted["usd_spent"] == 0 and counted["usd"] == pytest.approx(asked.usage(first)["usd"])
    complete(Endpoint(server.url, "another", cache=tmp_path, pause=0.01), asks("a"))
    assert len(server.requests) == 3, "another model's answer is another answer"


def test_the_key_is_kept_nowhere(serve: Any, tmp_path: Path) -> None:
    asked = endpoint(serve(echo), cache=tmp_path, api_key="sk-secret")
    complete(asked, asks("a"))
    assert all("sk-secret" not in file.read_text() for file in tmp_path.rglob("*.json"))
    assert "sk-secret" not in repr(asked)


def test_a_damaged_answer_in_the_cache_is_asked_again(serve: Any, tmp_path: Path) -> None:
    server = serve(echo)
    asked = endpoint(server, cache=tmp_path)
    complete(asked, asks("a"))
    next(tmp_path.rglob("*.json")).write_text('{"reply": {"text"')
    assert complete(asked, asks("a"))[0].text == "A" and len(server.requests) == 2


@pytest.mark.parametrize(
    "bad",
    [
        (429, {}, b""),
        (500, {}, b"oops"),
        (503, {"retry-after": "0"}, b""),
        (200, {}, b"<html>garbage</html>"),
        (200, {}, b""),
        (200, {}, b'{"choices": []}'),
        (200, {"content-length": "4000"}, completion("half")[:30]),
        (200, {}, completion("half")[:30]),
    ],
    ids=["429", "500", "retry-after 0", "garbage", "nothing", "no choices", "half a stream", "half an object"],
)
def test_what_may_pass_is_tried_again(serve: Any, bad: tuple[int, dict[str, str], bytes]) -> None:
    server = serve(lambda number, body: bad if number < 2 else echo(number, body))
    (reply,) = complete(endpoint(server, timeout=1.0), asks("a"))
    assert (reply.text, reply.retries, reply.error) == ("A", 2, "")


def test_retry_after_is_honoured_by_all(serve: Any) -> None:
    server = serve(lambda n, body: (429, {"retry-after": "1"}, b"") if n == 0 else echo(n, body))
    replies = complete(endpoint(server, concurrency=1), asks("a", "b"))
    times = [at for _, _, at in server.requests]
    assert all(not reply.error for reply in replies) and times[1] - times[0] >= 1.0


@pytest.mark.parametrize(("status", "form"), [(429, "seconds"), (503, "date")])
def test_a_rate_that_is_used_up_costs_no_row(serve: Any, status: int, form: str) -> None:
    """Three requests a second; each refusal names the time to wait."""
    taken: list[float] = []
    lock = threading.Lock()

    def limited(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        with lock:
            now = time.monotonic()
            if len([at for at in taken if at > now - 1]) >= 3:
                later = datetime.now(UTC) + timedelta(seconds=2)
                wait = "1" if form == "seconds" else email.utils.format_datetime(later, usegmt=True)
                return status, {"retry-after": wait}, b"slowly"
            taken.append(now)
        return echo(number, body)

    server = serve(limited)
    replies = complete(endpoint(server, retries=0, concurrency=8), asks(*map(str, range(9))))
    assert [reply.text for reply in replies] == [str(i) for i in range(9)]
    assert len(server.requests) < 40, "fewer are asked at the same time once a rate is used up"


def test_refusals_without_a_time_are_asked_later_and_later(serve: Any) -> None:
    server = serve(lambda n, body: (429, {}, b"") if n < 7 else echo(n, body))
    (reply,) = complete(endpoint(server, retries=0, concurrency=1), asks("a"))
    times = [at for _, _, at in server.requests]
    assert (reply.text, reply.retries) == ("A", 7) and times[7] - times[6] > 3 * (times[2] - times[1]) > 0


def test_a_row_that_is_always_refused_holds_up_no_other(serve: Any) -> None:
    server = serve(
        lambda n, body: (429, {}, b"too large for the rate") if body["messages"][0]["content"] == "b" else echo(n, body)
    )
    bad, *good = complete(endpoint(server, patience=1.0, concurrency=4), asks("b", *map(str, range(20))))
    assert [reply.text for reply in good] == [str(i) for i in range(20)] and "HTTP 429" in bad.error


def test_a_quota_that_is_spent_is_not_waited_for(serve: Any) -> None:
    body = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    server = serve(lambda n, asked: (429, {"retry-after": "30"}, body))
    started = time.monotonic()
    with pytest.raises(UserError, match="exceeded your quota"):
        complete(endpoint(server), asks("a", "b"))
    assert time.monotonic() - started < 3 * slowness()


def test_an_endpoint_that_wants_an_hour_is_not_waited_for(serve: Any) -> None:
    server = serve(
        lambda n, body: (429, {"retry-after": "3600"}, b"") if body["messages"][0]["content"] == "b" else echo(n, body)
    )
    started = time.monotonic()
    good, bad = complete(endpoint(server), asks("a", "b"))
    assert good.text == "A" and "3,600 s" in bad.error and time.monotonic() - started < 3 * slowness()


def test_rows_that_fail_for_good_lose_no_other(serve: Any, tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if body["messages"][0]["content"] == "bad":
            return 400, {}, b'{"error": {"message": "context too long"}}'
        return echo(number, body)

    server = serve(script)
    asked = endpoint(server, cache=tmp_path)
    replies = complete(asked, asks("a", "bad", "c"))
    assert [reply.text for reply in replies] == ["A", "", "C"]
    assert failures(replies) == [("HTTP 400: context too long", 1)]
    before = len(server.requests)
    complete(asked, asks("a", "bad", "c"))
    assert len(server.requests) == before + 1, "only what failed is asked again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_all_ends_at_once(serve: Any, status: int) -> None:
    server = serve(lambda n, body: (status, {}, b'{"error": {"message": "no such thing"}}'))
    with pytest.raises(UserError, match="no such thing") as caught:
        complete(endpoint(server, concurrency=2), asks(*map(str, range(200))))
    assert server.url in caught.value.where and len(server.requests) <= 10


def test_an_endpoint_that_only_fails_is_given_up(serve: Any) -> None:
    server = serve(lambda n, body: (500, {}, b"down"))
    with pytest.raises(UserError, match="answered none of 100"):
        complete(endpoint(server, retries=1, concurrency=4), asks(*map(str, range(100))))
    assert len(server.requests) < 40


def test_an_outage_in_the_middle_ends_the_rest_and_keeps_what_came(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: echo(n, body) if n < 10 else (500, {}, b""))
    asked = endpoint(server, retries=0, concurrency=1, cache=tmp_path)
    replies = complete(asked, asks(*map(str, range(200))))
    assert [r.text for r in replies[:10]] == [str(i) for i in range(10)]
    assert len(server.requests) < 60 and "not requested" in replies[-1].error
    assert len(list(tmp_path.rglob("*.json"))) == 10


def test_nobody_there_is_said_soon() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="nothing answers"):
        complete(Endpoint("http://127.0.0.1:9", "m", pause=0.01), asks(*map(str, range(50))))
    assert time.monotonic() - started < 5 * slowness()


def test_a_server_that_says_nothing_is_bounded(serve: Any) -> None:
    def silent(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.6)
        return echo(number, body)

    started = time.monotonic()
    with pytest.raises(UserError, match=r"no answer in 0\.2 s"):
        complete(endpoint(serve(silent), timeout=0.2, retries=1), asks("a"))
    assert time.monotonic() - started < 3 * slowness()


def test_an_answer_of_a_megabyte_is_taken_and_one_without_end_is_not(serve: Any) -> None:
    server = serve(lambda n, body: (200, {}, completion("x" * (int(body["messages"][0]["content"]) << 20))))
    taken, refused = complete(endpoint(server, most_bytes=2 << 20), asks("1", "3"))
    assert len(taken.text) == 1 << 20 and not taken.error
    assert refused.text == "" and "above 2 MiB" in refused.error and refused.retries == 0


def test_parameters_that_a_model_refuses_are_left_out(serve: Any) -> None:
    def picky(number: int, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return 400, {}, json.dumps({"error": {"message": f"Unsupported parameter: '{name}'"}}).encode()
        assert body["max_completion_tokens"] == 16
        return echo(number, body)

    server = serve(picky)
    assert [r.text for r in complete(endpoint(server, concurrency=1), asks("a", "b"))] == ["A", "B"]
    assert len(server.requests) == 4, "what one request has learnt, the next one knows"


def test_it_can_be_used_where_an_event_loop_runs_already(serve: Any) -> None:
    server = serve(echo)

    async def notebook() -> list[str]:
        return [reply.text for reply in complete(endpoint(server), asks("a", "b"))]

    assert asyncio.run(notebook()) == ["A", "B"]


@pytest.mark.parametrize("key", ["two\nlines", "schl\u00fcssel"])
def test_a_key_that_no_header_may_hold_is_refused(serve: Any, key: str) -> None:
    server = serve(echo)
    with pytest.raises(UserError, match="no header may hold"):
        complete(endpoint(server, api_key=key), asks("a"))
    assert not server.requests


def test_a_redirection_is_not_followed_with_the_key(serve: Any) -> None:
    other = serve(echo)
    server = serve(lambda n, body: (307, {"location": f"{other.url}/chat/completions"}, b""))
    with pytest.raises(UserError, match="HTTP 307"):
        complete(endpoint(server, api_key="k-1"), asks("a"))
    assert server.requests and not other.requests


def test_a_cut_answer_is_not_finished(serve: Any) -> None:
    server = serve(lambda n, body: (200, {}, completion("cut", finish_reason="length")))
    assert not complete(endpoint(server), asks("a"))[0].finished


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("https://h/api/chat/completions", "https://h/api/chat/completions"),
        ("https://h/o/v2?version=3", "https://h/o/v2/chat/completions?version=3"),
    ],
)
def test_any_form_of_the_url(url: str, address: str) -> None:
    assert Endpoint(url, "m").address == address


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="Not an endpoint"):
        _ = Endpoint(url, "m").address


def test_calls_of_tools_and_parts_are_answers() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    body = json.dumps({"choices": [{"message": {"content": None, "tool_calls": [call]}}]})
    reply = read_reply(body)
    assert reply and json.loads(reply.text) == {"name": "f", "arguments": {"a": 1}}
    parts = json.dumps(
        {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}
    )
    assert (read_reply(parts) or reply).text == "ab"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "tool_calls", "text"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(st.one_of(st.text(), JSON.map(json.dumps)))
def test_no_body_of_an_answer_raises(text: str) -> None:
    reply = read_reply(text)
    assert reply is None or isinstance(reply.text, str)


def test_a_named_key_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert key_from("OPENAI_API_KEY") == ""
    with pytest.raises(UserError, match="MY_KEY is not set"):
        key_from("MY_KEY")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_a_server_gives_is_apart_from_the_answer(name: str) -> None:
    for message in ({"content": "b", name: " so b\n"}, {"content": "<think>\nso b\n</think>\n\nb"}):
        reply = read_reply(json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}))
        assert reply is not None and (reply.text, reply.reasoning) == ("b", "so b")
    cut = read_reply(json.dumps({"choices": [{"message": {"content": None, name: "so"}, "finish_reason": "length"}]}))
    assert cut is not None and (cut.text, cut.reasoning, cut.finish) == ("", "so", "length")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_that_a_server_streams_is_passed_on(name: str) -> None:
    request = Request([{"role": "user", "content": "a"}])
    answer, separated, pieces = _AnswerInText(request, "x"), Separation(request, None), []
    for delta in ({"role": "assistant", "content": ""}, {name: "so "}, {name: "b"}, {"content": "b"}, {"content": "!"}):
        pieces.append(separated(Update(answer.read({"choices": [{"delta": delta}]}))))
    answer.read({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    pieces.append(separated(Update(completion=answer.completed())))
    assert "".join(piece.reasoning for piece in pieces) == "so b"
    assert "".join(piece.text for piece in pieces) == "b!"
    assert pieces[-1].completion is not None
    assert (pieces[-1].completion.text, pieces[-1].completion.reasoning) == ("b!", "so b")


def test_a_filtered_answer_without_a_word_is_billed_once_and_kept(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda number, body: (200, {}, completion(None, finish_reason="content_filter")))  # type: ignore[arg-type]
    to = Endpoint(url=server.url, model="m", cache=tmp_path, usd_per_million_input=1.0, usd_per_million_output=1.0)
    replies = complete(to, asks("a", "b"))
    assert [(reply.text, reply.error) for reply in replies] == [("", ""), ("", "")]
    assert to.usage(replies)["usd_spent"] == pytest.approx(20e-6) and len(server.requests) == 2
    again = to.usage(complete(to, asks("a", "b")))
    assert (again["cached"], again["usd_spent"], len(server.requests)) == (2, 0.0, 2)


def test_a_reply_without_a_message_that_says_what_it_used_is_spent_and_not_asked_for_again(
    serve: Any, tmp_path: Path
) -> None:
    odd = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()
    server = serve(lambda number, body: (200, {}, odd if "odd" in str(body) else completion("x")))
    to = Endpoint(url=server.url, model="m", cache=tmp_path, usd_per_million_output=1e6)
    first = to.usage(complete(to, asks("odd", "b")))
    assert (first["failed"], first["usd_spent"], len(server.requests)) == (1, 6.0, 2)
    again = to.usage(complete(to, asks("odd", "b")))
    assert (again["failed"], again["usd_spent"], len(server.requests)) == (1, 0.0, 2)


def test_replies_that_did_not_arrive_are_counted_as_perhaps_billed(serve: Any) -> None:
    server = serve(lambda number, body: (200, {}, b"{cut") if number < 2 else (200, {}, completion("x")))
    cost = Endpoint(url=server.url, model="m").usage(complete(endpoint(server), asks("a")))
    assert (cost["lost"], cost["retries"], cost["failed"]) == (2, 2, 0)
