"""OpenAI's API as requests and replies here, for all that speak to such a server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.core.foreign import parse_json
from tuneloop.inference.request import Request
from tuneloop.models.adapters import ATTACHED, BASE
from tuneloop.models.chat import reasoning_of, split_reasoning
from tuneloop.records.completion import Completion, Finish, TokenLogprob

FIELDS_OF_A_TURN = ("role", "content", "tool_calls", "tool_call_id", "name")
# Of a `Sampling`, with what is usual: these are not OpenAI's, but vLLM's and llama.cpp's.
FURTHER_OPTIONS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def body_of(request: Request, model: str) -> dict[str, Any]:
    """A request as a chat completion; an adapter is named in the place of the model, as servers of several do it."""
    name = model if request.adapter in (ATTACHED, BASE) else request.adapter
    top_p = {} if request.sampling.top_p == 1.0 else {"top_p": request.sampling.top_p}
    return {"model": name} | turns_of(request) | options_of(request) | top_p


def turns_of(request: Request) -> dict[str, Any]:
    """The conversation and its tools."""
    messages: Sequence[Mapping[str, Any]] = request.messages
    turns = [{key: turn[key] for key in FIELDS_OF_A_TURN if key in turn} for turn in messages]
    return {"messages": turns} | ({"tools": list(request.tools)} if request.tools else {})


def options_of(request: Request) -> dict[str, Any]:
    """How an answer is drawn and where it ends, but for `top_p`."""
    sampling = request.sampling
    body: dict[str, Any] = {"max_tokens": request.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature:
        body["seed"] = sampling.seed
    if request.stop:
        body["stop"] = list(request.stop)
    further = {name: getattr(sampling, name) for name in FURTHER_OPTIONS}
    return body | {name: value for name, value in further.items() if value != FURTHER_OPTIONS[name]}


def read_reply(text: str) -> Completion | None:
    """The body of a chat completion as a reply; None where it is something else. Calls of tools become JSON.

    What ended for a reason without a word, as for `content_filter`, is an empty answer. What holds no message but says
    what it used was billed: it is a reply with an error.
    """
    value: Any = None
    try:
        value = parse_json(text)
        choice = value["choices"][0]
        message = choice["message"]
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):  # parts
            content = "".join(part["text"] for part in content if part.get("type") == "text")
        if content is None:
            content = message.get("refusal") or ("" if reasoning_of(message) or choice.get("finish_reason") else None)
        if calls:
            functions = [call["function"] for call in calls]
            names = [{"name": f["name"], "arguments": _parsed(f["arguments"])} for f in functions]
            content = "\n".join([*filter(None, [content]), *(json.dumps(c, ensure_ascii=False) for c in names)])
        if not isinstance(content, str):
            return _billed(value)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return _billed(value)
    sizes, model = _tokens_used(value), value.get("model")
    thought, answer = reasoning_of(message), content
    if not thought:  # a server without a parser for it
        found, rest = split_reasoning(content)
        thought, answer = (found, rest or "") if found else ("", content)
    # Lone surrogates can't be written to a file.
    clean, reasoning = (text.encode("utf-8", "replace").decode().strip() for text in (answer, thought))
    finish: Finish = "length" if choice.get("finish_reason") == "length" else "stop"
    served = model if isinstance(model, str) else ""
    return Completion(
        clean, finish=finish, prompt_tokens=sizes[0], completion_tokens=sizes[1], served=served, reasoning=reasoning
    )


def _tokens_used(body: Any) -> list[int]:
    """Tokens read and written, by the `usage` of a body; 0 where it does not say."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = [usage.get(f"{kind}_tokens") if isinstance(usage, dict) else 0 for kind in ("prompt", "completion")]
    return [count if isinstance(count, int) and count > 0 else 0 for count in counts]


def _billed(body: Any) -> Completion | None:
    read, written = _tokens_used(body)
    reply = Completion(finish="error", error="a reply without an answer", prompt_tokens=read, completion_tokens=written)
    return reply if read or written else None


def _parsed(arguments: Any) -> Any:
    try:
        return parse_json(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def read_logprobs(reply: Mapping[str, Any]) -> list[TokenLogprob]:
    """Log probabilities of written tokens, which the server names by their ids (`token_id:5`)."""
    if "content" in reply:  # of chat completions
        return [
            TokenLogprob(
                _token_id(alternative["token"]),
                float(alternative["logprob"]),
                tuple((_token_id(t["token"]), float(t["logprob"])) for t in alternative.get("top_logprobs") or ()),
            )
            for alternative in reply["content"] or ()
        ]
    tops = reply.get("top_logprobs") or [None] * len(reply["tokens"])
    return [
        TokenLogprob(_token_id(token), float(value), tuple((_token_id(t), float(p)) for t, p in (top or {}).items()))
        for token, value, top in zip(reply["tokens"], reply["token_logprobs"], tops, strict=True)
    ]


def _token_id(token: str) -> int:
    match = re.fullmatch(r"token_id:(\d+)", token)
    return int(match[1]) if match else -1
