"""A GGUF file's answers to a data set's rows, by llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.evaluate.config import EvaluateConfig
from tuneloop.inference.request import Request
from tuneloop.records.rows import Dataset, Message, Row

if TYPE_CHECKING:
    from tuneloop.inference.llamacpp.target import GgufTarget
    from tuneloop.workflows.systems import SystemAnswers


def ask_gguf(
    target: GgufTarget,
    dataset: Dataset,
    rows: Sequence[Row],
    config: EvaluateConfig,
    *,
    prompts: Sequence[Sequence[Message]] | None = None,
    perplexity: bool = True,
    progress: Progress = no_progress,
    task: str = "answering",
) -> SystemAnswers:
    """A GGUF file's answers to rows, asked as a run is: labels are scored, else the likeliest text is written.

    Args:
        prompts: each row's turns before its answer; default: its own.
        perplexity: also measure the loss of the reference answers, where texts are written from the rows alone.

    Raises:
        UserError: a row can't be asked.
    """
    from tuneloop.workflows.systems import SystemAnswers, longest_answer, uses_choice

    began = time.monotonic()
    is_choice = uses_choice(dataset, config)
    limit = 1 if is_choice else longest_answer(target.template, dataset, config)
    turns = prompts if prompts is not None else [row.prompt for row in rows]
    requests = [
        Request(each, row.tools or (), max_new_tokens=limit, id=row.id)
        for each, row in zip(turns, rows, strict=True)
    ]  # fmt: skip
    if is_choice:
        labels = dataset.manifest.labels or []
        answers = list(target.score(requests, labels, exact=True, progress=progress, task=task))
    else:
        answers = list(target.complete(requests, progress=progress, task=task))
    for row, answer in zip(rows, answers, strict=True):
        if answer.error:
            raise UserError(
                f"A row can't be asked: {answer.error}", where=f"row {row.id}",
                next_step="leave it out, or prepare with a smaller data.max_length",
            )  # fmt: skip
    seconds = time.monotonic() - began
    if perplexity and prompts is None and not is_choice and dataset.task != "classification":
        known = [target.template.render(row.messages, row.tools) for row in rows]
        fits = target.fits(known, progress=progress, task=f"{task}: reference answers")
        answers = [replace(a, loss=fit.loss, loss_tokens=fit.tokens) for a, fit in zip(answers, fits, strict=True)]
    return SystemAnswers(answers, seconds)
