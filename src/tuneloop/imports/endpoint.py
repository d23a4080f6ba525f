"""`POST /v1/traces` of a server: OpenTelemetry's exporters send their spans here, by OTLP/HTTP as JSON or protobuf.

A call takes user and conversation from its own attributes, else from spans around it in the same message: what a later
message says of them comes too late. A key needs the right `traces`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from tuneloop.imports.importing import requests_of
from tuneloop.imports.otel import FORMAT
from tuneloop.imports.parts import REASONS
from tuneloop.records.request import StoredRequest
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, unavailable
from tuneloop.serving.http.app import Call, RouteApp
from tuneloop.serving.store.store import opened
from tuneloop.serving.store.users import users_key

if TYPE_CHECKING:
    from starlette.routing import Route

PATH = "/v1/traces"
PROTOBUF = "application/x-protobuf"


def trace_routes(gateway: Gateway) -> list[Route]:
    """The route, for `make_app`."""
    from starlette.routing import Route

    with opened(gateway.config.store) as store:
        key = users_key(store)
    config = gateway.config
    app = RouteApp(partial(_receive, gateway, key), config.limits.request_seconds, config.loopback)
    return [Route(PATH, app, methods=["POST"])]


async def _receive(gateway: Gateway, key: bytes, call: Call) -> None:
    caller = gateway.caller(call.header)
    if "traces" not in caller.rights:
        what = "Traces need a key with the right: tuneloop keys add NAME --rights traces"
        raise ApiError(403, what, code="traces_not_allowed")
    kind = call.header("content-type").partition(";")[0].strip().lower()
    if kind not in ("application/json", PROTOBUF):
        raise ApiError(415, f"Spans come as application/json or {PROTOBUF}", code="unsupported_media_type")
    body = await call.body(int(gateway.config.limits.body_mb * 1e6), packed=True)
    requests, rejected = await asyncio.to_thread(_requests_in, body, kind, key)
    records = [_of_caller(request, caller) for request in requests]
    if gateway.store.full:
        raise unavailable("The store takes nothing at present", "store")
    try:
        await asyncio.gather(*(asyncio.wrap_future(gateway.store.add_durably(record)) for record in records))
    except OSError:  # the log has it; the exporter sends the same again, which changes nothing
        raise unavailable("The store takes nothing at present", "store") from None
    reasons = ", ".join(f"{reason}: {number}" for reason, number in rejected.items())
    await _reply(call, kind, rejected.total(), reasons)


def _requests_in(body: bytes, kind: str, key: bytes) -> tuple[list[StoredRequest], Counter[str]]:
    """The calls in a message, and how many of its parts can't be stored, by reason; ApiError: it is no such message."""
    requests, faults = requests_of(FORMAT, _message(body) if kind == PROTOBUF else _json(body), key)
    for reason, detail in faults:
        if reason == "wrong_type":
            raise ApiError(400, f"Not OTLP: {detail}", code="invalid_traces")
    return requests, Counter(REASONS[reason] for reason, _ in faults)


def _of_caller(request: StoredRequest, caller: Caller) -> StoredRequest:
    """A request with what its key says of it: whether its users are believed, and whether it may be learned from."""
    voice = replace(caller, user=request.user or "", conversation=request.conversation or "").voice
    train = "no" if caller.key is not None and caller.key.limits.train == "no" else None
    return replace(request, key=caller.name, voice=voice, train=train)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}"[:300], code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object", code="invalid_json")
    return value


def _message(body: bytes) -> dict[str, Any]:
    """A message in protobuf as its JSON."""
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError:
        what = "Spans in protobuf need: pip install 'tuneloop[otel]'; or set OTEL_EXPORTER_OTLP_PROTOCOL=http/json"
        raise ApiError(415, what, code="unsupported_media_type") from None
    try:
        value: dict[str, Any] = MessageToDict(ExportTraceServiceRequest.FromString(body))
    except (DecodeError, ValueError) as error:
        raise ApiError(400, f"The body is no ExportTraceServiceRequest: {error}"[:300], code="invalid_traces") from None
    return value


async def _reply(call: Call, kind: str, rejected: int, reasons: str) -> None:
    """ExportTraceServiceResponse in the encoding of the request; empty: all is stored."""
    if kind != PROTOBUF:
        partial_success = {"partialSuccess": {"rejectedSpans": rejected, "errorMessage": reasons}} if rejected else {}
        await call.reply(partial_success)
        return
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    reply = ExportTraceServiceResponse()
    if rejected:
        reply.partial_success.rejected_spans, reply.partial_success.error_message = rejected, reasons
    await call.reply_bytes(reply.SerializeToString(), PROTOBUF)
