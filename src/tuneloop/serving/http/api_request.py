"""What a client requests, read from the bodies of OpenAI's endpoints, and the errors as that API reports them.

Every value is checked here, so that what comes behind can trust it. Fields of OpenAI's API that change nothing here are
ignored; unknown ones are refused, as OpenAI does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.json_schema import schema_problem
from tuneloop.core.text import storable
from tuneloop.core.units import counted
from tuneloop.inference.openai.api import reasoning_of
from tuneloop.inference.request import MOST_LOGPROBS, Sampling
from tuneloop.records.rows import Message

Tier = Literal["default", "flex", "priority"]
Body = Mapping[str, Any]

_SHARED = {  # the last three: of other servers, with the same meaning
    "model", "stream", "stream_options", "n", "temperature", "top_p", "seed", "stop", "max_tokens", "user",
    "service_tier", "logprobs", "frequency_penalty", "presence_penalty", "logit_bias",
    "top_k", "min_p", "repetition_penalty",
}  # fmt: skip
_CHAT = {
    *_SHARED, "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "max_completion_tokens",
    "top_logprobs", "metadata", "store", "reasoning_effort", "verbosity", "modalities", "prediction",
    "safety_identifier", "prompt_cache_key", "functions", "function_call", "audio", "web_search_options",
}  # fmt: skip
_COMPLETIONS = _SHARED | {"prompt", "echo", "suffix", "best_of"}
_RESPONSES = {
    "model", "input", "instructions", "stream", "temperature", "top_p", "max_output_tokens", "text", "user", "metadata",
    "store", "service_tier", "tools", "tool_choice", "parallel_tool_calls", "truncation", "include", "reasoning",
    "previous_response_id", "conversation", "background", "prompt", "safety_identifier", "prompt_cache_key",
    "stream_options", "max_tool_calls", "top_logprobs",
}  # fmt: skip
MOST_TEXTS = 256  # of `/v1/classify`
LONGEST_STOP = 256  # characters: each token is compared with all beginnings of them
EXAMPLE = '[{"role": "user", "content": "Where is my parcel?"}]'
PARTS = '[{"type": "text", "text": "Where is my parcel?"}]'
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


_TYPES = {
    400: "invalid_request_error", 401: "invalid_request_error", 403: "permission_error", 404: "invalid_request_error",
    405: "invalid_request_error", 408: "timeout_error", 409: "conflict_error", 413: "invalid_request_error",
    415: "invalid_request_error", 429: "rate_limit_error", 501: "invalid_request_error", 504: "timeout_error",
}  # fmt: skip
Headers = Mapping[str, str] | None


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP.
        message: what is wrong and what to do about it.
        param: the field that it concerns.
        code: a word that programs can test.
        headers: further ones of the response.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: Headers = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """For actors, which send it from one process to another."""
        more: dict[str, Any] = {"param": self.param, "code": self.code, "headers": self.headers}
        return partial(ApiError, self.status, self.message, **more), ()

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = self.code if self.code == "insufficient_quota" else _TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unavailable(message: str, code: str) -> ApiError:
    """An error of the moment: the request may be sent again after five seconds."""
    return ApiError(503, message, code=code, headers={"Retry-After": "5"})


@dataclass(frozen=True)
class ApiRequest:
    """A request, whichever endpoint it came to."""

    kind: Literal["chat", "completions", "responses", "classify"]  # the endpoint
    model: str = ""  # as the client names it; empty: the first one
    messages: Sequence[Message] = ()  # the conversation
    tools: Sequence[Mapping[str, Any]] = ()
    text: str | None = None  # in place of messages, a text to continue, of `/v1/completions`
    ids: Sequence[int] = ()  # the same as token ids
    n: int = 1  # answers
    max_new_tokens: int | None = None  # None: the usual length of the model
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none, else so many likeliest tokens
    schema: Mapping[str, Any] | None = None  # that the answer must fulfil
    stream: bool = False
    include_usage: bool = False  # the last piece of a stream has the count of tokens
    echo: bool = False  # repeat the prompt before the answer
    user: str = ""
    tier: Tier = "default"
    one_call: bool = False  # at most one call of a function in an answer
    top: int = 0  # labels whose probabilities are wanted; of `/v1/classify`


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(400, message, param=param, code=code)


def read_chat(body: Body, most_choices: int) -> ApiRequest:
    """The body of `/v1/chat/completions`; ApiError: a value is wrong, or a field unknown."""
    refuse_others(body, _CHAT)
    for old, new in (("functions", "tools"), ("function_call", "tool_choice"), ("audio", "messages")):
        if body.get(old):
            raise bad(f"{old} is not supported; use {new}", old)
    messages = read_messages(body.get("messages"))
    tools, schema = _tools(body)
    answer_schema = _response_format(body.get("response_format"), "response_format")
    logprobs = None
    if _bool(body, "logprobs"):
        logprobs = _integer(body, "top_logprobs", 0, MOST_LOGPROBS) or 0
    elif body.get("top_logprobs"):
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    most = _integer(body, "max_completion_tokens", 1)
    most = most or _integer(body, "max_tokens", 1)
    shared = _shared(body, most_choices) | {"max_new_tokens": most, "logprobs": logprobs}
    shared["one_call"] = not _bool(body, "parallel_tool_calls", usual=True)
    return ApiRequest("chat", messages=messages, tools=tools, schema=schema or answer_schema, **shared)


def read_completions(body: Body, most_choices: int) -> list[ApiRequest]:
    """The body of `/v1/completions`: a request for each of its prompts; raises as `read_chat`."""
    refuse_others(body, _COMPLETIONS)
    for name in ("suffix", "best_of"):
        if body.get(name) not in (None, "", 1, body.get("n")):
            raise bad(f"{name} is not supported", name)
    shared = _shared(body, most_choices)
    shared |= {"logprobs": _integer(body, "logprobs", 0, MOST_LOGPROBS), "echo": _bool(body, "echo")}
    shared["max_new_tokens"] = _integer(body, "max_tokens", 1)
    prompt = body.get("prompt")
    prompts: list[Any] = [prompt] if isinstance(prompt, str) or _is_ids(prompt) else prompt  # type: ignore[assignment]
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) or _is_ids(p) for p in prompts):
        raise bad("prompt must be a text, token ids, or a list of texts or of token ids, and not empty", "prompt")
    if len(prompts) > most_choices:
        raise bad(f"at most {counted(most_choices, 'prompt')} in a request; a batch takes more", "prompt")
    return [ApiRequest("completions", **{"text" if isinstance(p, str) else "ids": p}, **shared) for p in prompts]


def read_responses(body: Body) -> ApiRequest:
    """The body of `/v1/responses`: texts, without a memory of earlier ones; raises as `read_chat`."""
    refuse_others(body, _RESPONSES)
    for name in ("previous_response_id", "conversation", "background", "prompt"):
        if body.get(name):
            raise bad(f"{name} is not supported: nothing is remembered between requests; send all turns as input", name)
    if body.get("tools"):
        way = "send the turns there as messages (a client's setting for it is called chat completions)"
        raise bad(f"tools are supported by /v1/chat/completions only: {way}", "tools")
    value = body.get("input")
    items: Any = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise bad("input must be a text or a list of items", "input")
    turns: list[Any] = []
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind not in (None, "message", "reasoning"):
            way = 'messages are, as [{"role": "user", "content": "..."}]; calls of tools go to /v1/chat/completions'
            raise bad(f"items of type {str(kind)[:40]!r} are not supported: {way}", "input")
        if isinstance(item, dict):
            item = {key: part for key, part in item.items() if key not in ("type", "id", "status")}
        turns += [item] if kind != "reasoning" else []
    messages = read_messages(turns, "input")
    if instructions := body.get("instructions"):
        if not isinstance(instructions, str):
            raise bad("instructions must be a text", "instructions")
        messages = [{"role": "system", "content": instructions}, *messages]
    text = body.get("text")
    schema = None
    if isinstance(text, dict) and isinstance(form := text.get("format"), dict):
        nested = {"type": "json_schema", "json_schema": form} if form.get("type") == "json_schema" else form
        schema = _response_format(nested, "text.format")
    shared = _shared({**body, "n": None, "stop": None}, 1) | {"max_new_tokens": _integer(body, "max_output_tokens", 1)}
    return ApiRequest("responses", messages=messages, schema=schema, **shared)


def read_classify(body: Body) -> list[ApiRequest]:
    """The body of `/v1/classify`: `input`, texts, or `messages`; `top`: number of labels; raises as `read_chat`."""
    refuse_others(body, {"model", "input", "messages", "top", "user", "service_tier"})
    shared: dict[str, Any] = {
        "model": _text_field(body, "model"), "user": _text_field(body, "user"), "tier": _tier(body),
        "top": _integer(body, "top", 0) or 0,
    }  # fmt: skip
    if body.get("messages") is not None:
        return [ApiRequest("classify", messages=read_messages(body["messages"]), **shared)]
    value = body.get("input")
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad("input must be a text or a list of texts, and not empty", "input")
    if len(texts) > MOST_TEXTS:
        raise bad(f"at most {MOST_TEXTS} texts in a request; a batch takes more", "input")
    return [ApiRequest("classify", messages=[{"role": "user", "content": text}], **shared) for text in texts]


def refuse_others(body: Body, names: Collection[str]) -> None:
    """Refuse a field that is none of these, with the nearest one. Raises ApiError."""
    if (unknown := next((name[:80] for name in body if name not in names), None)) is not None:
        near = did_you_mean(unknown, names)
        way = f"; {near}" if near else ""
        raise bad(f"Unrecognized request argument supplied: {unknown}{way}", unknown, "unknown_parameter")


def _shared(body: Body, most_choices: int) -> dict[str, Any]:
    for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
        if body.get(name):
            raise bad(f"{name} is not supported; repetition_penalty is", name)
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad("stream_options must be an object", "stream_options")
    model, n, sampling = _text_field(body, "model"), _integer(body, "n", 1, most_choices) or 1, _sampling(body)
    stops: Any = body.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(s, str) and s for s in stops) or len(stops) > 16:
        raise bad("stop must be a text or a list of up to 16 texts, none of them empty", "stop")
    if max(map(len, stops), default=0) > LONGEST_STOP:
        raise bad(f"a stop text has at most {LONGEST_STOP} characters", "stop")
    return {
        "model": model, "n": n, "sampling": sampling, "stop": tuple(stops), "stream": _bool(body, "stream"),
        "include_usage": bool(options and options.get("include_usage")), "user": _text_field(body, "user"),
        "tier": _tier(body),
    }  # fmt: skip


def _text_field(body: Body, name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 512:
        raise bad(f"{name} must be a text of at most 512 characters", name)
    if storable(value) != value:
        raise bad(f"{name} holds a character that can't be stored, as \\u0000", name)
    return value


def _tier(body: Body) -> Tier:
    value = body.get("service_tier")
    if value in (None, "auto", "default"):
        return "default"
    if value not in ("flex", "priority"):
        raise bad("service_tier must be auto, default, flex or priority", "service_tier")
    return cast(Tier, value)


def _bool(body: Body, name: str, *, usual: bool = False) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{name} must be true or false", name)
    return usual if value is None else value


def _integer(body: Body, name: str, least: int, most: int = 1_000_000) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not number or value != int(value):
        raise bad(f"{name} must be a whole number", name)
    if not least <= value <= most:
        raise bad(f"{name} must be {least} to {most:,}, not {value}", name)
    return int(value)


def _number(body: Body, name: str, usual: float, least: float, most: float) -> float:
    value = body.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise bad(f"{name} must be a number from {least:g} to {most:g}", name)
    return float(value)


def _sampling(body: Body) -> Sampling:
    seed = body.get("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise bad("seed must be a whole number", "seed")
    temperature, top_p = _number(body, "temperature", 0.0, 0.0, 2.0), _number(body, "top_p", 1.0, 1e-6, 1.0)
    top_k, min_p = _integer(body, "top_k", 0) or 0, _number(body, "min_p", 0.0, 0.0, 1.0)
    penalty = _number(body, "repetition_penalty", 1.0, 1e-3, 100.0)
    if seed is None and temperature:
        seed = random.getrandbits(31)
    try:
        return Sampling(temperature, top_p, (seed or 0) % (1 << 63), top_k, min_p, penalty)
    except UserError as error:
        raise bad(error.what, error.where) from None


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int and 0 <= i < 1 << 31 for i in value)


def read_messages(value: Any, param: str = "messages") -> list[Message]:
    """Turns as records have them: joined parts, `system` for `developer`; ApiError: no turns, or an invalid one."""
    if not isinstance(value, list) or not value:
        raise bad(f"{param} must be a list of messages, and not empty: {EXAMPLE}", param)
    return [_message(turn, f"{param}[{i}]") for i, turn in enumerate(value)]


def _message(turn: Any, param: str) -> Message:
    if not isinstance(turn, dict):
        raise bad(f"{param} must be an object", param)
    role = turn.get("role")
    if role not in _ROLES:
        raise bad(f"{param}.role must be system, developer, user, assistant or tool: {EXAMPLE}", f"{param}.role")
    calls = turn.get("tool_calls")
    content = _content(turn.get("content"), f"{param}.content", optional=role == "assistant")
    message: dict[str, Any] = {"role": {"developer": "system", "function": "tool"}.get(role, role), "content": content}
    if calls:
        if role != "assistant" or not isinstance(calls, list) or not all(map(_is_call, calls)):
            field_ = f"{param}.tool_calls"
            raise bad(f"{field_} must be calls of functions in a turn of the assistant", field_)
        message["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        if isinstance(turn.get(name), str) and message["role"] == "tool":
            message[name] = turn[name]
    if role == "assistant" and (thought := reasoning_of(turn)):
        message["reasoning_content"] = thought
    return cast(Message, message)


def _is_call(value: Any) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _content(value: Any, param: str, *, optional: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and optional:
        return ""
    if not isinstance(value, list):
        raise bad(f"{param} must be a text or a list of parts: {EXAMPLE}", param)
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
        if kind not in ("text", "input_text", "output_text", "refusal", None) or not isinstance(text, str):
            what = f"a part of type {str(kind)[:40]!r}" if kind is not None else "a part without a type"
            raise bad(f"{param} has {what}, and this model reads text only: {PARTS}", param)
        texts.append(text)
    return "".join(texts)


def _tools(body: Body) -> tuple[list[Mapping[str, Any]], Mapping[str, Any] | None]:
    """The tools, and the schema of a call where one must be made."""
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(_is_call(tool) and tool.get("type") == "function" for tool in tools):
        raise bad('tools must be a list of {"type": "function", "function": {"name": ...}}', "tools")
    choice = body.get("tool_choice")
    if choice in (None, "auto"):
        return tools, None
    if choice == "none":
        return [], None
    name = choice["function"]["name"] if _is_call(choice) else None
    functions = [t["function"] for t in tools if choice == "required" or t["function"]["name"] == name]
    if not functions:
        raise bad("tool_choice must be none, auto, required or one of the tools", "tool_choice")
    calls = []
    for function in functions:
        parameters = function.get("parameters") or {"type": "object"}
        calls.append({
            "type": "object", "properties": {"name": {"const": function["name"]}, "parameters": parameters},
            "required": ["name", "parameters"], "additionalProperties": False,
        })  # fmt: skip
    return tools, _bounded(calls[0] if len(calls) == 1 else {"anyOf": calls}, "tools")


def _response_format(value: Any, param: str) -> Mapping[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = value.get("json_schema") if kind == "json_schema" else None
    schema = schema.get("schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict):
        raise bad(f"{param} must be of the type text, json_object or json_schema with a schema", param)
    return _bounded(schema, param)


def _bounded(schema: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    if why := schema_problem(schema):
        raise bad(f"Invalid schema: {why}", param, "no_schema")
    return schema
