"""Answers as OpenAI's endpoints give them, whole and in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.core.ids import uuid7
from tuneloop.core.text import storable
from tuneloop.inference.stream import TextStream
from tuneloop.models.tool_calls import may_be_calls, read_calls
from tuneloop.records.completion import Completion
from tuneloop.serving.gateway import Piece, ServedModel
from tuneloop.serving.http.api_request import ApiRequest

_FINISH = {"stop": "stop", "choice": "stop", "length": "length"}


def _calls_of(request: ApiRequest, text: str) -> tuple[str, list[dict[str, Any]]]:
    """What an answer says before its calls, and these in OpenAI's form, as many as the request allows."""
    said, calls = read_calls(text, request.tools) if request.tools else (text, [])
    written = []
    for name, arguments in calls[:1] if request.one_call else calls:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": name, "arguments": storable(text)}
        written.append({"id": f"call_{uuid7()[-12:]}", "type": "function", "function": function})
    return said, written


def usage(*answers: Sequence[Completion]) -> dict[str, Any]:
    """Tokens of one or several answers together; the prompt of an answer counts once, whatever its choices."""
    prompt = sum([choices[0].prompt_tokens for choices in answers if choices])
    completion = sum([each.completion_tokens for choices in answers for each in choices])
    cached = sum([choices[0].cached_tokens for choices in answers if choices])
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def chat_body(request: ApiRequest, piece: Piece, completions: Sequence[Completion]) -> dict[str, Any]:
    """The body of `/v1/chat/completions`; `piece`: the last one of the answer."""
    model = piece.model
    choices: list[dict[str, Any]] = []
    for index, each in enumerate(completions):
        said, calls = _calls_of(request, each.text)
        content = None if calls and not said else said
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if each.reasoning:
            message["reasoning_content"] = each.reasoning
        if calls:
            message["tool_calls"] = calls
        choices.append({
            "index": index, "message": message, "logprobs": chat_logprobs(each, model),
            "finish_reason": "tool_calls" if calls else _FINISH.get(each.finish, "stop"),
        })  # fmt: skip
    return {
        "id": piece.id, "object": "chat.completion", "created": int(time.time()), "model": model.name,
        "choices": choices, "usage": usage(completions), "service_tier": piece.tier,
        "system_fingerprint": _fingerprint(model),
    }  # fmt: skip


def _fingerprint(model: ServedModel) -> str:
    return f"fp_{model.adapter[:12]}"


def chat_logprobs(completion: Completion, model: ServedModel) -> dict[str, Any] | None:
    """Log probabilities of a chat answer's tokens."""
    if completion.logprobs is None:
        return None

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = token_text(model, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    tokens = completion.logprobs
    content = [{**entry(t.id, t.logprob), "top_logprobs": [entry(i, p) for i, p in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def token_text(model: ServedModel, token: int) -> str:
    """A token as text; its number where the tokenizer is not here, or it is a control token."""
    text = model.decode([token]) if model.decode is not None else ""
    return text or f"<token {token}>"


def completions_body(
    requests: Sequence[ApiRequest], answers: Sequence[tuple[Piece, list[Completion]]]
) -> dict[str, Any]:
    """The body of `/v1/completions`: the choices of all prompts, from the answers to them, one after the other."""
    first, choices = answers[0][0], list[dict[str, Any]]()
    for request, (_, completions) in zip(requests, answers, strict=True):
        for completion in completions:
            text = _echo(request) + completion.text
            logprobs = None
            if (tokens := completion.logprobs) is not None:
                logprobs = {
                    "tokens": [token_text(first.model, t.id) for t in tokens],
                    "token_logprobs": [t.logprob for t in tokens],
                    "top_logprobs": [{token_text(first.model, i): p for i, p in t.top} for t in tokens],
                    "text_offset": _text_offsets(first.model, text, completion),
                }
            finish = _FINISH.get(completion.finish, "stop")
            choices.append({"index": len(choices), "text": text, "logprobs": logprobs, "finish_reason": finish})
    return {
        "id": first.id, "object": "text_completion", "created": int(time.time()), "model": first.model.name,
        "choices": choices, "usage": usage(*(completions for _, completions in answers)),
        "system_fingerprint": _fingerprint(first.model),
    }  # fmt: skip


def _text_offsets(model: ServedModel, text: str, completion: Completion) -> list[int] | None:
    """Where each token of an answer begins in a choice's text, in characters; None where no tokenizer is here.

    A token that begins within a character has that character's place, and one without a text the end of the text.
    """
    if model.decode is None:
        return None
    stream, before = TextStream(model.decode), len(text) - len(completion.text)
    offsets = []
    for token in completion.logprobs or ():
        offsets.append(min(before + stream.written, len(text)))
        stream.push(token.id)
    return offsets


def _echo(request: ApiRequest) -> str:
    return (request.text or "") if request.echo else ""


def responses_body(request: ApiRequest, piece: Piece, completion: Completion | None) -> dict[str, Any]:
    """The body of `/v1/responses`; without a completion that of an answer that has only begun."""
    tokens = usage([completion]) if completion else None
    cut = completion is not None and completion.finish == "length"
    return {
        "id": piece.id, "object": "response", "created_at": int(time.time()), "model": piece.model.name,
        "status": ("incomplete" if cut else "completed") if completion else "in_progress",
        "error": None, "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None, "metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "temperature": request.sampling.temperature, "top_p": request.sampling.top_p,
        "max_output_tokens": request.max_new_tokens, "previous_response_id": None, "store": False,
        "text": {"format": {"type": "text"}}, "truncation": "disabled", "user": request.user or None,
        "output": [*_thoughts(piece.id, completion), _output_item(piece.id, completion.text, "completed")]
        if completion else [],
        "usage": tokens and {
            "input_tokens": tokens["prompt_tokens"], "input_tokens_details": tokens["prompt_tokens_details"],
            "output_tokens": tokens["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens["total_tokens"],
        },
    }  # fmt: skip


def _thoughts(id_: str, completion: Completion) -> list[dict[str, Any]]:
    """What a model thought before its answer, as an item of its own; not of a streamed answer, whose item has begun."""
    content = [{"type": "reasoning_text", "text": completion.reasoning}]
    return [{"id": f"rs_{id_}", "type": "reasoning", "summary": [], "content": content}] if completion.reasoning else []


def _output_item(id_: str, text: str, status: str) -> dict[str, Any]:
    content = [] if status == "in_progress" else [_part(text)]
    return {"id": f"msg_{id_}", "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass
class _AnswerStream:
    """An answer that is streamed."""

    request: ApiRequest
    created: int = field(default_factory=lambda: int(time.time()))
    choices: set[int] = field(default_factory=set)  # that have begun
    completions: list[Completion] = field(default_factory=list)
    last: Piece | None = None

    def end(self) -> Iterator[dict[str, Any]]:
        """What comes behind the last piece."""
        if self.request.include_usage and self.last is not None:
            yield {**self._head(self.last), "choices": [], "usage": usage(self.completions)}

    def _head(self, piece: Piece) -> dict[str, Any]:
        return {"id": piece.id, "object": "text_completion", "created": self.created, "model": piece.model.name}


@dataclass
class ChatStream(_AnswerStream):
    """The events of a streamed chat answer.

    Text that may become a call of a function is kept back until it is known which of the two it is.
    """

    pending: dict[int, str] = field(default_factory=dict)  # such texts, by the choice
    said: set[int] = field(default_factory=set)  # choices of which a text was given out

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece of the answer becomes."""
        self.last, index, completion = piece, piece.index, piece.completion
        if index not in self.choices:
            self.choices.add(index)
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        if piece.reasoning:
            yield self._chunk(index, {"reasoning_content": piece.reasoning})
        text, calls = self.pending.pop(index, "") + piece.text, list[dict[str, Any]]()
        if self.request.tools:
            names = [str(tool["function"]["name"]) for tool in self.request.tools]
            place = may_be_calls(text, names, first=index not in self.said)
            text, rest = text[:place], text[place:]
            if completion is None:
                self.pending[index] = rest
            else:
                rest, calls = _calls_of(self.request, rest)
                text += rest
        if text.strip():
            self.said.add(index)
        logprobs = chat_logprobs(completion, piece.model) if completion is not None else None
        if text:
            yield self._chunk(index, {"content": text}, logprobs=None if calls else logprobs)
        if calls:
            yield self._chunk(index, {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]})
        if completion is not None:
            self.completions.append(completion)
            finish = "tool_calls" if calls else _FINISH.get(completion.finish, "stop")
            yield self._chunk(index, {}, finish=finish, logprobs=None if text or calls else logprobs)

    def _head(self, piece: Piece) -> dict[str, Any]:
        return {
            "id": piece.id, "object": "chat.completion.chunk", "created": self.created,
            "model": piece.model.name, "system_fingerprint": _fingerprint(piece.model),
        }  # fmt: skip

    def _chunk(self, index: int, delta: dict[str, Any], finish: str = "", logprobs: Any = None) -> dict[str, Any]:
        assert self.last is not None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish or None}
        usage_ = {"usage": None} if self.request.include_usage else {}
        return {**self._head(self.last), "choices": [choice], **usage_}


@dataclass
class CompletionsStream(_AnswerStream):
    """The events of a streamed answer of `/v1/completions`."""

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece of the answer becomes."""
        self.last, text, finish = piece, piece.text, None
        if piece.index not in self.choices:
            self.choices.add(piece.index)
            text = _echo(self.request) + text
        if piece.completion is not None:
            self.completions.append(piece.completion)
            finish = _FINISH.get(piece.completion.finish, "stop")
        if text or finish:
            choice = {"index": piece.index, "text": text, "logprobs": None, "finish_reason": finish}
            yield {**self._head(piece), "choices": [choice]}


@dataclass
class ResponsesStream:
    """The events of a streamed answer of `/v1/responses`; each has its type."""

    request: ApiRequest
    number: int = -1

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece of the answer becomes."""
        at = {"item_id": f"msg_{piece.id}", "output_index": 0, "content_index": 0}
        if self.number < 0:
            body = responses_body(self.request, piece, None)
            yield self._event("response.created", response=body)
            yield self._event("response.in_progress", response=body)
            item = _output_item(piece.id, "", "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **at, part=_part(""))
        if piece.text:
            yield self._event("response.output_text.delta", **at, delta=piece.text, logprobs=[])
        if piece.completion is not None:
            whole = piece.completion.text
            yield self._event("response.output_text.done", **at, text=whole, logprobs=[])
            yield self._event("response.content_part.done", **at, part=_part(whole))
            item = _output_item(piece.id, whole, "completed")
            yield self._event("response.output_item.done", output_index=0, item=item)
            body = responses_body(self.request, piece, replace(piece.completion, reasoning=""))
            yield self._event(f"response.{body['status']}", response=body)

    def end(self) -> Iterator[dict[str, Any]]:
        """Nothing: the last event says that it is the last."""
        return iter(())

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        return {"type": kind, "sequence_number": self.number, **fields}
