"""JSON Lines of one's own: `tuneloop collect requests`, and rows with columns of the usual names."""

from __future__ import annotations

from collections.abc import Iterator

from tuneloop.data.formats import Refused, first
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, score, text_of

_FACTS = {
    "start": "time timestamp created_at created start_time date",
    "model": "model request.model response.model model_name",
    "user": "user user_id",
    "conversation": "conversation conversation_id session session_id",
    "release": "release prompt_version version",
    "prompt_tokens": "prompt_tokens input_tokens usage.prompt_tokens response.usage.prompt_tokens",
    "completion_tokens": "completion_tokens output_tokens usage.completion_tokens response.usage.completion_tokens",
    "usd": "usd cost cost_usd total_cost",
    "total_ms": "total_ms latency_ms duration_ms",
    "ttft_ms": "ttft_ms time_to_first_token_ms",
    "finish": "finish finish_reason",
}
_IDS = ("id", "request_id", "trace_id", "completion_id", "response.id")
_PROMPTS = ("request", "prompt", "messages", "input", "question")
_ANSWERS = ("response", "completion", "answer", "output")
_FEEDBACK = ("thumbs", "rating", "label", "correction", "comment")


def parts(record: Record) -> Iterator[TracePart]:
    """The call of a row, and its feedback; Refused: neither a prompt nor an answer has one of the usual names."""
    prompt, answer = first(record, *_PROMPTS), first(record, *_ANSWERS)
    if prompt is None and answer is None:
        raise Refused("wrong_type", f"no column {', '.join((*_PROMPTS, *_ANSWERS))}")
    id_ = text_of(first(record, *_IDS)) or ""
    part = call_of(record, _FACTS, id_, id_)
    if error := record.get("error"):
        part.values["error"] = str(error)
    yield call(part, prompt, answer, record.get("tools"))
    for name in _FEEDBACK:
        if record.get(name) not in (None, ""):
            about = {"time": part.time, "user": part.values["user"], "source": "file"}
            yield score(id_, f"{id_}:{name}", id_, name, record[name], **about)


FORMAT = TraceFormat("jsonl", "JSON Lines", parts)
