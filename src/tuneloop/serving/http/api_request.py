"""What a client requests, read from the bodies of OpenAI's endpoints, and the errors as that API reports them.

Small bodies are read at once, others first where that can be ended. The models of `http.contract` check every value, so
that what comes behind can trust it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ValidationError

from tuneloop.core.bounded_work import WORK, TooMuchWork
from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.core.foreign import LIMITS, MOST_DEPTH, fast_json, parse_json, too_deep
from tuneloop.core.units import counted
from tuneloop.inference import Sampling
from tuneloop.models.chat import reasoning_of
from tuneloop.records.rows import Message
from tuneloop.serving.http.contract import ChatBody, ClassifyBody, CompletionsBody, DrawnBody, Turn

Tier = Literal["default", "flex", "priority"]
Body = Mapping[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)
_ROLES = {"developer": "system", "function": "tool"}  # as records name them

AT_ONCE, PARTS_AT_ONCE = LIMITS["at once"].bytes, LIMITS["at once"].nodes  # parts: quotes and brackets
MOST_PARTS, SECONDS = LIMITS["body"].nodes, LIMITS["body"].seconds  # parts: objects, lists and texts
QUICK = 4_096  # bytes of a body that is read and validated in a fraction of a millisecond; others take turns

EXAMPLE = '[{"role": "user", "content": "Where is my parcel?"}]'
PARTS = '[{"type": "text", "text": "Where is my parcel?"}]'
_HINTS = (  # what helps with a field, by its path
    (re.compile(r"\.content\["), f"this model reads text only: {PARTS}"),
    (re.compile(r"(messages|input)\b"), EXAMPLE),
    (re.compile(r"tools\b"), '[{"type": "function", "function": {"name": ...}}]'),
    (re.compile(r"(response_format|text\.format)\b"), "text, json_object, or json_schema with a schema"),
)
_NEEDED = {  # pydantic's kinds of errors, as the end of "FIELD must be"
    "string_type": "a text", "list_type": "a list", "dict_type": "an object", "int_type": "a whole number",
    "float_type": "a number", "bool_type": "true or false", "model_attributes_type": "an object",
    "model_type": "an object",
}  # fmt: skip


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
    # of `/v1/responses`: values of the body that the answer repeats, and whether later requests may refer to it
    repeated: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noted(self) -> dict[str, Any] | None:
        """What the log keeps with an answer that later requests may refer to; None: they may not."""
        if not self.repeated.get("store"):
            return None
        return {"instructions": bool(self.repeated["instructions"]), "one_call": self.one_call}


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong in itself."""
    return ApiError(400, message, param=param, code=code)


async def json_object(raw: bytes, turns: asyncio.Lock) -> dict[str, Any]:
    """A body as a JSON object.

    Args:
        turns: of bodies that are not `QUICK`. In each round of the event loop one of them is read and
            validated in up to ten milliseconds: thirty at once would hold all others up for a third of a second.

    Raises:
        ApiError: it is none, nested too deeply, or too much for this server. TooBusy: see `core.bounded_work`.
    """
    is_small = len(raw) <= AT_ONCE and sum(map(raw.count, (b'"', b"[", b"{"))) <= PARTS_AT_ONCE
    if not is_small:
        try:
            fault = parse_json(await WORK.result(check_job, raw, seconds=SECONDS))
        except TooMuchWork:
            fault = 413, "Reading the request takes too long: send less", "request_too_large"
        if fault:
            status, message, code = fault
            raise ApiError(status, message, code=code)
    if len(raw) > QUICK:
        async with turns:
            await asyncio.sleep(0)
    if is_small:
        return _read(raw)
    value: dict[str, Any] = fast_json(raw)
    return value


def check_job(raw: bytes) -> bytes:
    """In a process of `core.bounded_work`: what is wrong with a body, as JSON of status, message and code, or null."""
    try:
        value = _read(raw)
    except ApiError as error:
        return json.dumps([error.status, error.message, error.code]).encode()
    parts = 0
    left: list[Any] = [value]
    while left and parts <= MOST_PARTS:
        part = left.pop()
        if isinstance(part, dict):
            parts += len(part)
            part = part.values()
        below = [item for item in part if isinstance(item, dict | list | str)]
        parts += len(below)
        left += [item for item in below if not isinstance(item, str)]
    if parts > MOST_PARTS:
        message = f"The body has more than {MOST_PARTS:,} objects, lists and texts"
        return json.dumps([413, message, "request_too_large"]).encode()
    return b"null"


def _read(raw: bytes) -> dict[str, Any]:
    try:
        value = fast_json(raw)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}"[:300], code="invalid_json") from None
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object", code="invalid_json")
    if too_deep(raw, value):
        raise ApiError(400, f"The body is nested in more than {MOST_DEPTH} levels", code="invalid_json")
    return value


def parsed(model: type[_Model], body: Body) -> _Model:
    """A body as its model of `http.contract`; ApiError: a value is wrong or missing, or a field unknown."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error, body, model.model_fields) from None


def _refusal(error: ValidationError, body: Body, names: Collection[str]) -> ApiError:
    """What to say of a body that is no such model: of an unknown field, else of the fault that lies deepest, since of
    a union every alternative has faults."""
    found: dict[str, list[str]] = {}
    for fault in error.errors(include_url=False, include_input=False):
        path, value = "", cast(Any, body)
        for step in fault["loc"]:
            missing = fault["type"] == "missing" and step == fault["loc"][-1]
            if isinstance(value, dict) and (step in value or missing):
                name = "".join(filter(str.isprintable, str(step)[:80]))
                path, value = f"{path}.{name}" if path else name, value.get(step)
            elif isinstance(value, list) and isinstance(step, int):
                path, value = f"{path}[{step}]", value[step]
            # else the name of an alternative
        if fault["type"] == "extra_forbidden":
            near = did_you_mean(path, names)
            message = f"Unrecognized request argument supplied: {path}{near and f'; {near}'}"
            return bad(message, path, "unknown_parameter")
        context = fault.get("ctx", {})
        if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
            path += ".role" if context["discriminator"] == "'role'" else ".type"
        says = _NEEDED.get(fault["type"]) or context.get("expected") or context.get("expected_tags")
        if fault["type"] in ("missing", "union_tag_not_found"):
            text = " is required"
        elif fault["type"] == "value_error":
            text = f" {context['error']}"
        else:
            text = f" must be {says}" if says else re.sub("^[A-Z][a-z]+ should", " must", fault["msg"])
        found.setdefault(path, []).append(text.replace(" after validation", ""))
    # Of alternatives, the one that got furthest.
    param = max(reversed(found), key=lambda path: (found[path] != [" is required"], path.count(".") + path.count("[")))
    hints = () if "encoding_format" in names else _HINTS  # texts to embed are no turns
    hint = next((f": {hint}" for pattern, hint in hints if pattern.search(param)), "")
    first, *others = dict.fromkeys(found[param])
    text = " or ".join([first, *(other.removeprefix(" must be ") for other in others)])
    return bad(f"{param}{text}{hint}".strip(), param or None)


def read_chat(body: Body, most_choices: int) -> ApiRequest:
    """The body of `/v1/chat/completions`; ApiError: a value is wrong, or a field unknown."""
    asked = parsed(ChatBody, body)
    choice: Any = asked.tool_choice or "auto"
    tools, schema = tools_of(asked.tools or [], choice if choice in CHOICES else choice["function"]["name"])
    logprobs = None
    if asked.logprobs:
        logprobs = asked.top_logprobs or 0
    elif asked.top_logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    return ApiRequest(
        "chat",
        messages=as_messages(asked.messages),
        tools=tools,
        schema=schema or schema_of(asked.response_format),
        logprobs=logprobs,
        max_new_tokens=asked.max_completion_tokens or asked.max_tokens,
        one_call=asked.parallel_tool_calls is False,
        **_drawn(asked, most_choices),
    )


def read_completions(body: Body, most_choices: int) -> list[ApiRequest]:
    """The body of `/v1/completions`: a request for each of its prompts; raises as `read_chat`."""
    asked = parsed(CompletionsBody, body)
    if asked.best_of not in (None, 1, asked.n):
        raise bad("best_of is not supported", "best_of")
    prompts: Any = asked.prompt
    if isinstance(prompts, str) or isinstance(prompts[0], int):
        prompts = [prompts]
    if len(prompts) > most_choices:
        raise bad(f"at most {counted(most_choices, 'prompt')} in a request; a batch takes more", "prompt")
    shared = _drawn(asked, most_choices) | {"logprobs": asked.logprobs, "echo": bool(asked.echo)}
    shared["max_new_tokens"] = asked.max_tokens
    return [ApiRequest("completions", **{"text" if isinstance(p, str) else "ids": p}, **shared) for p in prompts]


def read_classify(body: Body) -> list[ApiRequest]:
    """The body of `/v1/classify`: a request for each of its texts; raises as `read_chat`."""
    asked = parsed(ClassifyBody, body)
    if asked.messages is not None:
        conversations = [as_messages(asked.messages)]
    else:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
        conversations = [[{"role": "user", "content": text}] for text in texts]
    shared: dict[str, Any] = {
        "model": asked.model or "", "user": asked.user or "", "tier": tier_of(asked.service_tier),
        "top": asked.top or 0,
    }  # fmt: skip
    return [ApiRequest("classify", messages=messages, **shared) for messages in conversations]


def _drawn(asked: DrawnBody, most_choices: int) -> dict[str, Any]:
    """What chats and completions share."""
    n, stop = asked.n or 1, asked.stop or ()
    if n > most_choices:
        raise bad(f"n must be 1 to {most_choices}, not {n}", "n")
    return {
        "model": asked.model or "", "n": n, "stop": (stop,) if isinstance(stop, str) else tuple(stop),
        "sampling": sampling_of(
            asked.temperature, asked.top_p, asked.seed, asked.top_k, asked.min_p, asked.repetition_penalty
        ),
        "stream": bool(asked.stream), "include_usage": bool((asked.stream_options or {}).get("include_usage")),
        "user": asked.user or "", "tier": tier_of(asked.service_tier),
    }  # fmt: skip


def tier_of(asked: str | None) -> Tier:
    return cast(Tier, asked) if asked in ("flex", "priority") else "default"


def sampling_of(
    temperature: float | None,
    top_p: float | None,
    seed: int | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    penalty: float | None = None,
) -> Sampling:
    temperature = temperature or 0.0
    if seed is None and temperature:
        seed = random.getrandbits(31)
    try:
        return Sampling(temperature, top_p or 1.0, (seed or 0) % (1 << 63), top_k or 0, min_p or 0.0, penalty or 1.0)
    except UserError as error:
        raise bad(error.what, error.where) from None


def as_messages(turns: Iterable[Turn]) -> list[Message]:
    """Turns as records have them: joined parts, `system` for `developer`."""
    messages = []
    for turn in turns:
        role, content = turn["role"], turn.get("content")
        if not isinstance(content, str):
            parts: Any = content or ()
            texts = [p if isinstance(p, str) else p["text"] if "text" in p else p["refusal"] for p in parts]
            content = "".join(texts)
        message: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content}
        if role == "assistant":
            if calls := turn.get("tool_calls"):
                message["tool_calls"] = calls
            if thought := reasoning_of(turn):
                message["reasoning_content"] = thought
        elif message["role"] == "tool":
            message |= {name: value for name in ("tool_call_id", "name") if (value := turn.get(name)) is not None}
        messages.append(cast(Message, message))
    return messages


CHOICES = ("none", "auto", "required")


def tools_of(tools: list[Any], choice: str) -> tuple[list[Any], Mapping[str, Any] | None]:
    """The tools, and the schema of a call where one must be made; `choice`: as in `CHOICES`, or a tool's name."""
    if choice == "auto":
        return tools, None
    if choice == "none":
        return [], None
    functions = [tool["function"] for tool in tools if choice in ("required", tool["function"]["name"])]
    if not functions:
        raise bad("tool_choice must be none, auto, required or one of the tools", "tool_choice")
    calls = []
    for function in functions:
        parameters = function.get("parameters") or {"type": "object"}
        calls.append({
            "type": "object", "properties": {"name": {"const": function["name"]}, "parameters": parameters},
            "required": ["name", "parameters"], "additionalProperties": False,
        })  # fmt: skip
    return tools, calls[0] if len(calls) == 1 else {"anyOf": calls}


def schema_of(form: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The schema that an answer must fulfil; the engine refuses one that it can't hold answers to."""
    if form is None or form["type"] == "text":
        return None
    if form["type"] == "json_object":
        return {"type": "object"}
    schema: Mapping[str, Any] = form.get("json_schema", form)["schema"]
    return schema
