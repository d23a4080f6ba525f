"""LiteLLM: rows of LiteLLM_SpendLogs, and what its callbacks write (StandardLoggingPayload)."""

from __future__ import annotations

from collections.abc import Iterator

from tuneloop.data.formats import Refused, as_value, first
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, text_of

_FACTS = {
    "start": "startTime",
    "first_token": "completionStartTime",
    "end": "endTime",
    "model": "model_group model",
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "usd": "spend response_cost",
    "user": "end_user user metadata.user_api_key_end_user_id",
    "conversation": "session_id trace_id",
}
_CALLS = ("completion", "responses", "anthropic_messages", "generate_content")
_ERRORS = ("error_str", "metadata.error_information.error_message", "error_information.error_message")


def parts(record: Record) -> Iterator[TracePart]:
    """The call of a row; Refused: it is none of a chat or a completion."""
    if not ("call_type" in record and ("request_id" in record or "id" in record)):
        raise Refused("wrong_type", "no row of LiteLLM's spend logs")
    kind = str(record["call_type"])
    if kind and not any(word in kind for word in _CALLS):
        raise Refused("no_call", f"a call of the type {kind}")
    id_ = str(first(record, "request_id", "id"))
    part = call_of(record, _FACTS, id_, id_)
    if part.values["ttft_ms"] == part.values["total_ms"]:
        part.values["ttft_ms"] = None  # it was not streamed
    if str(first(record, "status", "metadata.status")) == "failure":
        part.values["error"] = text_of(first(record, *_ERRORS)) or "failed"
    request = as_value(record.get("proxy_server_request")) or {}
    tools = request.get("tools") if isinstance(request, dict) else None
    answer = record["response"] if as_value(record.get("response")) else None  # "{}": it was not kept
    yield call(part, as_value(record.get("messages")) or request, answer, tools)


FORMAT = TraceFormat("litellm", "LiteLLM", parts)
