"""Logged requests and responses of chat APIs to turns.

Requests and responses are those of OpenAI's chat completions in the first place: plain, as a batch file wraps
them, or streamed. Its responses API, its old completions, and what Anthropic and Ollama answer, are read as
far as they are text and tool calls. Nothing here looks at roles or arguments: `tuneloop.data.formats.turns` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneloop.data.formats.turns import Refused, as_text, from_json, short
from tuneloop.data.sources.parse import json_type

REQUEST_NAMES = ("request", "request_body", "requestbody", "req", "body", "input", "inputs", "payload", "messages")
RESPONSE_NAMES = (
    "response", "response_body", "responsebody", "resp", "output", "outputs", "choices", "completion", "result",
    "chunks", "events", "stream", "error",
)  # fmt: skip
_WRAPPERS = ("body", "json", "data", "kwargs")
_ASKING = ("messages", "input", "prompt")
_ANSWERING = (
    "choices",
    "output",
    "message",
    "content",
    "completion",
    "text",
    "generated_text",
    "response",
    "chunks",
    "events",
)
_CUT = ("length", "max_tokens", "max_output_tokens", "incomplete", "content_filter")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response: OpenAI turns as they stand, and what else the request says."""

    turns: list[Any]
    tools: list[Any] = field(default_factory=list)
    model: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    turn: dict[str, Any]
    finish: str = ""


# --- what it looks like --------------------------------------------------------------------------


def looks_like_request(value: Any) -> bool:
    """Whether a value is the body of a request, or wraps one, or is a list of turns."""
    value = _opened(value)
    if isinstance(value, dict):
        return (
            _is_turns(value.get("messages"))
            or any(looks_like_request(value[name]) for name in _WRAPPERS if name in value)
            or ("model" in value and any(name in value for name in _ASKING))
        )
    return _is_turns(value)


def looks_like_response(value: Any) -> bool:
    """Whether a value is what a chat API answers: a body, chunks of a stream, or choices."""
    if isinstance(value, str) and _is_stream(value):
        return True
    value = _opened(value)
    if isinstance(value, dict):
        if any(looks_like_response(value[name]) for name in _WRAPPERS if name in value):
            return True
        message = value.get("message")
        return (
            isinstance(value.get("choices"), list)
            or isinstance(value.get("output"), list)
            or (isinstance(message, dict) and "content" in message)
            or (value.get("role") == "assistant" and "content" in value)
            or (isinstance(value.get("error"), dict) and len(value) <= 3)
        )
    return isinstance(value, list) and any(
        isinstance(item, dict) and ("choices" in item or "delta" in item or ("message" in item and "index" in item))
        for item in value
    )


def _opened(value: Any) -> Any:
    """A value, or what a string with JSON in it stands for."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and "role" in turn for turn in value)


def _is_stream(text: str) -> bool:
    return text.lstrip()[:6].startswith(("data:", "event:"))


# --- a record ------------------------------------------------------------------------------------


def read_exchange(record: Mapping[str, Any], request: str, response: str) -> Exchange:
    """The turns of a logged exchange, the answer as the last one.

    Args:
        record: the log's record; its own `error` and status count too.
        request: column with the request.
        response: column with the response.

    Raises:
        Refused: an error instead of a response (`error_output`), a response that was cut off
            (`truncated_output`), no response, or something else than a request and a response.
    """
    _refuse_failure(record, "the record")
    asked = _opened(record.get(request))
    while isinstance(asked, dict) and not any(name in asked for name in _ASKING):
        wrapped = next((name for name in _WRAPPERS if name in asked), None)
        if wrapped is None:
            break
        asked = _opened(asked[wrapped])
    if asked is None:
        raise Refused("missing_field", f"no request in column {request!r}")
    turns, tools, model = _request(asked)
    if not turns:
        raise Refused("empty_input", "the request has no messages")
    if record.get(response) is None:
        raise Refused("empty_output", f"no response in column {response!r}")
    answer = _response(record[response])
    if answer.finish in _CUT:
        raise Refused("truncated_output", f"the response was cut off: {answer.finish}")
    return Exchange([*turns, answer.turn], tools, model)


def _refuse_failure(value: Mapping[str, Any], what: str) -> None:
    for name in ("status_code", "statusCode", "status", "http_status"):
        status = value.get(name)
        if isinstance(status, str) and status.isdecimal() and len(status) == 3:
            status = int(status)
        if (isinstance(status, int) and 400 <= status < 600) or status in ("failed", "error"):
            raise Refused("error_output", f"{name} of {what} is {status}")
    error = value.get("error")
    if error:
        said = error.get("message") if isinstance(error, dict) else error
        raise Refused("error_output", f"{what} is an error: {short(str(said))}")


def _request(asked: Any) -> tuple[list[Any], list[Any], str]:
    if isinstance(asked, str):
        return [{"role": "user", "content": asked}], [], ""
    if isinstance(asked, list):
        return _items(asked), [], ""
    if not isinstance(asked, dict):
        raise Refused("wrong_type", f"the request is {json_type(asked)}")
    inner = next((asked[name] for name in _ASKING if asked.get(name) is not None), None)
    if inner is None:
        raise Refused("missing_field", "the request has no messages (expected: messages, input or prompt)")
    turns = _items(inner) if isinstance(inner, list) else [{"role": "user", "content": as_text(inner, "the prompt")}]
    system = asked.get("instructions") or asked.get("system")
    if system is not None and system != "":
        turns.insert(0, {"role": "system", "content": system})
    tools = asked.get("tools") or asked.get("functions") or []
    model = asked.get("model")
    return turns, _tools(tools), model if isinstance(model, str) else ""


def _tools(value: Any) -> list[Any]:
    """Tool definitions; those of the responses API have their name beside the type."""
    if not isinstance(value, list):
        raise Refused("wrong_type", f"the request's tools are {json_type(value)}")
    return [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool
        else tool
        for tool in value
    ]


def _items(value: Iterable[Any]) -> list[Any]:
    """Turns as they stand; calls and their outputs of the responses API as turns."""
    turns: list[Any] = []
    for item in value:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "function_call":
            call = {
                "id": item.get("call_id"),
                "function": {"name": item.get("name"), "arguments": item.get("arguments")},
            }
            turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            turns.append(item)
    return turns


# --- responses -----------------------------------------------------------------------------------


def _response(value: Any) -> _Answer:
    if isinstance(value, str):
        if _is_stream(value):
            return _streamed(_events(value))
        opened = _opened(value)
        if opened is value or not (looks_like_response(opened) or (isinstance(opened, dict) and "error" in opened)):
            return _Answer({"role": "assistant", "content": value})
        value = opened
    if isinstance(value, list):
        return _listed(value)
    if not isinstance(value, dict):
        raise Refused("wrong_type", f"the response is {json_type(value)}")
    _refuse_failure(value, "the response")
    if value.get("role") == "assistant":
        return _message(value, "")
    name = next((name for name in _ANSWERING if value.get(name) is not None), None)
    if name is None:
        wrapped = next((name for name in _WRAPPERS if value.get(name) is not None), None)
        if wrapped is None:
            raise Refused("missing_field", "the response has no answer (expected: choices)")
        return _response(value[wrapped])
    inner = value[name]
    finish = _word(value.get("finish_reason") or value.get("stop_reason") or value.get("done_reason"))
    if value.get("status") == "incomplete":
        finish = "incomplete"
    if isinstance(inner, dict) and name in ("message", "content"):
        return _message(inner, finish)
    if name == "content":
        return _message(value, finish)
    answer = _response(inner)
    return _Answer(answer.turn, answer.finish or finish)


def _listed(value: list[Any]) -> _Answer:
    """Chunks of a stream, choices, items of an output, or turns."""
    if not value:
        raise Refused("empty_output", "the response is an empty array")
    first = value[0]
    if not isinstance(first, dict):
        raise Refused("wrong_type", f"the response is an array of {json_type(first)}")
    if any(
        isinstance(item, dict) and ("choices" in item or _word(item.get("type")).startswith("response."))
        for item in value
    ):
        return _streamed(value)
    if "message" in first and isinstance(first["message"], dict):
        return _message(first["message"], _word(first.get("finish_reason")))
    if "delta" in first:
        return _streamed([{"choices": [item]} for item in value if isinstance(item, dict)])
    if isinstance(first.get("text"), str) and "role" not in first and first.get("type") in (None, "text"):
        return _Answer({"role": "assistant", "content": first["text"]}, _word(first.get("finish_reason")))
    return _output(value)


def _output(items: list[Any]) -> _Answer:
    """Items of the responses API, or plain turns: their texts and calls as one turn."""
    parts: list[Any] = []
    calls: list[Any] = []
    for turn in _items(items):
        if not isinstance(turn, dict):
            raise Refused("wrong_type", f"the response is an array with {json_type(turn)}")
        if turn.get("role") != "assistant":
            raise Refused("wrong_type", f"the response has a turn of {short(str(turn.get('role')))}")
        message = _message(turn, "").turn
        content = message["content"]
        parts += content if isinstance(content, list) else [content] if content else []
        made = message.get("tool_calls") or []
        calls += made if isinstance(made, list) else [made]
    turn = {"role": "assistant", "content": parts}
    return _Answer(turn | {"tool_calls": calls} if calls else turn)


def _message(value: Mapping[str, Any], finish: str) -> _Answer:
    """A message of the assistant; content in blocks of text and calls, as Anthropic has them, becomes a turn."""
    turn: dict[str, Any] = {"role": "assistant", "content": value.get("content")}
    for name in ("tool_calls", "function_call"):
        if value.get(name):
            turn[name] = value[name]
    content = turn["content"]
    if isinstance(content, list):
        texts, calls = [], list(value.get("tool_calls") or [])
        for block in content:
            kind = block.get("type", "text") if isinstance(block, dict) else None
            if kind == "tool_use":
                calls.append(
                    {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
                )
            elif kind != "thinking":
                texts.append(block)
        turn["content"] = texts
        if calls:
            turn["tool_calls"] = calls
    return _Answer(turn, finish)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


# --- streams -------------------------------------------------------------------------------------


def _events(text: str) -> list[Any]:
    """The values of a server-sent event stream (WHATWG HTML, 9.2): its `data:` lines up to `[DONE]`."""
    events: list[Any] = []
    for line in text.splitlines():
        name, _, data = line.partition(":")
        data = data.strip()
        if name.strip() != "data" or not data:
            continue
        if data == "[DONE]":
            return [*events, {"done": True}]
        events.append(from_json(data, f"an event of the stream: {short(data)}"))
    return events


def _streamed(chunks: Iterable[Any]) -> _Answer:
    """A streamed answer put together: texts joined, calls by their index."""
    texts: list[str] = []
    calls: dict[Any, dict[str, Any]] = {}
    finish, ends_are_told = "", False
    for chunk in chunks:
        if not isinstance(chunk, dict):
            raise Refused("wrong_type", f"the stream has {json_type(chunk)} in it")
        _refuse_failure(chunk, "a chunk of the stream")
        if chunk.get("done") is True:
            finish = finish or "stop"
        if isinstance(chunk.get("response"), dict) and chunk.get("type") in (
            "response.completed",
            "response.incomplete",
        ):
            return _response(chunk["response"])
        choices = chunk.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or choice.get("index", 0) != 0:
            continue
        ends_are_told = ends_are_told or "finish_reason" in choice
        finish = _word(choice.get("finish_reason")) or finish
        inner = choice.get("delta")
        delta = inner if isinstance(inner, dict) else choice
        for name in ("content", "text"):
            if isinstance(delta.get(name), str):
                texts.append(delta[name])
        parts = delta.get("tool_calls") or (
            [{"function": delta["function_call"]}] if delta.get("function_call") else []
        )
        for part in parts if isinstance(parts, list) else []:
            _add_call(calls, part)
    if ends_are_told and not finish:
        raise Refused("truncated_output", "the stream ends before the answer does")
    turn: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        turn["tool_calls"] = list(calls.values())
    return _Answer(turn, finish)


def _add_call(calls: dict[Any, dict[str, Any]], part: Any) -> None:
    """A piece of a call, added to what came before of it."""
    if not isinstance(part, dict):
        raise Refused("wrong_type", f"the stream has a tool call that is {json_type(part)}")
    index = part.get("index")
    index = index if isinstance(index, int) else 0
    call = calls.setdefault(index, {"id": None, "function": {"name": "", "arguments": ""}})
    call["id"] = part.get("id") or call["id"]
    function = part.get("function")
    for name in ("name", "arguments"):
        piece = function.get(name) if isinstance(function, dict) else None
        if isinstance(piece, str):
            call["function"][name] += piece
        elif isinstance(piece, dict):
            call["function"][name] = json.dumps(piece, ensure_ascii=False)
