"""What every format becomes: calls of a model, what is said of them, and the spans and traces that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from tuneloop.data.formats import Refused, as_value, first
from tuneloop.imports.messages import read_answer, read_prompt

Record = Mapping[str, Any]
Fault = tuple[str, str]  # a word of `REASONS`, and the details

# Why a record, or a part of it, is not in the store; the last ones are said of requests that are.
REASONS = {
    "broken_json": "not JSON", "not_an_object": "not an object", "line_too_long": "a line of more than 16 MiB",
    "wrong_type": "not of this format", "no_id": "no id", "no_time": "no time", "future_time": "a time in the future",
    "duplicate_id": "other content under an id that came before", "no_call": "a trace without a call of a model",
    "wraps_call": "a span around the call itself, which is imported",
    "same_call": "another span of a call that is imported", "no_target": "feedback on nothing imported",
    "bad_feedback": "a score that is no feedback", "refused": "the database can't hold it",
    "without_prompt": "no prompt that can be read", "without_answer": "no answer that can be read",
    "further_answers": "further answers to the same request",
}  # fmt: skip
INHERITED = ("user", "conversation", "release")  # values of a call that the spans around it may have in its place
STORED_ALL_THE_SAME = ("without_prompt", "without_answer", "further_answers")
_EARLIEST = 946_684_800.0  # 2000-01-01: what is earlier is no time at all
_FINISHES = {
    "max_tokens": "length", "end_turn": "stop", "stop_sequence": "stop", "eos": "stop", "tool_use": "tool_calls",
    "tool_call": "tool_calls", "function_call": "tool_calls", "completed": "stop", "complete": "stop",
}  # fmt: skip


@dataclass(slots=True)
class TracePart:
    """A part of a trace.

    Args:
        kind: `call` of a model; `node`, a span or trace around calls; `extra`, further values of its parent; `score`.
        trace, id: of the tool that it comes from; an id is unique within its trace.
        parent: id of the part around it; of a score, what it is about, or empty for the trace.
        time: seconds since 1970; None: it has none.
        values: of a call by the names of `StoredRequest`; of a node those that its calls inherit; of a score those of
            `feedback_of`.
        faults: what of it can't be read.
    """

    kind: Literal["call", "node", "extra", "score"]
    trace: str
    id: str
    parent: str = ""
    time: float | None = None
    values: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class TraceFormat:
    """A tool's export.

    Args:
        parts: the parts of one record; Refused: it is none of this format.
        live: records of the tool's own service by its address, from a place on, in pages, each with the place after it.
        is_address: whether a source names that service.
    """

    name: str
    title: str
    parts: Callable[[Record], Iterator[TracePart]]
    live: Callable[[str, str], Iterator[tuple[str, Sequence[Record]]]] | None = None
    is_address: Callable[[str], bool] = field(default=lambda source: source.startswith(("http://", "https://")))


def call(part: TracePart, prompt: Any, answer: Any, tools: Any = None) -> TracePart:
    """A call with its prompt and answer as they are written somewhere; what can't be read is a fault of the part."""
    try:
        part.values["prompt"], part.values["tools"] = read_prompt(prompt, tools)
    except Refused as fault:
        part.values["prompt"] = []
        part.faults.append(("without_prompt", fault.detail))
    try:
        part.values["completion"], finish = read_answer(answer)
        if finish and not part.values.get("finish"):
            part.values["finish"] = finish_of(finish)
    except Refused as fault:
        if fault.reason == "error_output" and not part.values.get("error"):
            part.values["error"] = fault.detail
        if not part.values.get("error"):
            part.faults.append(("without_answer", fault.detail))
    return part


def text_of(value: Any) -> str | None:
    """A name or id as a text; None where there is none."""
    if value is None or value == "" or isinstance(value, dict | list | bool):
        return None
    return str(value)


def number_of(value: Any) -> float | None:
    """A number that is not negative; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def count_of(value: Any) -> int | None:
    """A number of tokens; None where there is none."""
    number = number_of(value)
    return int(number) if number is not None and number < 1 << 53 else None


def seconds_of(value: Any) -> float | None:
    """A time as seconds since 1970: ISO 8601, with or without a zone (then UTC), or seconds, milli-, micro- or
    nanoseconds since then, by their size. None: it is none."""
    if isinstance(value, str) and not re.fullmatch(r"\d{9,20}(\.\d+)?", value.strip()):
        try:
            time = datetime.fromisoformat(value.strip())
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    number = number_of(value)
    while number is not None and number > 1e11:
        number /= 1000
    return number if number is not None and number >= _EARLIEST else None


def milliseconds(start: float | None, end: float | None) -> float | None:
    """Milliseconds between two times; None where one is missing, or the second is earlier."""
    return None if start is None or end is None or end < start else round((end - start) * 1000, 3)


def finish_of(value: Any) -> str | None:
    """Why an answer ended, in OpenAI's words."""
    value = as_value(value)
    word = text_of(value[0] if isinstance(value, list) and value else value)
    word = word.rpartition(".")[2].casefold() if word else None
    return _FINISHES.get(word, word) if word else None


READERS: dict[str, Callable[[Any], Any]] = {
    "start": seconds_of, "first_token": seconds_of, "end": seconds_of, "prompt_tokens": count_of,
    "completion_tokens": count_of, "usd": number_of, "ttft_ms": number_of, "total_ms": number_of, "finish": finish_of,
}  # fmt: skip


def facts(record: Record, places: Mapping[str, str]) -> dict[str, Any]:
    """What a record says of a call: each from the first of its places, paths as in `first`, that can be read."""
    values = {}
    for name, names in places.items():
        read: Callable[[Any], Any] = READERS.get(name, text_of)
        readable = (read(first(record, field)) for field in names.split())
        values[name] = next((value for value in readable if value is not None), None)
    return values


def call_of(record: Record, places: Mapping[str, str], trace: str, id_: str, parent: str = "") -> TracePart:
    """A call with its facts. `start`, `first_token` and `end` become its time and what it took, `prompt_name` and
    `prompt_version` its release."""
    values = facts(record, places)
    start, first_token, end = (values.pop(name, None) for name in ("start", "first_token", "end"))
    values["ttft_ms"] = values.get("ttft_ms") or milliseconds(start, first_token)
    values["total_ms"] = values.get("total_ms") or milliseconds(start, end)
    prompt = version_of(values.pop("prompt_name", None), values.pop("prompt_version", None))
    values["release"] = prompt or values.get("release")
    return TracePart("call", trace, id_, parent, start, values)


def node_of(part: TracePart) -> TracePart:
    """A part that is no call, with what the calls within it inherit."""
    values = {name: part.values.get(name) for name in INHERITED}
    return TracePart("node", part.trace, part.id, part.parent, part.time, values)


def version_of(name: Any, version: Any) -> str | None:
    """A prompt's name with its version, as in `support/4`; None without a name."""
    prompt, number = text_of(name), text_of(version)
    return f"{prompt}/{number}" if prompt and number else prompt


def snake_case(record: Record) -> dict[str, Any]:
    """A record with keys such as `traceId` as `trace_id`."""
    return {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower(): value for key, value in record.items()}


def score(trace: str, id_: str, about: str, name: Any, value: Any, **more: Any) -> TracePart:
    """A score as feedback: thumbs, ratings, corrections and comments by their usual names, others by their own."""
    kind = re.sub(r"[^a-z0-9_.-]+", "_", str(name or "score").casefold()).strip("_.-")[-40:].lstrip("0123456789_.-")
    if re.fullmatch(r"(user[_-]?)?(feedback|thumbs?|thumbs[_-]?up|like[ds]?)", kind) and value in (True, False, -1):
        kind, value = "thumbs", value if value == -1 else bool(value)
    elif re.fullmatch(r"(user[_-]?)?(rating|stars?)", kind):
        kind = "rating"
    elif kind in ("expected_output", "expected_response", "demonstration", "expectation"):
        kind = "correction"
    if isinstance(value, dict | list):
        value = str(as_value(value))
    time = seconds_of(more.pop("time", None))
    values = {
        "kind": kind or "score",
        "value": value,
        **{key: extra for key, extra in more.items() if extra is not None},
    }
    return TracePart("score", trace, id_ and f"{id_}:{kind}", about, time, values)  # TensorZero's scores share ids
