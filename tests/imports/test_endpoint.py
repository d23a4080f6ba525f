"""A server takes spans of OpenTelemetry's exporters, as JSON and protobuf, from keys with the right to send them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from imported import TODAY, message, span
from live_server import live

from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import Redactor
from tuneloop.imports.endpoint import TraceIntake
from tuneloop.records.request import StoredRequest
from tuneloop.serving.gateway import Caller
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.http.app import Call
from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.store.store import opened, read_requests

Send = Callable[..., tuple[int, bytes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, dict[str, str]]]:
    """Address and folder of a server, and its keys by their names."""
    folder = tmp_path_factory.mktemp("otlp") / "serve"
    folder.mkdir()
    keys = {"app": add_key(folder, "app", Limits(rights=["traces", "users"]))[0],
            "private": add_key(folder, "private", Limits(rights=["traces"], train="no"))[0],
            "chat": add_key(folder, "chat")[0]}  # fmt: skip
    with live(folder, limits={"body_mb": 0.2}) as (address, gateway):
        gateway.store.redact = Redactor(PersonalConfig())
        yield address, folder, keys


def sent(
    server: Any, body: bytes, key: str = "app", kind: str = "application/json", **headers: str
) -> tuple[int, bytes]:
    """Status and body of the reply to spans."""
    address, _, keys = server
    lines = {"Content-Type": kind, "Authorization": f"Bearer {keys.get(key, 'tl-none')}", **headers}
    try:
        with urlopen(Request(f"{address}/v1/traces", data=body, headers=lines)) as reply:
            return reply.status, reply.read()
    except HTTPError as error:
        return error.code, error.read()


def requests_of(server: Any, conversation: str) -> list[StoredRequest]:
    """What the store has of a conversation."""
    with opened(server[1]) as store:
        return list(read_requests(store, where="conversation = ?", values=[conversation]))


def test_spans_as_json_are_stored_once_with_what_the_spans_around_them_say(server: Any) -> None:
    around = span("b", {"session.id": "c1", "user.id": "anna@example.com"})
    text = json.dumps([{"role": "user", "content": "mail anna@example.com"}])
    body = json.dumps(message(span("c", {**TODAY, "gen_ai.input.messages": text}, "b"), around)).encode()
    assert [sent(server, body) for _ in range(2)] == [(200, b"{}")] * 2
    assert sent(server, gzip.compress(body), **{"Content-Encoding": "gzip"})[0] == 200
    (item,) = requests_of(server, "c1")
    assert item.prompt[0]["content"] == "mail <EMAIL>" and item.completion == "Rainy."
    assert str(item.user).startswith("u-") and (item.key, item.voice, item.train) == ("app", None, None)


def test_a_key_needs_the_right_and_says_whose_word_counts_and_what_may_be_learned(server: Any) -> None:
    body = json.dumps(message(span("d", {**TODAY, "session.id": "c2"}))).encode()
    assert sent(server, body, "chat")[0] == 403 and sent(server, body, "nobody")[0] == 401
    assert requests_of(server, "c2") == []
    assert sent(server, body, "private")[0] == 200
    (item,) = requests_of(server, "c2")
    assert (item.key, item.voice, item.train) == ("private", "key:private", "no")


def test_bodies_that_are_too_large_packed_too_well_cut_or_something_else(server: Any) -> None:
    assert sent(server, b"x" * 300_000)[0] == 413
    assert sent(server, gzip.compress(b" " * 5_000_000), **{"Content-Encoding": "gzip"})[0] == 413
    assert sent(server, gzip.compress(b"{}")[:-6], **{"Content-Encoding": "gzip"})[0] == 400
    assert sent(server, b"no gzip", **{"Content-Encoding": "gzip"})[0] == 400
    assert sent(server, b"{}", **{"Content-Encoding": "br"})[0] == 415
    assert sent(server, b"{}", kind="text/plain")[0] == 415
    assert sent(server, b"[1]")[0] == 400 and sent(server, b"{")[0] == 400
    assert sent(server, b'{"resourceSpans": 3}')[0] == 400


def test_spans_that_can_not_be_stored_are_counted_in_the_reply(server: Any) -> None:
    future = span("e", TODAY, startTimeUnixNano="7000000000000000000")
    status, body = sent(server, json.dumps(message(future, span("f", {**TODAY, "session.id": "c3"}))).encode())
    assert (
        status == 200 and json.loads(body)["partialSuccess"]["rejectedSpans"] == "1"
    ) or b'"rejectedSpans":1' in body
    assert len(requests_of(server, "c3")) == 1


def test_the_official_exporter_sends_protobuf(server: Any) -> None:
    pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs opentelemetry-proto")
    exporters = pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="needs opentelemetry-exporter-otlp-proto-http"
    )
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    address, _, keys = server
    compression = exporters.Compression.Gzip
    exporter = exporters.OTLPSpanExporter(
        f"{address}/v1/traces", headers={"authorization": f"Bearer {keys['app']}"}, compression=compression
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("app").start_as_current_span("chat gpt", attributes={**TODAY, "session.id": "c4"}):
        pass
    provider.shutdown()
    (item,) = requests_of(server, "c4")
    assert item.prompt[0]["content"] == "Weather in Paris?" and item.prompt_tokens == 12


def test_protobuf_is_read_and_answered_as_such(server: Any) -> None:
    messages = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs opentelemetry-proto"
    )
    from google.protobuf.json_format import ParseDict

    item = span("9", {**TODAY, "session.id": "c5"}, parentSpanId="")
    ids = {"traceId": "qqqqqqqqqqqqqqqqqqqqqg==", "spanId": "mZmZmZmZmZk="}  # base64, as protobuf's own JSON has bytes
    body = ParseDict(message({**item, **ids}), messages.ExportTraceServiceRequest()).SerializeToString()
    kind = "application/x-protobuf"
    status, reply = sent(server, body, kind=kind)
    assert status == 200 and messages.ExportTraceServiceResponse.FromString(reply).partial_success.rejected_spans == 0
    assert len(requests_of(server, "c5")) == 1
    assert sent(server, json.dumps(message(item)).encode())[0] == 200
    assert sent(server, b"\xff\xff", kind=kind)[0] == 400


def test_messages_of_millions_of_spans_are_refused_and_others_are_taken_meanwhile(server: Any) -> None:
    pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs opentelemetry-proto")
    spans = b"\x12\x00" * 60_000  # within the size that this server takes
    scope = b"\x12" + bytes([len(spans) & 127 | 128, len(spans) >> 7 & 127 | 128, len(spans) >> 14]) + spans
    body = b"\x0a" + bytes([len(scope) & 127 | 128, len(scope) >> 7 & 127 | 128, len(scope) >> 14]) + scope
    hostile = partial(sent, server, gzip.compress(body), kind="application/x-protobuf", **{"Content-Encoding": "gzip"})
    plain = json.dumps(message(span("7", {**TODAY, "session.id": "c7"}))).encode()
    with ThreadPoolExecutor(7) as clients:
        refused = [clients.submit(hostile) for _ in range(6)]
        taken = clients.submit(sent, server, plain, "private")
        assert {reply.result()[0] for reply in refused} <= {413, 429} and taken.result()[0] == 200
    assert len(requests_of(server, "c7")) == 1


def test_bytes_that_are_read_at_once_are_limited_for_each_key(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    with live(tmp_path / "serve", limits={"body_mb": 1}) as (_, gateway):
        intake = TraceIntake(gateway, b"")
        call = Call({"headers": [(b"content-length", b"1000000")]}, None, None)  # type: ignore[arg-type]
        with ExitStack() as stack:
            with pytest.raises(ApiError) as refused:
                for _ in range(9):
                    stack.enter_context(intake._room(call, Caller(), 1_000_000))
            assert refused.value.status == 429 and refused.value.headers["Retry-After"] == "1"
            assert intake.held.total() == 4_000_000
        assert intake.held.total() == 0


def test_a_server_without_keys_takes_no_spans_unless_its_settings_say_so(tmp_path: Path) -> None:
    body = json.dumps(message(span("d", TODAY))).encode()
    with live(tmp_path / "closed") as (address, _):
        assert sent((address, tmp_path, {}), body, **{"Authorization": ""})[0] == 403
    with live(tmp_path / "open", keys={"open_rights": ["traces"]}) as (address, _):
        assert sent((address, tmp_path, {}), body, **{"Authorization": ""})[0] == 200
