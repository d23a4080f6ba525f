"""Prompts and answers as tools log them, to turns in the OpenAI form.

OpenAI's bodies are read as `prepare` reads them. What other libraries write is brought into that form before: parts of
OpenTelemetry's conventions, Gemini's contents, blocks of Anthropic and TensorZero, LangChain's messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tuneloop.data.formats import (
    PLAIN_KEYS,
    Refused,
    as_value,
    logged_answer,
    logged_request,
    looks_like_request,
    looks_like_response,
    objects,
    read_tools,
    read_turns,
    short,
)
from tuneloop.records.rows import Message

_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "model"}
_LANGCHAIN = {"human": "user", "ai": "assistant", "aimessagechunk": "assistant", "system": "system", "tool": "tool"}
_CALLS = ("tool_call", "tool_use", "function_call")
_RESULTS = ("tool_call_response", "tool_result", "function_response")
_FINISHES = ("finish_reason", "finishReason", "stop_reason")
_THOUGHTS = ("reasoning", "thinking", "thought")


def read_prompt(value: Any, tools: Any = None) -> tuple[list[Message], list[dict[str, Any]]]:
    """The turns of a prompt and its tools; Refused: there is none, or a part of it is no text.

    A string is a text, also where it is JSON, unless it looks like what is sent to an API.
    """
    body = _opened(value, _is_prompt)
    if isinstance(body, list) and len(body) == 1 and isinstance(body[0], list):
        body = {"messages": body}  # LangChain logs batches of one
    if body is None or body in ("", [], {}):
        raise Refused("missing_field", "no prompt")
    if isinstance(body, Mapping) and "contents" in body:
        system = (body.get("config") or body).get("system_instruction")
        contents = body["contents"] if isinstance(body["contents"], list) else [body["contents"]]
        body = {"messages": contents, **({"system": system} if system else {})}
    elif isinstance(body, Mapping) and not {"messages", "input", "prompt"} & body.keys():
        body = [body] if "role" in body or "type" in body else json.dumps(body, ensure_ascii=False)
    if isinstance(body, list) and not any(isinstance(turn, Mapping) for turn in body):
        body = "\n".join(map(str, body))
    turns, own_tools = logged_request(body)
    if len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]
    try:
        definitions = [_definition(tool) for tool in read_tools(as_value(tools) or own_tools)]
    except Refused:
        definitions = []
    return _turns(turns), definitions


def _definition(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the form of OpenAI's chats: in its Responses a function has a type, at Anthropic another schema."""
    function = tool["function"]
    if isinstance(function, Mapping):
        names = {"input_schema": "parameters"}
        function = {names.get(key, key): value for key, value in function.items() if key != "type"}
    return {**tool, "function": function}


def read_answer(value: Any) -> tuple[dict[str, Any] | str, str]:
    """An answer, a text where it is nothing more, and why it ended; Refused: there is none, or it is an error.

    A string is a text, also where it is JSON, unless it looks like what an API answers. Another value in which there is
    no text of an answer is the answer itself, as JSON.
    """
    body = _opened(value, _is_answer)
    if body is None or body in ("", [], {}):
        raise Refused("missing_field", "no answer")
    finish = ""
    if isinstance(body, Mapping):
        if isinstance(body.get("candidates"), list) and body["candidates"]:  # Gemini's API
            body = body["candidates"][0]
        finish = str(next((body[name] for name in _FINISHES if body.get(name)), ""))
        if isinstance(body.get("content"), Mapping):
            body = body["content"]
        elif "raw" in body:  # TensorZero's JSON functions
            body = body["raw"] if isinstance(body["raw"], str) else json.dumps(body["raw"])
        elif "generations" in body:  # LangChain
            body = as_value(body["generations"])
            while isinstance(body, list) and body:
                body = body[0]
            body = body.get("message") or body.get("text") if isinstance(body, Mapping) else body
    if isinstance(body, list) and all(isinstance(turn, Mapping) for turn in body) and _is_answer(body):
        if any("role" in turn for turn in body):
            body = body[-1]
            finish = finish or str(body.get("finish_reason") or "")
        elif all(message.get("type") != "message" and "message" not in message for message in body):
            body = {"role": "assistant", "content": body}
    if isinstance(body, Mapping) and ({"parts", "kwargs"} & body.keys() or _role_of(body) != ""):
        turn: Any = body
    else:
        try:
            turn, ended = logged_answer(body)
        except Refused as fault:
            if fault.reason == "error_output" or _is_answer(body):
                raise
            return json.dumps(value, ensure_ascii=False), finish
        finish = finish or ended
    (answer, *_) = _turns([{**turn, "role": "assistant"}])
    content, further = answer["content"], {key: content for key, content in answer.items() if key != "role"}
    if not content.strip() and len(further) == 1:
        raise Refused("empty_output", "the answer is empty")
    return (content if len(further) == 1 else {"role": "assistant", **further}), finish


def _opened(value: Any, looks_logged: Callable[[Any], bool]) -> Any:
    """A value, read where it is JSON of the form that APIs and tracers log."""
    opened = as_value(value)
    return opened if opened is value or looks_logged(opened) else value


def _is_turn(value: Any) -> bool:
    """Whether a value is a turn of a conversation, of any of the tools."""
    if not isinstance(value, Mapping):
        return False
    if isinstance(value.get("kwargs"), Mapping) or isinstance(value.get("message"), Mapping):
        return True
    is_role = _role_of(value) in _ROLES and (isinstance(value.get("role"), str) or "content" in value)
    return is_role and bool({"content", "parts", "tool_calls", "function_call", "additional_kwargs"} & value.keys())


def _is_prompt(value: Any) -> bool:
    """Whether a value is what is sent to an API: a body, its contents, or turns, in a batch of one too."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if isinstance(value, list):
        return any(map(_is_turn, value))
    inner = value.get("contents") if isinstance(value, Mapping) else None
    return (bool(inner) and isinstance(inner, list | Mapping)) or _is_turn(value) or looks_like_request(value)


def _is_answer(value: Any) -> bool:
    """Whether a value is what an API answers: a body, candidates or generations, a message, or parts of one."""
    if isinstance(value, list):
        blocks = all(_is_turn(item) or _is_block(item) or _keys(item) == {"text"} for item in value)
        return (bool(value) and blocks) or looks_like_response(value)
    if not isinstance(value, Mapping):
        return False
    return (
        bool(objects(value.get("candidates")))
        or bool(as_value(value.get("generations")))
        or isinstance(value.get("content"), Mapping)
        or ("raw" in value and value.keys() <= {"raw", "parsed"})
        or _is_turn(value)
        or _is_block(value)
        or looks_like_response(value)
    )


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, Mapping) else set()


def _is_block(value: Any) -> bool:
    """Whether a value is a part of a message, as Anthropic, Gemini and OpenTelemetry have them."""
    if not isinstance(value, Mapping):
        return False
    known = ("text", "input_text", "output_text", "raw_text", "message", *_CALLS, *_RESULTS, *_THOUGHTS)
    return value.get("type") in known and bool({"text", "content", "name", "id", value["type"]} & value.keys())


def _turns(values: Sequence[Any]) -> list[Message]:
    return read_turns([turn for value in values for turn in _plain_turns(value)], PLAIN_KEYS, [])


def _role_of(turn: Mapping[str, Any]) -> str:
    role = turn.get("role")
    if not isinstance(role, str):
        role = _LANGCHAIN.get(str(turn.get("type")).casefold(), "")
    return "assistant" if role == "model" else role


def _plain_turns(value: Any) -> Iterator[Any]:
    """A turn in the OpenAI form, or several: results of tools are turns of their own."""
    if not isinstance(value, Mapping):
        yield {"role": "user", "content": value} if isinstance(value, str) else value
        return
    if isinstance(value.get("kwargs"), Mapping):  # LangChain's serialised objects
        name = str((value.get("id") or [""])[-1]).removesuffix("Message").removesuffix("MessageChunk")
        value = {"type": name, **value["kwargs"]}
    if isinstance(value.get("message"), Mapping) and "role" not in value:
        value = value["message"]
    role = _role_of(value)
    parts = value.get("parts", value.get("content"))
    further = value.get("additional_kwargs")
    calls = value.get("tool_calls") or (further.get("tool_calls") if isinstance(further, Mapping) else None)
    if isinstance(parts, Mapping) and not isinstance(parts.get("text"), str):
        parts = json.dumps(parts, ensure_ascii=False)  # values of a template, or data
    if value.get("parts") == [] and role == "user":
        raise Refused("missing_field", "a turn without parts: what logged it leaves out what is no text")
    turn = {"role": role, "content": parts or ""}
    if isinstance(parts, str) or not parts:
        turn |= {key: value[key] for key in ("tool_call_id", "name", "reasoning_content") if value.get(key)}
    else:
        texts: list[str] = []
        thoughts: list[str] = []
        own_calls: list[Any] = []
        for part in parts if isinstance(parts, list) else [parts]:
            kind, content = _part(part)
            if kind == "call":
                own_calls.append(content)
            elif kind == "result":
                yield content
            else:
                (thoughts if kind == "thought" else texts).append(content)
        if not texts and not own_calls and not thoughts:
            return
        calls = calls or own_calls
        turn["content"] = "".join(texts)
        if role == "tool" and value.get("tool_call_id"):
            turn["tool_call_id"] = value["tool_call_id"]
        if thoughts:
            turn["reasoning_content"] = "\n".join(thoughts)
    if calls and role == "assistant":
        turn["tool_calls"] = [_call(call) for call in (calls if isinstance(calls, list) else [calls])]
    yield turn


def _part(part: Any) -> tuple[str, Any]:
    """What a part of a content is (`text`, `call`, `result`, `thought`), and it; Refused: it is no text."""
    if not isinstance(part, Mapping):
        return "text", part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
    for names, kind in ((_CALLS, "call"), (_RESULTS, "result")):
        name = next((name for name in names if part.get("type") == name or isinstance(part.get(name), Mapping)), None)
        if name or (kind == "call" and isinstance(part.get("function"), Mapping)):
            within = part.get(name or "")
            inner = within if isinstance(within, Mapping) else part
            return kind, _call(inner) if kind == "call" else _result(inner)
    text = next((part[name] for name in ("text", "content", "value", "arguments") if name in part), None)
    thought = part.get("type") in _THOUGHTS
    if thought and text is None:
        text = next((part[name] for name in _THOUGHTS if name in part), "")
    if part.get("type", "text") not in ("text", "input_text", "output_text", "raw_text", *_THOUGHTS) or text is None:
        raise Refused("wrong_type", f"a part of the type {short(str(part.get('type')))}, which is no text")
    return "thought" if thought else "text", text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)


def _call(value: Any) -> dict[str, Any]:
    """A call of a function, whose names and arguments tools spell in several ways."""
    if not isinstance(value, Mapping):
        raise Refused("wrong_type", "a tool call is no object")
    inner = next((value[key] for key in ("function", "tool_call") if isinstance(value.get(key), Mapping)), value)
    inner = inner.get("function", inner) if isinstance(inner.get("function"), Mapping) else inner
    names = ("arguments", "args", "input", "parameters", "raw_arguments")
    arguments: Any = next((inner[name] for name in names if inner.get(name) is not None), {})
    name = inner.get("name") or inner.get("raw_name") or inner.get("tool_name")
    of = value["tool_call"] if isinstance(value.get("tool_call"), Mapping) else value  # OpenInference
    return {"id": _id(of.get("id") or of.get("call_id")), "function": {"name": name, "arguments": arguments}}


def _result(value: Mapping[str, Any]) -> dict[str, Any]:
    names = ("response", "result", "content", "output")
    result = next((value[name] for name in names if value.get(name) is not None), "")
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    call_id = _id(value.get("id") or value.get("call_id") or value.get("tool_use_id"))
    return {"role": "tool", "content": text, **({"tool_call_id": call_id} if call_id else {})}


def _id(value: Any) -> str:
    return str(value[-1] if isinstance(value, list) and value else value or "")
