"""Answers to many prompts: what they have in common is read once, and rows of similar length go together."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.core.progress import Progress, no_progress
from tuneloop.inference.batches import batched_by_length, read_shared, split_prompts
from tuneloop.inference.engine import Batch, Beginning, Row
from tuneloop.inference.request import Request, with_adapter
from tuneloop.inference.sampling import Sampling
from tuneloop.models.adapters import applied
from tuneloop.models.alongside import check_adapter
from tuneloop.models.load import Model
from tuneloop.records.completion import Completion


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sequence[Sampling] | None = None,
    batch_tokens: int = 24576,
    batch_rows: int = 64,
    progress: Progress = no_progress,
    task: str = "generating",
) -> list[Completion]:
    """Answers to prompts by the model as it stands, greedy where nothing else is given.

    Args:
        prompts: token ids, each ending with the assistant's header (`Template.prompt_ids`).
        max_new_tokens: length at which an answer is cut.
        sampling: how the tokens of each answer are drawn, one a prompt; None: all greedily. An answer depends on its own
            prompt and sampling alone, not on the others.
        batch_tokens, batch_rows: bounds of one batch, prompt tokens included.
        progress: gets rows; a row that is being written counts by its share of `max_new_tokens`.

    Returns:
        One answer a prompt, in order.
    """
    if sampling is not None and len(sampling) != len(prompts):
        raise ValueError(f"{len(sampling)} samplings for {len(prompts)} prompts")
    drawn = {} if sampling is None else {i: {"sampling": each} for i, each in enumerate(sampling)}
    requests = [
        Request(ids=ids, max_new_tokens=max_new_tokens, **drawn.get(i, {}))  # type: ignore[arg-type]
        for i, ids in enumerate(prompts)
    ]
    return answer_requests(
        model, requests, batch_tokens=batch_tokens, batch_rows=batch_rows, progress=progress, task=task
    )


def answer_requests(
    model: Model,
    requests: Sequence[Request],
    *,
    batch_tokens: int = 24576,
    batch_rows: int = 64,
    progress: Progress = no_progress,
    task: str = "generating",
) -> list[Completion]:
    """Answers to requests with token ids, in order; those with the same adapter are answered together.

    Raises:
        UserError: an adapter is not loaded.
    """
    import torch

    rows = [Row(with_adapter(request)) for request in requests]
    if rows:
        progress(task, 0, len(rows))
    done = 0
    for adapter in dict.fromkeys(row.request.adapter for row in rows):
        check_adapter(model, adapter)
        chosen = [row for row in rows if row.request.adapter == adapter]
        split = split_prompts([row.request.ids for row in chosen])
        with torch.inference_mode(), applied(adapter):
            beginning = Beginning(split.shared, read_shared(model, split.shared, progress, task))
        lengths = [len(r) + row.request.max_new_tokens for r, row in zip(split.rests, chosen, strict=True)]
        for places in batched_by_length(lengths, batch_tokens, batch_rows):
            batch, some = Batch(model, beginning), [chosen[i] for i in places]
            batch.join(some)
            while batch.active:
                progress(task, done + sum(map(_share, some)), len(rows))
                batch.step()
            done += len(some)
            progress(task, done, len(rows))
    return [row.completion for row in rows if row.completion is not None]


def _share(row: Row) -> float:
    return 1.0 if row.completion is not None else len(row.new) / row.request.max_new_tokens
