"""What is requested of a model: one record for every engine and target; and a prompt as token ids."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core import json_schema
from tuneloop.core.bounded_work import TooBusy, known, then
from tuneloop.core.errors import UserError
from tuneloop.models.adapters import ATTACHED, BASE, applied_now
from tuneloop.models.chat import ReasoningStream, Template, TemplateError, split_reasoning
from tuneloop.records.completion import ENGINE, Completion
from tuneloop.records.rows import Message

MOST_LOGPROBS = 20  # likeliest tokens next to each written one, as OpenAI's API allows
NO_PROMPT = "no_prompt: the request has no turns, no text and no tokens"
WRITES_FREELY = "constrained: choices are scored here, not written; a serving engine does that"


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are drawn: the one place for these options, whichever engine applies them.

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token always.
        top_p: tokens are drawn from the fewest likeliest ones whose probabilities add up to this (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751); 1: from all.
        seed: of this answer's draws.
        top_k: tokens are drawn from the `top_k` likeliest ones; 0: from all.
        min_p: only tokens with at least this share of the likeliest one's probability are drawn (Nguyen et al. 2024,
            arXiv 2407.01082); 0: all.
        repetition_penalty: logits of tokens of the prompt or the answer are divided by it where they are positive and
            multiplied where they are negative (Keskar et al. 2019, arXiv 1909.05858); 1: none. Greedy answers too.

    The filters apply in the order top_k, top_p, min_p, each to what the one before has left, after the temperature.

    Raises:
        UserError: a value that makes no sense.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = {
            "temperature": 0 <= self.temperature < math.inf,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": 0 < self.repetition_penalty < math.inf,
        }
        for name, possible in checks.items():
            if not possible:
                message = f"{name}={getattr(self, name):g} is not possible"
                raise UserError(message, where=name, next_step=f"give {POSSIBLE[name]}")


POSSIBLE = {
    "temperature": "0 (always the likeliest token) or more; 0.7 to 1 is usual",
    "top_p": "more than 0, at most 1 (all tokens)",
    "top_k": "0 (all tokens) or more",
    "min_p": "0 (all tokens) to 1",
    "repetition_penalty": "1 (none) or more; 1.1 is usual",
}
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how it is to be answered.

    A prompt is a conversation, a text to continue, or token ids. Our own engine reads ids, which a target makes
    (`with_ids`); an endpoint takes the conversation.

    Raises:
        UserError: a value that makes no sense.
    """

    messages: Sequence[Message] = ()  # the turns before the answer
    tools: Sequence[Mapping[str, Any]] = ()  # schemas of the functions that may be called
    continues: str | None = None  # plain text to continue, in place of turns
    ids: Sequence[int] = ()  # the prompt as tokens; used as it is
    max_new_tokens: int = 256  # length at which the answer is cut
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()  # strings that end the answer; they are not part of it
    logprobs: int | None = None  # of the written tokens and of so many likeliest ones next to each; None: none
    adapter: str = ATTACHED  # hash of a loaded one, `base` for none; default: what applies in the requesting thread
    id: str = ""  # of the row that the request is about; not part of the prompt
    choices: tuple[str, ...] = ()  # the answer is one of these labels, with its probability if known; empty: free text
    schema: Mapping[str, Any] | None = None  # JSON Schema that the answer, a JSON text, fulfils; None: free text
    as_written: bool = False  # reasoning stays in the text, tags and all
    gives_way: bool = False  # compute it in what other requests leave idle, where the engine can

    def __post_init__(self) -> None:
        message = where = step = ""
        if self.max_new_tokens < 1:
            message, where = f"An answer of {self.max_new_tokens} tokens is not possible", "max_new_tokens"
            step = "give 1 or more"
        elif isinstance(self.stop, str) or not all(self.stop):
            message, where = "A stop string must not be empty", "stop"
            step = "give a list of strings, or leave it out"
        elif self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            message, where = f"Log probabilities of {self.logprobs} tokens are not possible", "logprobs"
            step = f"give 0 to {MOST_LOGPROBS}"
        elif isinstance(self.choices, str) or not all(self.choices) or len(set(self.choices)) < len(self.choices):
            message, where = "Choices are different texts, none of them empty", "choices"
            step = "give a list of labels"
        elif self.choices and self.schema is not None:
            message, where = "An answer is one of the choices or fulfils a schema, not both", "choices, schema"
            step = "leave one of them out"
        if message:
            raise UserError(message, where=where, next_step=step)

    @property
    def named_adapter(self) -> str:
        """The adapter that it names; the base where it names none."""
        return BASE if self.adapter == ATTACHED else self.adapter


Requests = Sequence[Request]


@dataclass(frozen=True, slots=True)
class Update:
    """What has become known of an answer: a further piece of its text or reasoning, and at the end all of it."""

    text: str = ""
    completion: Completion | None = None
    reasoning: str = ""


class Separation:
    """Takes an answer's reasoning out of its text, update by update.

    Args:
        request: with token ids, where they are known here.
        template: by which these became a prompt; None: a server's own.
    """

    def __init__(self, request: Request, template: Template | None) -> None:
        self.idle = request.as_written or bool(request.choices) or request.continues is not None
        opened = template is not None and template.opens_reasoning(request.ids)
        self._opened, self._stream = opened, ReasoningStream(opened)

    def __call__(self, update: Update) -> Update:
        """An update with its text and its reasoning apart."""
        if self.idle:
            return update
        completion = update.completion
        reasoning, text = self._stream.push(update.text, last=completion is not None)
        return Update(text, completion and self.of(completion), reasoning)

    def of(self, completion: Completion) -> Completion:
        """A whole answer with its text and its reasoning apart."""
        if self.idle:
            return completion
        reasoning, text = split_reasoning(completion.text, opened=self._opened)
        return completion if reasoning is None else replace(completion, text=text or "", reasoning=reasoning)


def with_adapter(request: Request) -> Request:
    """A request with its adapter: where it names none, the one that applies in this thread."""
    now = applied_now() if request.adapter == ATTACHED else request.adapter
    return request if now == request.adapter else replace(request, adapter=now)


def with_ids(
    template: Template, context: int, request: Request, *, room: int = 1, engine: str = ENGINE
) -> Request | Completion:
    """A request with its prompt as tokens, or why it can't be answered.

    Args:
        context: tokens that the model reads, the answer included.
        room: tokens that must fit behind the prompt.
        engine: that would answer.
    """
    ids = request.ids
    if not (ids or request.messages or request.continues is not None):
        return refused(request, NO_PROMPT, engine)
    try:
        if not ids and request.continues is not None:
            ids = template.document_ids(request.continues)
        elif not ids:
            ids = template.prompt_ids(list(request.messages), list(map(dict, request.tools)))
    except TemplateError as error:
        return refused(request, f"template_error: {error}", engine)
    if len(ids) + room > context:
        return refused(request, too_long(ids, context), engine)
    return replace(request, ids=ids, max_new_tokens=min(request.max_new_tokens, context - len(ids)))


def too_long(ids: Sequence[int], context: int) -> str:
    """Why a prompt that leaves no room for an answer is refused."""
    return f"too_long: {len(ids):,} tokens, and the model reads {context:,} with its answer"


def refused(request: Request, reason: str, engine: str = ENGINE) -> Completion:
    """The completion of a request that gets no answer."""
    tokens = len(request.ids)
    return Completion(finish="error", prompt_tokens=tokens, error=reason, engine=engine, adapter=request.adapter)


def schema_problem(schema: Mapping[str, Any]) -> str:
    """Why answers are not held to a schema; empty where they are, unless an engine has another reason."""
    reason = json_schema.schema_problem(schema)
    return f"no_schema: {reason}" if reason else ""


def fit_checked(request: Request, completion: Completion) -> Future[Completion]:
    """An answer, or in its place that it breaks its schema, once that is known; see `json_schema.check_fit`."""
    if request.schema is None or completion.finish != "stop":
        return known(completion)

    def checked(fit: Future[str]) -> Completion:
        try:
            reason = fit.result()
            error = f"no_schema: the answer breaks its schema: {reason}" if reason else ""
        except TooBusy as busy:
            return replace(completion, finish="error", error=f"busy: {busy}", retry_after=busy.retry_after)
        except json.JSONDecodeError:
            error = "no_schema: the answer is no JSON"
        except Exception as failure:  # of what makes no schema, the library has several
            error = f"no_schema: the answer can't be checked: {' '.join(str(failure).split())[:160]}"
        return replace(completion, finish="error", error=error) if error else completion

    return then(json_schema.check_fit(request.schema, completion.text), checked)
