"""Langfuse: exports of its pages and of blob storage, and its public API (v2 and v3 of each list, else the first).

Exports hold traces with their observations, or a trace, observation or score in each record; keys may be camelCase or
snake_case. The API's keys are LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.formats import Refused, first, objects
from tuneloop.imports.pages import NoSuchList, Pages
from tuneloop.imports.parts import (
    Record,
    TraceFormat,
    TracePart,
    call,
    call_of,
    facts,
    node_of,
    score,
    snake_case,
    text_of,
)

_AROUND = {"user": "user_id metadata.user_id", "conversation": "session_id metadata.session_id", "release": "release"}
_CALL = _AROUND | {
    "prompt_name": "prompt_name",
    "prompt_version": "prompt_version",
    "start": "start_time",
    "first_token": "completion_start_time",
    "end": "end_time",
    "model": "model provided_model_name",
    "prompt_tokens": "usage_details.input usage_details.prompt_tokens usage.input usage.prompt_tokens input_usage",
    "completion_tokens": "usage_details.output usage_details.completion_tokens usage.output usage.completion_tokens "
    "output_usage",
    "usd": "cost_details.total total_cost calculated_total_cost",
}
_FIELDS = "core,basic,time,io,model,usage,prompt,trace_context"


def parts(record: Record) -> Iterator[TracePart]:
    """The parts of a trace with its observations, or of one trace, observation, score or page of them."""
    record = snake_case(record)
    if isinstance(record.get("data"), list):
        for observation in record["data"]:
            yield from parts(observation)
        return
    if isinstance(record.get("trace"), dict) and isinstance(record.get("observations"), list):
        record = {**snake_case(record["trace"]), **{name: record.get(name) for name in ("observations", "scores")}}
    if "data_type" in record or ("value" in record and "name" in record and "start_time" not in record):
        yield from _score(record)
    elif "start_time" in record:
        yield _observation(record, text_of(first(record, "trace_id", "id")) or "")
    elif "timestamp" in record and "id" in record:
        trace = str(record["id"])
        yield TracePart("node", trace, trace, values=facts(record, _AROUND))
        for observation in objects(record.get("observations")):
            yield _observation(snake_case(observation), trace)
        for observation in objects(record.get("scores")):
            yield from _score({"trace_id": trace, **snake_case(observation)})
    else:
        raise Refused("wrong_type", "neither a trace, nor an observation, nor a score of Langfuse")


def _observation(record: Record, trace: str) -> TracePart:
    id_, parent = text_of(record.get("id")) or "", text_of(record.get("parent_observation_id")) or trace
    part = call_of(record, _CALL, trace, id_, parent)
    if record.get("type") != "GENERATION":
        return node_of(part)
    if record.get("level") == "ERROR":
        part.values["error"] = text_of(record.get("status_message")) or "failed"
    return call(part, record.get("input"), record.get("output"), first(record, "input.tools"))


def _score(record: Record) -> Iterator[TracePart]:
    trace = text_of(first(record, "trace_id", "subject.trace_id", "subject.traceId")) or ""
    about, session = text_of(record.get("observation_id")) or "", text_of(record.get("session_id"))
    if subject := first(record, "subject.kind"):
        name = text_of(first(record, "subject.id")) or ""
        about = name if subject == "observation" else ""
        session = name if subject == "session" else None
        trace = trace or (name if subject == "trace" else "")
    value: Any = record.get("value")
    kind = str(record.get("data_type") or "")
    if kind == "BOOLEAN":
        value = bool(value)
    elif value is None or kind in ("CATEGORICAL", "TEXT", "CORRECTION"):
        value = first(record, "string_value") or value
    id_ = text_of(record.get("id")) or ""
    more = {
        "conversation": None if trace else session,
        "time": record.get("timestamp"),
        "user": text_of(record.get("author_user_id")),
        "source": f"langfuse.{str(record.get('source') or 'api').lower()}"[:40],
    }
    yield score(trace, id_, about, "correction" if kind == "CORRECTION" else record.get("name"), value, **more)
    if comment := text_of(record.get("comment")):
        yield score(trace, f"{id_}:comment", about, "comment", comment, **more)


def live(address: str, cursor: str) -> Iterator[tuple[str, Sequence[Record]]]:
    """The records of a project by the public API; a cursor is `LIST PAGE`, of the list and of the page in it."""
    public, secret = (os.environ.get(f"LANGFUSE_{name}_KEY", "") for name in ("PUBLIC", "SECRET"))
    if not public or not secret:
        step = "set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY to a project's keys"
        raise UserError("The keys of Langfuse are not set", where=address, next_step=step)
    pages = Pages(address.rstrip("/") + "/api/public", (public, secret))
    lists: tuple[tuple[Any, ...], ...] = (
        ("observations", ("/v2/observations", {"fields": _FIELDS, "limit": 500}), ("/observations", {"limit": 100})),
        ("traces", ("/traces", {"limit": 100, "fields": "core"})),
        ("scores", ("/v3/scores", {"fields": "details,subject,annotation", "limit": 100}),
         ("/v2/scores", {"limit": 100}), ("/scores", {"limit": 100})),
    )  # fmt: skip
    at, _, path_part = cursor.partition(" ")
    names = [name for name, *_ in lists]
    for name, *ways in lists[names.index(at) if at in names else 0 :]:
        path, page = [*path_part.split(" ", 1), ""][:2] if name == at and path_part else ("", "")
        for way, parameters in ways:
            if path and path != way:
                continue
            try:
                for next_page, rows in pages.rows(way, parameters, page):
                    yield f"{name} {way} {next_page}".rstrip(), rows
                break
            except NoSuchList:
                if name == "observations" and way == ways[-1][0]:
                    step = "name the server's own address, as in https://cloud.langfuse.com"
                    raise UserError("There is no Langfuse here", where=address, next_step=step) from None


FORMAT = TraceFormat("langfuse", "Langfuse", parts, live)
