"""Answers to many prompts: what they have in common is read once, and rows of similar length go together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from tuneloop.core.device import backend, in_parts
from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.inference.grammar import Grammars
from tuneloop.inference.local.batches import (
    batched_by_length,
    places_taken,
    prompt_too_large,
    read_shared,
    split_prompts,
)
from tuneloop.inference.local.engine import ActiveRow, Beginning, DecodingBatch, Watch
from tuneloop.inference.request import GREEDY, Request, Sampling, with_adapter
from tuneloop.models import Model
from tuneloop.models.adapters import applied, check_adapter
from tuneloop.records.completion import Completion

BATCH_TOKENS, BATCH_ROWS = 24576, 64  # bounds of one batch, prompt tokens included


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sequence[Sampling] | None = None,
    watch: Watch | None = None,
    task: str = "generating",
) -> list[Completion]:
    """Answers to prompts by the model as it stands, greedy where nothing else is given.

    Args:
        prompts: token ids, each ending with the assistant's header (`Template.prompt_ids`).
        max_new_tokens: length at which an answer is cut.
        sampling: how the tokens of each answer are drawn, one a prompt; None: all greedily. An answer depends on its
            own prompt and sampling alone, not on the others.
        watch: see `DecodingBatch`; what it raises ends all answers.

    Returns:
        One answer a prompt, in order.
    """
    if sampling is not None and len(sampling) != len(prompts):
        raise ValueError(f"{len(sampling)} samplings for {counted(len(prompts), 'prompt')}")
    pairs = zip(prompts, [GREEDY] * len(prompts) if sampling is None else sampling, strict=True)
    requests = [Request(ids=ids, max_new_tokens=max_new_tokens, sampling=how) for ids, how in pairs]
    return answer_requests(model, requests, watch=watch, task=task)


def answer_requests(
    model: Model,
    requests: Sequence[Request],
    *,
    grammars: Grammars | None = None,
    watch: Watch | None = None,
    task: str = "generating",
) -> list[Completion]:
    """Answers to requests with token ids, in order; those with the same adapter are answered together.

    Args:
        grammars: of the model, where they are kept from one call to the next.
        watch: see `DecodingBatch`; a row whose answer has no token yet begins, and may begin again where memory ran
            out.

    Raises:
        UserError: an adapter is not loaded, or a schema can't be held to.
    """
    grammars = grammars or Grammars(model.template, model.head.shape[0])
    requests = [with_adapter(request) for request in requests]
    answers: dict[int, Completion] = {}

    def active_row(request: Request) -> ActiveRow:
        constraint = grammars.constraint(request.schema) if request.schema is not None else None
        if isinstance(constraint, str):
            step = "change the schema, or leave it out"
            raise UserError(constraint.partition(": ")[2], where="schema", next_step=step)
        return ActiveRow(request, constraint=constraint)

    def answer(places: Sequence[int], beginning: Beginning) -> None:
        batch, rows = DecodingBatch(model, beginning, watch), {i: active_row(requests[i]) for i in places}
        batch.join(list(rows.values()))
        while batch.active:
            progress(task, len(answers) + sum(map(_share, rows.values())), len(requests))
            batch.step(backend(model.device).tokens_unread)
        answers.update({i: row.completion for i, row in rows.items() if row.completion is not None})
        progress(task, len(answers), len(requests))

    if requests:
        progress(task, 0, len(requests))
    for adapter in dict.fromkeys(request.adapter for request in requests):
        check_adapter(model, adapter)
        places = [i for i, request in enumerate(requests) if request.adapter == adapter]
        split = split_prompts([requests[i].ids for i in places])
        with torch.inference_mode(), applied(adapter):
            beginning = Beginning(split.shared, read_shared(model, split.shared, task))
        lengths = {i: len(rest) + requests[i].max_new_tokens for rest, i in zip(split.rests, places, strict=True)}
        batches = batched_by_length(list(lengths.values()), BATCH_TOKENS, BATCH_ROWS)
        in_parts(
            ([places[i] for i in batch] for batch in batches),
            partial(answer, beginning=beginning),
            partial(places_taken, lengths),
            lambda row_index: prompt_too_large(len(requests[row_index].ids)),
        )
    return [answers[i] for i in sorted(answers)]


def _share(row: ActiveRow) -> float:
    return 1.0 if row.completion is not None else len(row.new) / row.request.max_new_tokens
