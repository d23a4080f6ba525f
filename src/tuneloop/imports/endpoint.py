"""`POST /v1/traces` and `/v1/logs` of a server: OpenTelemetry's exporters send here, by OTLP/HTTP as JSON or protobuf.

A call takes user and conversation from its own attributes, else from spans around it in the same message: what a later
message says of them comes too late. Log records with its texts are kept until its span comes, as exporters send them
first. A key needs the right `traces`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from tuneloop.core.bounded_work import BoundedWork, TooBusy, TooMuchWork
from tuneloop.core.foreign import LIMITS, fast_json
from tuneloop.imports.otlp import PROTOBUF, read_job
from tuneloop.records.request import StoredRequest, as_request
from tuneloop.serving import Caller, Gateway
from tuneloop.serving.http import ApiError, Call, routed, unavailable
from tuneloop.serving.store import opened, users_key

if TYPE_CHECKING:
    from starlette.routing import Route

PATH, LOGS = "/v1/traces", "/v1/logs"
MOST_EVENTS = 64 << 20  # bytes of log records whose spans have not come; the oldest ones go
SECONDS = LIMITS["traces"].seconds
MOST_HELD = 8  # times the largest body: bytes of all messages at once, half of them of one key
SLICE = 200  # requests that are given to the store before others have their turn
# One message at a time is read, and in all at most half of a processor's time is spent for a key.
_READING = BoundedWork(1, waiting=8, share=0.5, modules=("tuneloop.imports.otlp",))


def trace_routes(gateway: Gateway) -> list[Route]:
    """The routes, for `make_app`."""
    with opened(gateway.config.store) as store:
        intake = TraceIntake(gateway, users_key(store))
    return routed(gateway, ("POST", PATH, intake.receive), ("POST", LOGS, partial(intake.receive, logs=True)))


@dataclass
class TraceIntake:
    """The endpoint of a server.

    Args:
        key: of its users' pseudonyms. `held`: bytes that are read or worked on now.
        events: by the name of a key and the end of a request's id what log records say of it, as JSON.
    """

    gateway: Gateway
    key: bytes
    held: Counter[str] = field(default_factory=Counter)
    events: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    event_bytes: int = 0

    async def receive(self, call: Call, logs: bool = False) -> None:
        """Store the calls of a message, or keep what its log records say of calls."""
        caller = self.gateway.caller(call.header)
        if "traces" not in caller.rights:
            message = "Traces need a key with the right: tuneloop keys add NAME --rights traces"
            raise ApiError(403, message, code="traces_not_allowed")
        kind = call.header("content-type").partition(";")[0].strip().lower()
        if kind not in ("application/json", PROTOBUF):
            raise ApiError(415, f"Spans come as application/json or {PROTOBUF}", code="unsupported_media_type")
        most = int(self.gateway.config.limits.body_mb * 1e6)
        with self._room(call, caller, most):
            body = await call.body(most, packed=True)
            packed = call.header("content-encoding").strip().lower() == "gzip"
            settings = {"kind": kind, "packed": packed, "most": most, "key": self.key.hex(), "logs": logs}
            read = await _read(json.dumps(settings).encode() + b"\n" + body)
            del body
            for end, values in read.get("events", ()):
                self._keep((caller.name, end), orjson.dumps(values))
            requests = [as_request(self._whole(value, caller.name), PATH) for value in read.get("requests", ())]
            for start in range(0, len(requests), SLICE):
                await self._store([_of_caller(request, caller) for request in requests[start : start + SLICE]])
        rejected = read["rejected"]
        reasons = ", ".join(f"{reason}: {n}" for reason, n in rejected.items())
        await _reply(call, kind, "log_records" if logs else "spans", sum(rejected.values()), reasons)

    def _keep(self, trace_key: tuple[str, str], event: bytes) -> None:
        self.events.setdefault(trace_key, []).append(event)
        self.event_bytes += len(event)
        while self.event_bytes > MOST_EVENTS:
            self.event_bytes -= sum(map(len, self.events.pop(next(iter(self.events)))))

    def _whole(self, request: dict[str, Any], caller: str) -> dict[str, Any]:
        """A request with the texts that log records have of it, where its span has none."""
        events = self.events.pop((caller, request["id"][14:]), [])
        self.event_bytes -= sum(map(len, events))
        added: dict[str, Any] = {}
        for values in map(fast_json, events):
            turns = [*added.get("prompt", ()), *values.get("prompt", ())]
            added |= {**{name: value for name, value in values.items() if value}, "prompt": turns}
        texts = {name: added[name] for name in ("prompt", "completion", "tools", "finish") if added.get(name)}
        return request | {name: value for name, value in texts.items() if not request.get(name)}

    @contextmanager
    def _room(self, call: Call, caller: Caller, most: int) -> Iterator[None]:
        """Count a body as held, by what its head says; ApiError: too much is."""
        length = call.header("content-length")
        size = int(length) if length.isdigit() and int(length) <= most else most
        own = self.held[caller.name]
        if own and (own + size > most * MOST_HELD / 2 or self.held.total() + size > most * MOST_HELD):
            raise _busy("Too many spans are on their way", 1.0)
        self.held[caller.name] += size
        try:
            yield
        finally:
            self.held[caller.name] -= size
            self.held += Counter()  # leaves out what is 0

    async def _store(self, records: list[StoredRequest]) -> None:
        if self.gateway.store.full:
            raise unavailable("The store takes nothing at present", "store")
        try:
            await asyncio.gather(*(asyncio.wrap_future(self.gateway.store.add_durably(record)) for record in records))
        except OSError:  # the log has it; the exporter sends the same again, which changes nothing
            raise unavailable("The store takes nothing at present", "store") from None


async def _read(payload: bytes) -> dict[str, Any]:
    """The calls of a message, or what its log records add to calls, and how many of its parts can't be stored, by
    reason; ApiError: it is not read."""
    try:
        reply: dict[str, Any] = fast_json(await _READING.result(read_job, payload, seconds=SECONDS))
    except TooBusy as error:
        raise _busy(f"Spans are not read now: {error}", error.retry_after) from None
    except TooMuchWork:
        problem = "The message takes too much time or memory: send smaller ones"
        raise ApiError(413, problem, code="too_many_spans") from None
    if "error" in reply:
        status, message, code = reply["error"]
        raise ApiError(status, message, code=code)
    return reply


def _busy(message: str, wait: float) -> ApiError:
    return ApiError(429, message, code="busy", headers={"Retry-After": str(math.ceil(wait))})


def _of_caller(request: StoredRequest, caller: Caller) -> StoredRequest:
    """A request with what its key says of it: whether its users are believed, and whether it may be learned from."""
    voice = replace(caller, user=request.user or "", conversation=request.conversation or "").voice
    train = "no" if caller.key is not None and caller.key.limits.train == "no" else None
    return replace(request, key=caller.name, voice=voice, train=train)


async def _reply(call: Call, kind: str, name: str, rejected: int, reasons: str) -> None:
    """Export...ServiceResponse in the encoding of the request; empty: all is stored."""
    if kind != PROTOBUF:
        field = "rejectedSpans" if name == "spans" else "rejectedLogRecords"
        await call.reply({"partialSuccess": {field: rejected, "errorMessage": reasons}} if rejected else {})
        return
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    reply: Any = ExportTraceServiceResponse() if name == "spans" else ExportLogsServiceResponse()
    if rejected:
        setattr(reply.partial_success, f"rejected_{name}", rejected)
        reply.partial_success.error_message = reasons
    await call.reply_bytes(reply.SerializeToString(), PROTOBUF)
