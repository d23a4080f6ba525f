"""OpenAI: stored completions and responses, lines of batches, and lists of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.data.formats import Refused, as_value, first
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, score, text_of

_FACTS = {
    "start": "created created_at",
    "model": "model sent.model",
    "prompt_tokens": "usage.prompt_tokens usage.input_tokens",
    "completion_tokens": "usage.completion_tokens usage.output_tokens",
    "user": "user safety_identifier metadata.user metadata.user_id",
    "conversation": "metadata.conversation metadata.session metadata.session_id metadata.conversation_id "
    "conversation.id",
}


def parts(record: Record) -> Iterator[TracePart]:
    """The calls of a completion, a response, a line of a batch's output, or a list; Refused: it is none of these."""
    if isinstance(record.get("data"), list) and record.get("object") == "list":
        for item in record["data"]:
            yield from parts(item)
        return
    request = as_value(first(record, "request", "body"))
    response = as_value(record.get("response"))
    if isinstance(response, dict) and isinstance(response.get("body"), dict):  # a line of a batch's output
        response = response["body"]
    body = response if isinstance(response, dict) else record
    if not ("choices" in body or "output" in body):
        raise Refused("wrong_type", "neither a completion nor a response of OpenAI's API")
    id_ = text_of(first(body, "id")) or text_of(record.get("id")) or ""
    prompt: Any = request or first(record, "messages", "input") or first(body, "messages", "input", "prompt")
    system = first(body, "instructions")
    if system and isinstance(prompt, list):
        prompt = [{"role": "system", "content": system}, *prompt]
    part = call_of({**body, "sent": request}, _FACTS, id_, id_)
    yield call(part, prompt, body, body.get("tools"))
    given = body.get("metadata")
    metadata = given if isinstance(given, dict) else {}
    rating = first(metadata, "thumbs", "rating", "feedback")
    if rating is not None:
        name = "rating" if "rating" in metadata and "thumbs" not in metadata else "thumbs"
        yield score(id_, f"{id_}:{name}", id_, name, rating, time=part.time, source="openai")


FORMAT = TraceFormat("openai", "OpenAI", parts)
