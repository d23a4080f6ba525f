"""Answers as OpenAI's endpoints give them, whole and in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.core.ids import uuid7
from tuneloop.core.text import storable
from tuneloop.inference import TextStream
from tuneloop.models.chat import may_be_calls, read_calls
from tuneloop.records.completion import Completion
from tuneloop.serving.gateway import Piece, ServedModel
from tuneloop.serving.http.api_request import ApiRequest

_FINISH = {"stop": "stop", "choice": "stop", "length": "length"}


def calls_of(
    text: str, tools: Sequence[Mapping[str, Any]], *, only_one: bool, id_: str = ""
) -> tuple[str, list[dict[str, Any]]]:
    """What an answer says before its calls, and these in OpenAI's form.

    Args:
        tools: that may be called.
        only_one: whether at most one is called.
        id_: of the answer, from which the calls get their ids; empty: theirs come once.
    """
    said, calls = read_calls(text, tools) if tools else (text, [])
    written = []
    for number, (name, arguments) in enumerate(calls[:1] if only_one else calls):
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        function = {"name": name, "arguments": storable(text)}
        call_id = f"call_{id_.replace('-', '')}{number}" if id_ else f"call_{uuid7()[-12:]}"
        written.append({"id": call_id, "type": "function", "function": function})
    return said, written


@dataclass
class CallSplitter:
    """Keeps text of a streamed answer back that may become calls, until it is known which of the two it is."""

    request: ApiRequest
    id_: str = ""  # see `calls_of`
    pending: str = ""
    has_said: bool = False  # a text was given out

    def split(self, text: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """The text that can be given out now, and, behind the last piece, the calls."""
        text, calls = self.pending + text, list[dict[str, Any]]()
        if tools := self.request.tools:
            names = [str(tool["function"]["name"]) for tool in tools]
            call_start = may_be_calls(text, names, first=not self.has_said)
            text, self.pending = text[:call_start], text[call_start:]
            if last:
                rest, calls = calls_of(self.pending, tools, only_one=self.request.one_call, id_=self.id_)
                text += rest
        self.has_said = self.has_said or bool(text.strip())
        return text, calls


def usage(*answers: Sequence[Completion]) -> dict[str, Any]:
    """Tokens of one or several answers together; the prompt of an answer counts once, whatever its choices."""
    prompt = sum([choices[0].prompt_tokens for choices in answers if choices])
    completion = sum([choice.completion_tokens for choices in answers for choice in choices])
    cached = sum([choices[0].cached_tokens for choices in answers if choices])
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


def chat_body(request: ApiRequest, piece: Piece, completions: Sequence[Completion]) -> dict[str, Any]:
    """The body of `/v1/chat/completions`; `piece`: the last one of the answer."""
    model = piece.model
    choices: list[dict[str, Any]] = []
    for index, completion in enumerate(completions):
        said, calls = calls_of(completion.text, request.tools, only_one=request.one_call)
        content = None if calls and not said else said
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if completion.reasoning:
            message["reasoning_content"] = completion.reasoning
        if calls:
            message["tool_calls"] = calls
        choices.append({
            "index": index, "message": message, "logprobs": chat_logprobs(completion, model),
            "finish_reason": "tool_calls" if calls else _FINISH.get(completion.finish, "stop"),
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
    """The events of a streamed chat answer."""

    splitters: dict[int, CallSplitter] = field(default_factory=dict)  # by the choice

    def events(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What a piece of the answer becomes."""
        self.last, index, completion = piece, piece.index, piece.completion
        if index not in self.choices:
            self.choices.add(index)
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
        if piece.reasoning:
            yield self._chunk(index, {"reasoning_content": piece.reasoning})
        splitter = self.splitters.setdefault(index, CallSplitter(self.request))
        text, calls = splitter.split(piece.text, last=completion is not None)
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
