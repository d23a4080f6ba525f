"""Logged requests and responses of chat APIs to turns: OpenAI's, plain, in a batch file, or streamed; others in part.

A streamed answer becomes one response (`with_whole_exchange`) before texts are looked at: white space at the ends of
pieces belongs to the text, and personal data may be cut between two. Roles and arguments are left to `turns`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.draft import (
    Draft,
    Format,
    FormatGuess,
    Record,
    RecordSample,
    as_value,
    checked_parser,
    mostly,
    objects,
)
from tuneloop.data.formats.turns import (
    REASONING,
    ROLES,
    Refused,
    as_text,
    read_tools,
    read_turns,
    short,
    with_whole_contents,
)
from tuneloop.data.sources.parse import json_type

REQUEST_NAMES = ("request", "request_body", "requestbody", "req", "body", "input", "inputs", "payload", "messages")
RESPONSE_NAMES = (
    "response", "response_body", "responsebody", "resp", "output", "outputs", "choices", "completion", "result",
    "chunks", "events", "stream", "error",
)  # fmt: skip
_WRAPPERS = ("body", "json", "data", "kwargs")
_ASKING = ("messages", "input", "prompt")
_ANSWERING = (
    "choices", "output", "message", "content", "completion", "text", "generated_text", "response", "chunks",
    "events",
)  # fmt: skip
_FAILURE = {"error", "message", "detail", "type", "code", "status", "status_code", "statusCode", "request_id"}
_CUT = ("length", "max_tokens", "max_output_tokens", "incomplete", "content_filter")
_RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")
_LINE_END = re.compile(r"\r\n|[\r\n]")  # no other: U+2028 may well stand inside a JSON string
# What stands as the reason for finishing where a stream can't be put together, and why it is rejected.
_STREAM_FAULTS = {
    "stream_cut": ("truncated_output", "the stream ends before the answer does"),
    "stream_broken": ("broken_json", "an event of the stream is not valid JSON"),
    "stream_odd": ("wrong_type", "the stream has something else than objects in it"),
}


class _LoggedAnswer(NamedTuple):
    turn: dict[str, Any]
    finish: str = ""


def looks_like_request(value: Any) -> bool:
    """Whether a value is the body of a request, or wraps one, or is a list of turns."""
    value = as_value(value)
    if not isinstance(value, dict):
        return _is_turns(value)
    return (
        _is_turns(value.get("messages"))
        or any(looks_like_request(value[name]) for name in _WRAPPERS if name in value)
        or ("model" in value and any(name in value for name in _ASKING))
    )


def looks_like_response(value: Any) -> bool:
    """Whether a value is what a chat API answers: a body, chunks of a stream, or choices."""
    if _pieces(value) is not None:
        return True
    value = as_value(value)
    if isinstance(value, list):
        return any(isinstance(item, dict) and "message" in item and "index" in item for item in value)
    if not isinstance(value, dict):
        return False
    message = value.get("message")
    return (
        any(looks_like_response(value[name]) for name in _WRAPPERS if name in value)
        or bool(objects(value.get("choices")))
        or any("type" in item or "role" in item for item in objects(value.get("output")))
        or (isinstance(message, dict) and "content" in message)
        or (value.get("role") == "assistant" and "content" in value)
        or (isinstance(value.get("error"), dict) and len(value) <= 3)
    )


def _is_failure(value: Any) -> bool:
    """Whether a value holds nothing but an error; other objects with a field of that name are answers."""
    return isinstance(value, dict) and "error" in value and value.keys() <= _FAILURE


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and "role" in turn for turn in value)


def _read_exchange(record: Record, request: str, response: str) -> tuple[list[Any], list[Any], str]:
    """The turns of a logged exchange, the answer as the last one, tools and model; `request`, `response`: columns."""
    _refuse_failure(record, "the record")
    body = as_value(record.get(request))
    while isinstance(body, dict) and not any(name in body for name in _ASKING):
        wrapped = next((name for name in _WRAPPERS if name in body), None)
        if wrapped is None:
            break
        body = as_value(body[wrapped])
    if body is None:
        raise Refused("missing_field", f"no request in column {request!r}")
    turns, tools, model = _request(body)
    if not turns:
        raise Refused("empty_input", "the request has no messages")
    if record.get(response) is None:
        raise Refused("empty_output", f"no response in column {response!r}")
    answer = _response(_without_streams(record[response]))
    if answer.finish in _STREAM_FAULTS:
        raise Refused(*_STREAM_FAULTS[answer.finish])
    if answer.finish in _CUT:
        raise Refused("truncated_output", f"the response was cut off: {answer.finish}")
    return [*turns, answer.turn], tools, model


def logged_request(body: Any) -> tuple[list[Any], list[Any]]:
    """The turns of a request's body, as they are written, and its tools. Raises Refused: there are none."""
    turns, tools, _ = _request(body)
    return turns, tools


def logged_answer(response: Any) -> tuple[dict[str, Any], str]:
    """The turn that a response holds, and why it ended. Raises Refused: there is none, or it is an error."""
    answer = _response(_without_streams(response))
    if answer.finish in _STREAM_FAULTS:
        raise Refused(*_STREAM_FAULTS[answer.finish])
    return answer.turn, answer.finish


def _refuse_failure(value: Mapping[str, Any], subject: str) -> None:
    for name in ("status_code", "statusCode", "status", "http_status"):
        status = value.get(name)
        if isinstance(status, str) and status.isdecimal() and len(status) == 3:
            status = int(status)
        if (isinstance(status, int) and 400 <= status < 600) or status in ("failed", "error"):
            raise Refused("error_output", f"{name} of {subject} is {status}")
    error = value.get("error")
    if error:
        message = error.get("message") if isinstance(error, dict) else error
        raise Refused("error_output", f"{subject} is an error: {short(str(message))}")


def _request(body: Any) -> tuple[list[Any], list[Any], str]:
    if isinstance(body, str):
        return [{"role": "user", "content": body}], [], ""
    if isinstance(body, list):
        return _items(body), [], ""
    if not isinstance(body, dict):
        raise Refused("wrong_type", f"the request is {json_type(body)}")
    inner = next((body[name] for name in _ASKING if body.get(name) is not None), None)
    if inner is None:
        raise Refused("missing_field", "the request has no messages (expected: messages, input or prompt)")
    turns = _items(inner) if isinstance(inner, list) else [{"role": "user", "content": as_text(inner, "the prompt")}]
    system = body.get("instructions") or body.get("system")
    if system is not None and system != "":
        turns.insert(0, {"role": "system", "content": system})
    tools = body.get("tools") or body.get("functions") or []
    if not isinstance(tools, list):
        raise Refused("wrong_type", f"the request's tools are {json_type(tools)}")
    tools = [
        {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool
        else tool  # those of the responses API have their name next to the type
        for tool in tools
    ]
    return turns, tools, _word(body.get("model"))


def _items(value: Iterable[Any]) -> list[Any]:
    turns: list[Any] = []
    for item in value:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            calls = [{"id": item.get("call_id"), "function": function}]
            turns.append({"role": "assistant", "content": None, "tool_calls": calls})
        elif kind == "function_call_output":
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
        elif kind != "reasoning":
            turns.append(item)
    return turns


def with_whole_exchange(record: dict[str, Any], request: str, response: str) -> dict[str, Any]:
    """A record with one text for contents in parts and for a streamed answer; itself where nothing is in pieces."""
    columns = {request: _whole_turns, response: _without_streams}
    return _rebuilt(record, [name for name in columns if name in record], lambda name, value: columns[name](value))


def _rebuilt(value: dict[str, Any], names: Iterable[str], whole: Callable[[str, Any], Any]) -> dict[str, Any]:
    """An object with what `whole` makes of some of its values; itself where that changes nothing."""
    changes = {name: new for name in names if (new := whole(name, value[name])) is not value[name]}
    return {**value, **changes} if changes else value


def _whole_turns(body: Any) -> Any:
    if isinstance(body, list):
        return with_whole_contents(body, "content")
    if not isinstance(body, dict):
        return body
    names = (name for name in (*_ASKING, *_WRAPPERS) if name in body)
    return _rebuilt(body, names, lambda _, inner: _whole_turns(inner))


def _response(value: Any) -> _LoggedAnswer:
    if isinstance(value, str):
        opened = as_value(value)
        if opened is value or not (looks_like_response(opened) or _is_failure(opened)):
            return _LoggedAnswer({"role": "assistant", "content": value})
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
    return _LoggedAnswer(answer.turn, answer.finish or finish)


def _listed(value: list[Any]) -> _LoggedAnswer:
    if not value:
        raise Refused("empty_output", "the response is an empty array")
    first = value[0]
    if not isinstance(first, dict):
        raise Refused("wrong_type", f"the response is an array of {json_type(first)}")
    if "message" in first and isinstance(first["message"], dict):
        return _message(first["message"], _word(first.get("finish_reason")))
    if isinstance(first.get("text"), str) and "role" not in first and first.get("type") in (None, "text"):
        return _LoggedAnswer({"role": "assistant", "content": first["text"]}, _word(first.get("finish_reason")))
    return _output(value)


def _output(items: list[Any]) -> _LoggedAnswer:
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
        further = message.get("tool_calls") or []
        calls += further if isinstance(further, list) else [further]
    turn = {"role": "assistant", "content": parts}
    return _LoggedAnswer(turn | {"tool_calls": calls} if calls else turn)


def _message(value: Mapping[str, Any], finish: str) -> _LoggedAnswer:
    """A message of the assistant; content in blocks of text and calls, as Anthropic has them, becomes a turn."""
    turn: dict[str, Any] = {"role": "assistant", "content": value.get("content")}
    for name in ("tool_calls", "function_call", *REASONING):
        if value.get(name):
            turn[name] = value[name]
    content = turn["content"]
    if isinstance(content, list):
        texts, calls = [], list(value.get("tool_calls") or [])
        for block in content:
            kind = block.get("type", "text") if isinstance(block, dict) else None
            if kind == "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input")}
                calls.append({"id": block.get("id"), "function": function})
            else:
                texts.append(block)
        turn["content"] = texts
        if calls:
            turn["tool_calls"] = calls
    return _LoggedAnswer(turn, finish)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _without_streams(value: Any) -> Any:
    """A response with a body in place of the pieces in it; the response itself where there are no pieces."""
    if (pieces := _pieces(value)) is not None:
        return _put_together(pieces)
    opened = as_value(value)
    if not isinstance(opened, dict):
        return value
    names = [name for name in (*_ANSWERING, *_WRAPPERS) if isinstance(opened.get(name), str | list | dict)]
    whole = _rebuilt(opened, names, lambda _, inner: _without_streams(inner))
    return value if whole is opened else whole


def _pieces(value: Any) -> Sequence[Any] | None:
    """The pieces of a streamed answer (events, JSON lines, an array), a text where one is no JSON; else None."""
    if isinstance(value, str):
        if _is_event(value):
            events = _events(value)
            return events if any(isinstance(event, dict) or event[:1] == "{" for event in events) else None
        if value.lstrip()[:1] not in ("{", "["):
            return None
        opened = as_value(value)
        value = _LINE_END.split(value) if opened is value else opened
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(item, str) for item in value):
        if _is_event(value[0]):
            return _pieces("\n".join(value))
        value = [as_value(line) for line in value if line.strip()]
        return value if any(map(_is_piece, value[:1])) else None
    return value if any(map(_is_piece, value)) else None


def _is_event(text: str) -> bool:
    return text.lstrip()[:6].startswith(("data:", "event:"))


def _is_piece(value: Any) -> bool:
    return isinstance(value, dict) and (
        isinstance(value.get("choices"), list)
        or "delta" in value
        or _word(value.get("type")).startswith(("response.", "content_block_"))
        or ("done" in value and ("message" in value or "response" in value))
    )


def _events(text: str) -> list[Any]:
    """The values of a server-sent event stream (WHATWG HTML, 9.2): its `data:` lines up to `[DONE]`."""
    events: list[Any] = []
    for line in _LINE_END.split(text):
        name, _, data = line.partition(":")
        if name.strip() == "data" and (data := data.strip()):
            if data == "[DONE]":
                return [*events, {"done": True}]
            events.append(as_value(data))
    return events


def _put_together(pieces: Iterable[Any]) -> dict[str, Any]:
    stream = _Stream()
    for piece in pieces:
        if not isinstance(piece, dict):
            return stream.body("stream_broken" if isinstance(piece, str) else "stream_odd")
        if piece.get("error"):
            return stream.body("") | {"error": piece["error"]}
        body = piece.get("response")
        if isinstance(body, dict) and piece.get("type") in _RESPONSE_ENDS:
            return body
        stream.add(piece)
    return stream.body("")


@dataclass(slots=True)
class _Stream:
    """An answer in the making: texts, reasoning, calls by their index, why it ended, whether its pieces tell that."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: dict[Any, dict[str, Any]] = field(default_factory=dict)
    finish: str = ""
    tells_its_end: bool = False
    is_odd: bool = False

    def add(self, piece: Mapping[str, Any]) -> None:
        kind, choices = _word(piece.get("type")), piece.get("choices")
        delta = piece.get("delta")
        if kind.startswith("response."):
            self.tells_its_end = True
            if kind == "response.output_text.delta":
                self._text(delta)
        elif kind.startswith(("content_block_", "message_")):
            self.tells_its_end = True
            self._block(piece, delta if isinstance(delta, dict) else {})
        elif isinstance(choices, list) or "delta" in piece:
            choice = piece if not isinstance(choices, list) else choices[0] if choices else None
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self.tells_its_end = self.tells_its_end or "finish_reason" in choice
                self.finish = _word(choice.get("finish_reason")) or self.finish
                parts = (choice.get("delta"), choice.get("message"))
                self._delta(next((part for part in parts if isinstance(part, dict)), choice))
        elif "done" in piece:
            message = piece.get("message")
            self._delta(message if isinstance(message, dict) else {"content": piece.get("response")})
            self.tells_its_end = True
            if piece["done"] is True:
                self.finish = _word(piece.get("done_reason")) or self.finish or "stop"

    def _text(self, value: Any) -> None:
        if isinstance(value, str):
            self.texts.append(value)

    def _thought(self, delta: Mapping[str, Any]) -> None:
        self.thoughts += [text for name in REASONING if isinstance(text := delta.get(name), str)][:1]

    def _delta(self, delta: Mapping[str, Any]) -> None:
        self._text(delta.get("content"))
        self._text(delta.get("text"))
        self._thought(delta)
        call = delta.get("function_call")
        calls = delta.get("tool_calls") or ([{"function": call}] if call else [])
        for part in calls if isinstance(calls, list) else []:
            if not isinstance(part, dict):
                self.is_odd = True
                continue
            index, function = part.get("index"), part.get("function")
            if not isinstance(index, int):  # of calls without one, those in one piece each are calls of their own
                whole = isinstance(function, dict) and isinstance(function.get("arguments"), dict)
                index = len(self.calls) if whole else 0
            self._call(index, part.get("id"), function)

    def _block(self, piece: Mapping[str, Any], delta: Mapping[str, Any]) -> None:
        block = piece.get("content_block")
        if isinstance(block, dict) and block.get("type") == "tool_use":
            self._call(str(piece.get("index")), block.get("id"), {"name": block.get("name")})
        elif isinstance(block, dict):
            self._text(block.get("text"))
        self._text(delta.get("text"))
        self._thought(delta)
        if isinstance(delta.get("partial_json"), str):
            self._call(str(piece.get("index")), None, {"arguments": delta["partial_json"]})
        self.finish = _word(delta.get("stop_reason")) or self.finish

    def _call(self, index: Any, name: Any, function: Any) -> None:
        call = self.calls.setdefault(index, {"id": None, "function": {"name": "", "arguments": ""}})
        call["id"] = name or call["id"]
        for key in ("name", "arguments"):
            piece = function.get(key) if isinstance(function, dict) else None
            if isinstance(piece, str):
                call["function"][key] += piece
            elif isinstance(piece, dict):
                call["function"][key] = json.dumps(piece, ensure_ascii=False)

    def body(self, fault: str) -> dict[str, Any]:
        """The response; `fault` tells that it could not be put together."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.texts)}
        if self.thoughts:
            message["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
        odd, cut = "stream_odd" if self.is_odd else "", "stream_cut" if self.tells_its_end else ""
        finish = fault or odd or self.finish or cut
        return {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def logs(record: Record, guess: FormatGuess, config: PrepareConfig) -> Draft:
    """A logged request to a chat API and its response."""
    exchange, tools, model = _read_exchange(record, guess.columns["request"], guess.columns["response"])
    repairs: list[dict[str, Any]] = []
    turns = read_turns(exchange, guess.keys, repairs)
    return Draft(turns, repairs, read_tools(tools, "the request's tools"), {"model": model} if model else {})


def _find_logs(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    columns = {name.casefold(): name for name in reversed(sample.columns) if sample.is_usual(name)}
    requests = [columns[name] for name in REQUEST_NAMES if name in columns]
    responses = [columns[name] for name in RESPONSE_NAMES if name in columns]

    def is_answered(value: Any) -> bool:
        value = as_value(value)
        last = value[-1] if isinstance(value, list) and value else None
        return isinstance(last, dict) and ROLES.get(str(last.get("role")).casefold()) == "assistant"

    for request in requests:
        bodies = sample.of(request)
        structured = mostly(bodies, looks_like_request)
        if structured and mostly(bodies, is_answered):
            continue  # whole conversations: they need no response
        for response in responses:
            answers = sample.of(response)
            fits = response != request and (structured or mostly(answers, looks_like_response))
            if fits and any(answer is not None for answer in answers):
                names = {"request": request, "response": response}
                return FormatGuess("logs", names, sample.seen(names.values(), " of a chat API"))
    return None


_NAMES = (frozenset(REQUEST_NAMES), frozenset(RESPONSE_NAMES))
LOGS = Format("logs", "request and response", checked_parser(logs), _find_logs, needs=_NAMES)
