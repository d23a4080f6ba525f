"""Helicone: rows of its export (`npx @helicone/export --include-body`) and of its API of requests.

As CSV the export leaves out the request's id and the answer, and doubles the quotes of its JSON twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.data.formats import Refused, as_value, first
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, count_of, score, text_of

_FACTS = {
    "start": "request_created_at",
    "end": "response_created_at",
    "model": "model request_model response_model model_override",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "usd": "cost costUSD cost_usd",
    "ttft_ms": "time_to_first_token",
    "total_ms": "delay_ms latency",
    "prompt_name": "prompt_id properties.Helicone-Prompt-Id",
    "prompt_version": "prompt_version",
    "user": "request_user_id helicone_user user_id",
}
_SESSIONS = ("Helicone-Session-Id", "helicone-session-id", "session_id", "SessionId")


def parts(record: Record) -> Iterator[TracePart]:
    """A call with its rating and scores; Refused: it is no request of Helicone's."""
    id_ = text_of(first(record, "request_id", "response_id"))
    if id_ is None or not ("request_created_at" in record or "request_body" in record):
        raise Refused("wrong_type", "no request of Helicone's")
    record = {name: _unescaped(value) for name, value in record.items()}
    part = call_of(record, _FACTS, id_, id_)
    properties = as_value(first(record, "request_properties", "properties"))
    part.values["conversation"] = text_of(first(properties, *_SESSIONS)) if isinstance(properties, dict) else None
    status = count_of(record.get("response_status")) or 0
    if status >= 400:
        part.values["error"] = f"status {status}"
    yield call(part, record.get("request_body"), record.get("response_body"))
    rating = first(record, "feedback_rating", "helicone_rating")
    if rating is not None:
        yield _score(part, "rating", "thumbs", rating in (True, 1, "true"))
    scores = as_value(record.get("scores"))
    for name, value in scores.items() if isinstance(scores, dict) else ():
        number = value.get("value") if isinstance(value, dict) else value
        plain = name.removesuffix("-hcone-bool")
        yield _score(part, name, plain, number if plain == name else bool(number))


def _unescaped(value: Any) -> Any:
    return as_value(value.replace('""', '"')) if isinstance(value, str) and value.startswith('{""') else value


def _score(part: TracePart, own: str, name: str, value: object) -> TracePart:
    return score(part.trace, f"{part.id}:{own}", part.id, name, value, time=part.time, source="helicone")


FORMAT = TraceFormat("helicone", "Helicone", parts)
