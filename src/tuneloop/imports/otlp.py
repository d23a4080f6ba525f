"""A message of an OpenTelemetry exporter, spans or log records, read in a process that can be ended: a few compressed
bytes may be millions of empty spans. They are counted on the wire, before any of them becomes an object."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import Any

import orjson

from tuneloop.core.foreign import LIMITS, MOST_SPANS, fast_json, parse_json
from tuneloop.data.formats import Refused
from tuneloop.imports.importing import end_of_request_id, requests_of
from tuneloop.imports.otel import FORMAT
from tuneloop.imports.parts import REASONS
from tuneloop.serving.store import json_of

PROTOBUF = "application/x-protobuf"
MOST_FIELDS = LIMITS["traces"].nodes  # of all spans of a message


class Unreadable(Exception):
    """A message that is not stored: status of HTTP, reason, and a code that programs can test."""


def read_job(payload: bytes) -> bytes:
    """In a process of `core.bounded_work`: the calls in a message, or what its log records add to calls, as JSON.

    Args:
        payload: a line of JSON (`kind` of content, whether it is `packed` and holds `logs`, `most` bytes, the `key` of
            users' pseudonyms as hexadecimal digits) and the message.
    """
    head, _, body = payload.partition(b"\n")
    settings = parse_json(head)
    try:
        body = _unpacked(body, settings["most"]) if settings["packed"] else body
        value = _message(body, settings["logs"]) if settings["kind"] == PROTOBUF else _json(body)
        if settings["logs"]:
            return _events(value)
        requests, faults = requests_of(FORMAT, value, bytes.fromhex(settings["key"]))
        for reason, detail in faults:
            if reason == "wrong_type":
                raise Unreadable(400, f"Not OTLP: {detail}", "invalid_traces")
    except Unreadable as error:
        return json.dumps({"error": error.args}).encode()
    rejected = json.dumps(Counter(REASONS[reason] for reason, _ in faults)).encode()
    return b'{"rejected":%b,"requests":[%b]}' % (rejected, b",".join(map(json_of, requests)))


def _events(message: dict[str, Any]) -> bytes:
    """What log records add, each with the end of the id of the request whose span it names."""
    try:
        parts = list(FORMAT.parts(message))
    except (Refused, AttributeError, TypeError, ValueError) as error:
        raise Unreadable(400, f"Not OTLP: {error}"[:300], "invalid_logs") from None
    rejected = Counter(REASONS[reason] for part in parts for reason, _ in part.faults)
    events = [[end_of_request_id(part.trace, part.parent), part.values] for part in parts if part.kind == "extra"]
    return orjson.dumps({"rejected": rejected, "events": events})


def _unpacked(data: bytes, most: int) -> bytes:
    inflate = zlib.decompressobj(wbits=31)
    try:
        body = inflate.decompress(data, most + 1)
    except zlib.error:
        raise Unreadable(400, "The body is not gzip", "invalid_encoding") from None
    if len(body) > most:
        raise Unreadable(413, f"The body is larger than {most / 1e6:g} MB", "request_too_large")
    if not inflate.eof:
        raise Unreadable(400, "The body is cut", "invalid_encoding")
    return body


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = fast_json(body)
    except ValueError as error:
        raise Unreadable(400, f"The body is not valid JSON: {error}"[:300], "invalid_json") from None
    if not isinstance(value, dict):
        raise Unreadable(400, "The body must be a JSON object", "invalid_json")
    fields = spans = 0
    left: list[Any] = [value]
    while left:
        part = left.pop()
        fields += len(part)
        if isinstance(part, dict):
            lists = [part.get(name) for name in ("spans", "logRecords", "log_records")]
            spans += sum(len(span_list) for span_list in lists if isinstance(span_list, list))
            part = part.values()
        _check_counts(fields, spans)
        left += [below for below in part if isinstance(below, dict | list)]
    return value


def _check_counts(fields: int, spans: int) -> None:
    if spans > MOST_SPANS or fields > MOST_FIELDS:
        limit = f"{MOST_SPANS:,} spans" if spans > MOST_SPANS else f"{MOST_FIELDS:,} values"
        raise Unreadable(413, f"A message has at most {limit}: send smaller ones", "too_many_spans")


def _message(body: bytes, logs: bool) -> dict[str, Any]:
    """A message in protobuf as its JSON."""
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError:
        message = "Spans in protobuf need: pip install 'tuneloop[otel]'; or set OTEL_EXPORTER_OTLP_PROTOCOL=http/json"
        raise Unreadable(415, message, "unsupported_media_type") from None
    kind: Any = ExportLogsServiceRequest if logs else ExportTraceServiceRequest
    try:
        _check_wire(body, kind.DESCRIPTOR)
        value: dict[str, Any] = MessageToDict(kind.FromString(body))
    except (DecodeError, ValueError, IndexError) as error:
        message = f"The body is no {kind.DESCRIPTOR.name}: {error}"[:300]
        raise Unreadable(400, message, "invalid_traces") from None
    return value


def _check_wire(data: bytes, kind: Any) -> None:
    """Count the fields of a message and of all within it, by the descriptor of its kind, without making any of them.

    Raises:
        Unreadable: there are too many. ValueError, IndexError: it is no such message.
    """
    fields = spans = 0
    left = [(0, len(data), kind)]
    while left:
        at, end, kind = left.pop()
        while at < end:
            tag, at = _varint(data, at)
            fields += 1
            size = {1: 8, 5: 4}.get(tag & 7, 0)
            if tag & 7 in (0, 2):
                size, at = _varint(data, at)
            elif not size:
                raise ValueError("a field of an unknown kind")
            if tag & 7 == 2:
                field = kind.fields_by_number.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    left.append((at, at + size, field.message_type))
                    spans += field.message_type.name in ("Span", "LogRecord")
            at += size if tag & 7 else 0
            _check_counts(fields, spans)
        if at != end:
            raise ValueError("a field is longer than what it is in")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of up to ten bytes, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")
