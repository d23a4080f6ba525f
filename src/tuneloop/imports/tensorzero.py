"""TensorZero: rows of ChatInference, JsonInference and ModelInference, and of its tables of feedback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tuneloop.data.formats import Refused, as_value, first
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, facts, score, seconds_of, text_of

_INFERENCE = {
    "model": "variant_name function_name",
    "prompt_name": "function_name",
    "prompt_version": "variant_name",
    "conversation": "episode_id",
    "user": "tags.user_id tags.user",
    "total_ms": "processing_time_ms",
    "ttft_ms": "ttft_ms",
}
_MODEL = {
    "model": "model_name",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "ttft_ms": "ttft_ms",
    "usd": "cost",
    "finish": "finish_reason",
}


def parts(record: Record) -> Iterator[TracePart]:
    """The part of a row; Refused: it is of none of these tables."""
    id_ = text_of(first(record, "id", "inference_id")) or ""
    if "input" in record and "function_name" in record:
        yield _inference(record, id_)
    elif "model_name" in record and "inference_id" in record:
        of = str(record["inference_id"])
        yield TracePart("extra", of, f"model {id_}", of, values=facts(record, _MODEL))
    elif "value" in record and ("target_id" in record or "inference_id" in record):
        about = str(first(record, "target_id", "inference_id"))
        name, value = record.get("metric_name"), as_value(record["value"])
        if name is None:
            is_comment = "target_type" in record
            name, value = ("comment", record["value"]) if is_comment else ("correction", _demonstrated(value))
        more = {"time": _time(id_, record), "source": "tensorzero"}
        yield score(about, id_, about, name, value, conversation=about, **more)
    else:
        raise Refused("wrong_type", "neither an inference nor feedback of TensorZero")


def _inference(record: Record, id_: str) -> TracePart:
    body = as_value(record["input"])
    system = body.get("system") if isinstance(body, dict) else None
    turns = body.get("messages") if isinstance(body, dict) else body
    if system:
        turns = [{"role": "system", "content": system}, *(turns if isinstance(turns, list) else [])]
    part = call_of(record, _INFERENCE, id_, id_)
    part.time = _time(id_, record)
    return call(part, turns, record.get("output"), first(record, "tool_params.tools_available", "dynamic_tools"))


def _time(id_: str, record: Record) -> float | None:
    """The time in a UUIDv7, else that of the row."""
    digits = id_.replace("-", "")
    if len(digits) == 32 and digits[12] == "7":
        try:
            return seconds_of(int(digits[:12], 16))
        except ValueError:
            return None
    return seconds_of(record.get("timestamp"))


def _demonstrated(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("raw") or value.get("parsed")
    if isinstance(value, list):
        return "".join(str(block.get("text") or "") for block in value if isinstance(block, dict))
    return value


FORMAT = TraceFormat("tensorzero", "TensorZero", parts)
