"""What is requested of a model: one record for every engine and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.inference.local.sampling import GREEDY, Sampling
from tuneloop.models.adapters import ATTACHED, applied_now
from tuneloop.records.rows import Message

MOST_LOGPROBS = 20  # likeliest tokens next to each written one, as OpenAI's API allows


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how it is to be answered.

    A prompt is a conversation, a text to continue with, or token ids; our own engine reads the ids and a target makes them
    (`LocalModel.rendered`), an endpoint takes the conversation.

    Args:
        messages: the turns before the answer.
        tools: schemas of the functions that may be called.
        continues: plain text to continue with, in place of turns.
        ids: the prompt as tokens; where it is given, it is used as it is.
        max_new_tokens: length at which the answer is cut.
        sampling: how its tokens are drawn.
        stop: strings that end the answer; they are not part of it.
        logprobs: log probabilities of the written tokens and of so many likeliest ones next to each; None: none.
        adapter: hash of a loaded adapter, `base` for none; default: what applies in the requesting thread, or
            else the model as it is.
        id: of the row that the request is about; not part of the prompt.
        choices: the answer is one of these labels, with its probability where the engine knows it; empty: free text.
        schema: JSON Schema that the answer, a JSON text, fulfils; None: free text.
        gives_way: it is computed in what other requests leave idle, by engines that can do so.

    Raises:
        UserError: a value that makes no sense.
    """

    messages: Sequence[Message] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    continues: str | None = None
    ids: Sequence[int] = ()
    max_new_tokens: int = 256
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    adapter: str = ATTACHED
    id: str = ""
    choices: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    gives_way: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(
                f"An answer of {self.max_new_tokens} tokens is not possible", where="max_new_tokens",
                next_step="give 1 or more",
            )  # fmt: skip
        if isinstance(self.stop, str) or not all(self.stop):
            raise UserError(
                "A stop string must not be empty", where="stop", next_step="give a list of strings, or leave it out"
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise UserError(
                f"Log probabilities of {self.logprobs} tokens are not possible", where="logprobs",
                next_step=f"give 0 to {MOST_LOGPROBS}",
            )  # fmt: skip
        if isinstance(self.choices, str) or not all(self.choices) or len(set(self.choices)) < len(self.choices):
            raise UserError(
                "Choices are different texts, none of them empty", where="choices", next_step="give a list of labels"
            )
        if self.choices and self.schema is not None:
            raise UserError(
                "An answer is one of the choices or fulfils a schema, not both", where="choices, schema",
                next_step="leave one of them out",
            )  # fmt: skip


WRITES_FREELY = "constrained: choices are scored here, not written; ask a serving engine for them"


def with_adapter(request: Request) -> Request:
    """A request that says its adapter: where it names none, the one that applies in this thread."""
    now = applied_now() if request.adapter == ATTACHED else request.adapter
    return request if now == request.adapter else replace(request, adapter=now)
