"""Logs of other tools in small, and what becomes of them in a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.ids import utc
from tuneloop.data.config import PersonalConfig
from tuneloop.data.pii.redact import Redactor
from tuneloop.imports.formats import FORMATS
from tuneloop.imports.importing import ImportSummary, TraceSource, import_traces
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store.store import opened, read_feedback, read_requests

NOON = 1_790_000_000.0  # 2026-09-21


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A row of a log of one's own."""
    return {
        "id": f"r{number}", "time": utc(NOON + number), "model": "gpt", "user": f"user{number % 3}", "session": "s1",
        "messages": [{"role": "user", "content": f"question {number}"}], "answer": f"answer {number}",
        "input_tokens": 7, "output_tokens": 3, "cost": 0.001, "latency_ms": 900, **changes,
    }  # fmt: skip


def brought(folder: Path, format: str, records: Sequence[Any], name: str = "x.jsonl", **options: Any) -> ImportSummary:
    """The summary of an import of lines into the store of a folder."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (record if isinstance(record, bytes) else json.dumps(record).encode() for record in records)
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    source = TraceSource(FORMATS[format], [str(file)], Redactor(PersonalConfig()), **options)
    return import_traces(source, folder / "serve")


def stored(folder: Path) -> tuple[list[StoredRequest], list[Feedback]]:
    """What is in the store of a folder."""
    with opened(folder / "serve") as store:
        return list(read_requests(store)), list(read_feedback(store))


def faults(summary: ImportSummary) -> list[dict[str, Any]]:
    """The lines of the file of rejects."""
    return [json.loads(line) for line in Path(summary.rejects).read_text().splitlines()]


START = 1_790_000_000_000_000_000


def attribute(key: str, value: Any) -> dict[str, Any]:
    """An attribute as OTLP JSON has it."""
    kind = {bool: "boolValue", int: "intValue", float: "doubleValue", str: "stringValue"}.get(type(value))
    if kind:
        return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}
    return {"key": key, "value": {"arrayValue": {"values": [attribute("", item)["value"] for item in value]}}}


def span(id_: str, attributes: dict[str, Any], parent: str = "", events: Any = (), **changes: Any) -> dict[str, Any]:
    """A span of a second."""
    return {
        "traceId": "a" * 32, "spanId": id_ * 16, "parentSpanId": parent * 16, "name": "chat gpt",
        "startTimeUnixNano": str(START), "endTimeUnixNano": str(START + 1_000_000_000),
        "attributes": [attribute(*item) for item in attributes.items()],
        "events": [{"name": name, "attributes": [attribute(*item) for item in of.items()]} for name, of in events],
        **changes,
    }  # fmt: skip


def message(*spans: dict[str, Any]) -> dict[str, Any]:
    """An export of spans."""
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


CALL = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt", "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3, "gen_ai.response.finish_reasons": ["stop"]}  # fmt: skip
QUESTION = [{"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}]}]
ANSWER = [{"role": "assistant", "finish_reason": "stop", "parts": [{"type": "text", "content": "Rainy."}]}]
TODAY = {**CALL, "gen_ai.input.messages": json.dumps(QUESTION), "gen_ai.output.messages": json.dumps(ANSWER)}
