"""Answers to many prompts: what they have in common is read once, and rows of similar length go together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuneloop.core.device import backend, in_parts
from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress
from tuneloop.core.units import counted
from tuneloop.inference.local.batches import batched_by_length, prompt_too_large, read_shared, split_prompts
from tuneloop.inference.local.engine import ActiveRow, Beginning, DecodingBatch, Watch
from tuneloop.inference.local.grammar import Grammars
from tuneloop.inference.local.sampling import Sampling
from tuneloop.inference.request import Request, with_adapter
from tuneloop.models.adapters import applied
from tuneloop.models.load import Model
from tuneloop.models.shared import check_adapter
from tuneloop.records.completion import Completion


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sequence[Sampling] | None = None,
    batch_tokens: int = 24576,
    batch_rows: int = 64,
    task: str = "generating",
) -> list[Completion]:
    """Answers to prompts by the model as it stands, greedy where nothing else is given.

    Args:
        prompts: token ids, each ending with the assistant's header (`Template.prompt_ids`).
        max_new_tokens: length at which an answer is cut.
        sampling: how the tokens of each answer are drawn, one a prompt; None: all greedily. An answer depends on its own
            prompt and sampling alone, not on the others.
        batch_tokens, batch_rows: bounds of one batch, prompt tokens included.

    Returns:
        One answer a prompt, in order.
    """
    if sampling is not None and len(sampling) != len(prompts):
        raise ValueError(f"{len(sampling)} samplings for {counted(len(prompts), 'prompt')}")
    drawn = {} if sampling is None else {i: {"sampling": each} for i, each in enumerate(sampling)}
    requests = [
        Request(ids=ids, max_new_tokens=max_new_tokens, **drawn.get(i, {}))  # type: ignore[arg-type]
        for i, ids in enumerate(prompts)
    ]
    return answer_requests(model, requests, batch_tokens=batch_tokens, batch_rows=batch_rows, task=task)


def answer_requests(
    model: Model,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 24576,
    batch_rows: int = 64,
    grammars: Grammars | None = None,
    watch: Watch | None = None,
    task: str = "generating",
) -> list[Completion]:
    """Answers to requests with token ids, in order; those with the same adapter are answered together.

    Args:
        grammars: of the model, where they are kept from one call to the next.
        watch: see `DecodingBatch`; a row whose answer has no token yet begins, and may begin again where memory ran out.

    Raises:
        UserError: an adapter is not loaded, or a schema can't be held to.
    """
    held_to = grammars or Grammars(model.template, model.head.shape[0])

    def held(request: Request) -> ActiveRow:
        made = held_to.constraint(request.schema) if request.schema is not None else None
        if isinstance(made, str):
            raise UserError(made.partition(": ")[2], where="schema", next_step="change the schema, or ask without one")
        return ActiveRow(request, constraint=made)

    named = [with_adapter(request) for request in requests]
    answers: dict[int, Completion] = {}
    if named:
        progress(task, 0, len(named))
    for adapter in dict.fromkeys(request.adapter for request in named):
        check_adapter(model, adapter)
        chosen = [i for i, request in enumerate(named) if request.adapter == adapter]
        split = split_prompts([named[i].ids for i in chosen])
        with torch.inference_mode(), applied(adapter):
            beginning = Beginning(split.shared, read_shared(model, split.shared, task))
        lengths = [len(rest) + named[i].max_new_tokens for rest, i in zip(split.rests, chosen, strict=True)]

        def answer(places: Sequence[int], chosen: list[int] = chosen, beginning: Beginning = beginning) -> None:
            batch, rows = DecodingBatch(model, beginning, watch), {chosen[i]: held(named[chosen[i]]) for i in places}
            batch.join(list(rows.values()))
            while batch.active:
                progress(task, len(answers) + sum(map(_share, rows.values())), len(named))
                batch.step(backend(model.device).tokens_unread)
            answers.update({i: row.completion for i, row in rows.items() if row.completion is not None})
            progress(task, len(answers), len(named))

        def places_taken(places: Sequence[int], lengths: list[int] = lengths) -> int:
            return len(places) * max(lengths[i] for i in places)

        def refusal(place: int, chosen: list[int] = chosen) -> UserError:
            return prompt_too_large(len(named[chosen[place]].ids))

        in_parts(batched_by_length(lengths, batch_tokens, batch_rows), answer, places_taken, refusal)
    return [answers[i] for i in sorted(answers)]


def _share(row: ActiveRow) -> float:
    return 1.0 if row.completion is not None else len(row.new) / row.request.max_new_tokens
