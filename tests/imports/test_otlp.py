"""A message of spans is bounded before it becomes objects, whatever its few bytes stand for."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from imported import TODAY, message, span

from tuneloop.imports.otlp import MOST_FIELDS, MOST_SPANS, PROTOBUF, read_job

JSON = "application/json"


def read(body: bytes, kind: str = PROTOBUF, *, packed: bool = False, most: int = 10_000_000) -> Any:
    settings = {"kind": kind, "packed": packed, "most": most, "key": "00", "logs": False}
    return json.loads(read_job(json.dumps(settings).encode() + b"\n" + body))


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that is a message or a text."""
    size, length = len(content), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def spans(count: int, content: bytes = b"") -> bytes:
    return field(1, field(2, field(2, content) * count))


EMPTY = spans(1_500_000)
NESTED = b""
for _ in range(5_000):
    NESTED = field(5, field(1, NESTED))  # a list in a list


def test_millions_of_empty_spans_are_refused_before_they_are_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel")
    packed = gzip.compress(EMPTY)
    assert len(packed) < 5_000
    made: list[bytes] = []
    monkeypatch.setattr(pb2.ExportTraceServiceRequest, "FromString", made.append, raising=False)
    for body in (EMPTY, spans(1, field(9, b"") * (MOST_FIELDS + 1)), spans(1, field(11, field(3, b"") * MOST_FIELDS))):
        assert read(body)["error"][::2] == [413, "too_many_spans"]
    assert read(packed, packed=True)["error"][::2] == [413, "too_many_spans"]
    assert read(packed, packed=True, most=100_000)["error"][::2] == [413, "request_too_large"]
    assert not made


def test_what_is_within_the_limits_is_read_and_what_is_damaged_is_refused() -> None:
    pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel")
    assert "error" not in read(spans(MOST_SPANS))
    assert read(spans(1, field(9, field(2, NESTED))))["error"][::2] == [400, "invalid_traces"]
    for body in (b"\xff\xff", EMPTY[:1_000], b"\x0a\x05\x12", b"\x0b", b"\x08" + b"\xff" * 11):
        assert read(body)["error"][::2] == [400, "invalid_traces"]


def test_spans_as_json_have_the_same_limits() -> None:
    empty = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b",".join([b"{}"] * (MOST_SPANS + 1)) + b"]}]}]}"
    wide = json.dumps(message({**span("a", TODAY), "attributes": [{}] * MOST_FIELDS})).encode()
    deep = b'{"resourceSpans":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    assert read(empty, JSON)["error"][::2] == [413, "too_many_spans"]
    assert read(wide, JSON)["error"][::2] == [413, "too_many_spans"]
    assert read(deep, JSON)["error"][0] == 400
    assert len(read(json.dumps(message(span("a", TODAY))).encode(), JSON)["requests"]) == 1
