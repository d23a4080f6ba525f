"""OpenTelemetry: GenAI spans as OTLP JSON, of today's conventions, of earlier ones, and of the libraries around them.

Prompts and answers are looked for in `gen_ai.input.messages` and `gen_ai.output.messages`, in events of the span and
log records that name it, in the older `gen_ai.prompt` and `gen_ai.completion`, also one attribute a field
(OpenLLMetry), in OpenInference's `llm.input_messages`, and in what Vercel's SDK writes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneloop.core.files import content_hash
from tuneloop.data.formats import Refused, as_value, first, objects
from tuneloop.imports.parts import Record, TraceFormat, TracePart, call, call_of, node_of, score, snake_case, text_of

Attributes = Mapping[str, Any]
_MODEL_CALLS = ("chat", "text_completion", "generate_content", "completion")
_FACTS = {
    "start": "start_time_unix_nano",
    "end": "end_time_unix_nano",
    "user": "user.id enduser.id langfuse.user.id gen_ai.user.id traceloop.association.properties.user_id",
    "conversation": "gen_ai.conversation.id session.id langfuse.session.id gen_ai.session.id "
    "traceloop.association.properties.session_id",
    "prompt_name": "gen_ai.prompt.name langfuse.observation.prompt.name traceloop.prompt.key",
    "prompt_version": "gen_ai.prompt.version langfuse.observation.prompt.version traceloop.prompt.version",
    "model": "gen_ai.request.model gen_ai.response.model llm.model_name ai.model.id",
    "prompt_tokens": "gen_ai.usage.input_tokens gen_ai.usage.prompt_tokens llm.usage.prompt_tokens "
    "llm.token_count.prompt",
    "completion_tokens": "gen_ai.usage.output_tokens gen_ai.usage.completion_tokens llm.usage.completion_tokens "
    "llm.token_count.completion",
    "usd": "gen_ai.usage.cost gen_ai.usage.total_cost llm.cost.total gen_ai.cost.amount",
    "ttft_ms": "gen_ai.response.time_to_first_chunk gen_ai.server.time_to_first_token",
    "finish": "gen_ai.response.finish_reasons llm.finish_reason anthropic.message.stop_reason",
    "response": "gen_ai.response.id",
}
_PROMPTS = ("gen_ai.prompt", "llm.prompts", "llm.input_messages")
_ANSWERS = ("gen_ai.completion", "llm.completions", "llm.output_messages")
_TURN_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message")
_TEXT_EVENTS = ("gen_ai.client.inference.operation.details", "gen_ai.content.prompt", "gen_ai.content.completion")


def parts(record: Record) -> Iterator[TracePart]:
    """The parts of `TracesData` or `LogsData`, or of one span alone; Refused: it is none of them."""
    record = snake_case(record)
    for resource in map(snake_case, objects(record.get("resource_logs"))):
        for scope in map(snake_case, objects(resource.get("scope_logs"))):
            for event in objects(scope.get("log_records")):
                yield from event_parts(snake_case(event))
    if isinstance(record.get("resource_logs"), list):
        return
    if not isinstance(record.get("resource_spans"), list):
        if "trace_id" not in record or "span_id" not in record:
            raise Refused("wrong_type", "neither resourceSpans nor a span of OpenTelemetry")
        yield from span_parts(record)
        return
    for resource in map(snake_case, objects(record["resource_spans"])):
        for scope in objects(resource.get("scope_spans") or resource.get("instrumentation_library_spans")):
            for span in objects(scope.get("spans")):
                yield from span_parts(span)


def span_parts(span: Record) -> Iterator[TracePart]:
    """The parts of a span: a call or a node, and the evaluations among its events."""
    span = snake_case(span)
    attributes = _attributes(span.get("attributes"))
    trace, id_, parent = (_id(span.get(name)) for name in ("trace_id", "span_id", "parent_span_id"))
    events = [
        (text_of(event.get("name")) or "", _attributes(event.get("attributes")))
        for event in map(snake_case, objects(span.get("events")))
    ]
    part = call_of({**span, **attributes}, _FACTS, trace, id_, parent)
    if _is_call(attributes):
        if part.values["ttft_ms"]:  # in seconds
            part.values["ttft_ms"] *= 1000
        if first(span, "status.code") in (2, "STATUS_CODE_ERROR"):
            part.values["error"] = text_of(first(span, "status.message")) or attributes.get("error.type") or "failed"
        whole = as_value(attributes.get("output.value"))  # OpenInference's copy of the reply
        if part.values["response"] is None and isinstance(whole, Mapping):
            part.values["response"] = text_of(whole.get("id"))
        yield _with_texts(part, *_texts(attributes, events))
    else:
        yield node_of(part)
    for number, (name, of) in enumerate(events):
        if name == "gen_ai.evaluation.result":
            value = first(of, "gen_ai.evaluation.score.value", "gen_ai.evaluation.score.label")
            title = of.get("gen_ai.evaluation.name")
            yield score(trace, f"{id_}:{number}", id_, title, value, time=part.time, source="otel")


def event_parts(record: Record) -> Iterator[TracePart]:
    """What a log record adds to the call whose span it names: turns of its prompt, its answer, or both."""
    body, attributes = _any_value(record.get("body")), _attributes(record.get("attributes"))
    name = text_of(record.get("event_name")) or text_of(attributes.get("event.name")) or ""
    if not (name in _TEXT_EVENTS or name == "gen_ai.choice" or _TURN_EVENT.fullmatch(name)):
        return
    said = {**(body if isinstance(body, Mapping) else {}), **attributes}
    trace, span = _id(record.get("trace_id")), _id(record.get("span_id"))
    number = content_hash([name, said, record.get("time_unix_nano")])[:16]
    part = TracePart("extra", trace, f"{span}:{number}", span)
    prompt, answer, tools = _texts({}, [(name, said)])
    _with_texts(part, prompt, answer, tools)
    missing = {"without_prompt": prompt is None, "without_answer": answer is None}
    part.faults = [fault for fault in part.faults if not missing.get(fault[0])]
    yield part


def _with_texts(part: TracePart, prompt: Any, answer: Any, tools: Any) -> TracePart:
    """A call with its texts, of several answers the first one; that there are more is a fault."""
    further = len(answer) - 1 if isinstance(answer, list) else 0
    if further > 0 and all("role" in message or "message" in message for message in objects(answer)):
        answer = answer[0]
        part.faults.append(("further_answers", f"{further} more, the first one stays"))
    return call(part, prompt, answer, tools)


def _is_call(attributes: Attributes) -> bool:
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    kind = attributes.get("openinference.span.kind") or attributes.get("langfuse.observation.type")
    if operation is not None or kind is not None:
        return operation in _MODEL_CALLS or str(kind).casefold() in ("llm", "generation")
    if "ai.operationId" in attributes:
        return str(attributes["ai.operationId"]).endswith((".doGenerate", ".doStream"))
    return "gen_ai.request.model" in attributes or "llm.model_name" in attributes


def _texts(attributes: Attributes, events: Sequence[tuple[str, Attributes]]) -> tuple[Any, Any, Any]:
    """Prompt, answer and tools, from the first place that has them."""
    for name, of in events:
        if name in _TEXT_EVENTS:
            attributes = {**of, **attributes}
    prompt = as_value(attributes.get("gen_ai.input.messages"))
    answer = as_value(attributes.get("gen_ai.output.messages"))
    system = as_value(attributes.get("gen_ai.system_instructions"))
    if system and isinstance(prompt, list):
        prompt = [{"role": "system", "parts": system if isinstance(system, list) else [system]}, *prompt]
    if prompt is None:
        turns = [{"role": match[1], **_event_turn(of)} for name, of in events if (match := _TURN_EVENT.fullmatch(name))]
        prompt = turns or _logged(attributes, _PROMPTS)
    if prompt is None:
        prompt = first(attributes, "ai.prompt.messages", "ai.prompt", "langfuse.observation.input", "input.value")
    if answer is None:
        choice = next((of for name, of in events if name == "gen_ai.choice"), None)
        answer = {"role": "assistant", **_event_turn(choice)} if choice is not None else _logged(attributes, _ANSWERS)
    if answer is None and ("ai.response.text" in attributes or "ai.response.toolCalls" in attributes):
        calls = [
            {
                "id": tool_call.get("toolCallId"),
                "name": tool_call.get("toolName"),
                "arguments": first(tool_call, "args", "input"),
            }
            for tool_call in objects(as_value(attributes.get("ai.response.toolCalls")))
        ]
        answer = {"role": "assistant", "content": attributes.get("ai.response.text") or "", "tool_calls": calls}
    if answer is None:
        answer = first(attributes, "langfuse.observation.output", "output.value")
    schemas = [first(tool, "tool.json_schema") for tool in objects(_nested(attributes, "llm.tools."))]
    return prompt, answer, as_value(attributes.get("gen_ai.tool.definitions")) or list(map(as_value, schemas))


def _logged(attributes: Attributes, names: Sequence[str]) -> Any:
    """The first value under one of these names, or behind one attribute for each of its fields; None: there is none."""
    values = (as_value(attributes[n]) if n in attributes else _nested(attributes, f"{n}.") for n in names)
    return next((value for value in values if value), None)


def _event_turn(attributes: Attributes) -> dict[str, Any]:
    message = as_value(attributes.get("message"))
    body = message if isinstance(message, Mapping) else attributes
    content = body.get("content")
    parts = as_value(content) if message is None else content  # a text may be JSON, too
    turn = {"content": parts if any("type" in part for part in objects(parts)) else content}
    calls = as_value(body.get("tool_calls"))
    turn |= {"tool_calls": calls} if calls else {}
    return turn | ({"tool_call_id": str(body["id"])} if body.get("id") else {})


def _nested(attributes: Attributes, prefix: str) -> Any:
    """The list behind attributes such as `PREFIX0.role` and `PREFIX0.tool_calls.1.name`; None: there are none."""
    tree: dict[str, Any] = {}
    for key, value in attributes.items():
        if key.startswith(prefix) and key[len(prefix) : len(prefix) + 1].isdigit():
            *path, last = key.removeprefix(prefix).split(".")
            at = tree
            for name in path:
                at = at.setdefault(name, {}) if isinstance(at.setdefault(name, {}), dict) else {}
            at[last] = value

    def listed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value and all(key.isdigit() for key in value):
            return [listed(value[key]) for key in sorted(value, key=int)]
        values = {"content" if key == "contents" else key: listed(inner) for key, inner in value.items()}
        return values["message_content"] if values.keys() == {"message_content"} else values

    return listed(tree) or None


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes by name, from OTLP's list, or from an object that has them already so."""
    if isinstance(value, Mapping):
        return dict(value)
    return {str(attribute.get("key")): _any_value(attribute.get("value")) for attribute in objects(value)}


def _any_value(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    for name, content in value.items():
        kind = name.replace("_", "").casefold()
        if kind == "intvalue":
            return int(content) if str(content).lstrip("-").isdigit() else None
        if kind == "arrayvalue":
            return [_any_value(item) for item in (content or {}).get("values") or ()]
        if kind == "kvlistvalue":
            return _attributes((content or {}).get("values"))
        if kind in ("stringvalue", "doublevalue", "boolvalue", "bytesvalue"):
            return content
    return None


def _id(value: Any) -> str:
    """An id in hexadecimal digits, as OTLP JSON has them; those in base64 are of plain protobuf JSON."""
    text = text_of(value) or ""
    if len(text) in (12, 24) and not re.fullmatch(r"[0-9a-fA-F]+", text):
        try:
            return base64.b64decode(text, validate=True).hex()
        except ValueError:
            return text
    return text.casefold()


FORMAT = TraceFormat("otel", "OpenTelemetry", parts)
