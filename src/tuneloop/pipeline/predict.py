"""Answers to rows: each formatted as in training, in blocks, in order; an unusable row is reported with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress, reporter, reporting
from tuneloop.data.formats import Rejection
from tuneloop.data.task import ReadPrompt, TaskPrompt, prompt_reader
from tuneloop.inference.labels import label_distribution
from tuneloop.inference.request import Request
from tuneloop.pipeline.targets import TaskTarget, open_with_task
from tuneloop.records.completion import Completion

T = TypeVar("T")
Record = Mapping[str, Any]
SAMPLE = 2000  # records that show which columns there are
WRITTEN_AT_ONCE, SCORED_AT_ONCE = 64, 256  # rows of a block whose answers are written, or whose labels are scored
USUAL_ANSWER = 256  # tokens of an answer, where no training rows tell


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one row.

    Args:
        probability: that the model writes this label, given that it writes one of them. Without `top` a lower bound,
            close for a sure model: labels that can't win are not computed to their end.
    """

    text: str = ""  # the answer; of a classifier the label. Empty where there is none
    label: str | None = None  # the label, where labels were scored
    probability: float | None = None
    probabilities: dict[str, float] | None = None  # of the likeliest labels, with `top`
    finish: Literal["stop", "length", ""] = ""  # the model ended its answer; the limit cut it; there is no answer
    prompt_tokens: int = 0  # read
    tokens: int = 0  # written
    error: str = ""  # why there is no answer


def prediction_of(answer: Completion, probabilities: dict[str, float] | None = None) -> Prediction:
    """A completion as a prediction."""
    label = answer.text if answer.finish == "choice" else None
    probability = None if label is None else answer.label_probability
    finish: Literal["stop", "length", ""] = "length" if answer.finish == "length" else "stop"
    tokens = answer.prompt_tokens, answer.completion_tokens
    finish = "" if answer.error else finish
    return Prediction(answer.text, label, probability, probabilities, finish, *tokens, answer.error)


@dataclass(frozen=True)
class Options:
    """How rows become prompts, and what is answered."""

    column: str = ""  # the column with the text; empty: those of training
    system: str | None = None  # in place of the trained system turn; "" for none
    top: int = 0  # probabilities of so many labels for each row
    max_new_tokens: int | None = None  # longest answer; None: that of training


def predict(
    target: str | Path | TaskTarget,
    rows: Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    column: str = "",
    system: str | None = None,
    top: int = 0,
    max_new_tokens: int | None = None,
) -> Iterator[Prediction]:
    """A model's answers to rows.

    Args:
        target: a folder (a run, an exported artifact, an adapter, a model), a model's name, or an open `TaskTarget`.
        rows: each a record with the columns of training, a text, or a list of turns.
        column: the column with the text; default: those that were trained.
        system: takes the place of the trained system turn; "" for none.
        top: give the probabilities of so many labels with each answer; of a classifier only.
        max_new_tokens: longest answer; default: that of training, else 256.

    Returns:
        One `Prediction` for each row, in order; an unusable row has an `error`. Answers come in blocks of rows as they
        are taken from the iterator.

    Raises:
        UserError: no such target, or rows without the columns that it needs: at once, before the first answer.
    """
    opened = target if isinstance(target, TaskTarget) else open_with_task(str(target))

    def record(row: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        if isinstance(row, str):
            return {"text": row}
        return row if isinstance(row, Mapping) else {"messages": list(row)}

    stream = map(record, rows)
    sample = list(itertools.islice(stream, SAMPLE))
    if not sample:
        return iter(())
    total = len(rows) if isinstance(rows, Sequence) else 0
    asker = Asker(opened, Options(column, system, top, max_new_tokens), sample)
    return asker.answers(itertools.chain(sample, stream), total=total)


@dataclass
class Asker:
    """A target with the way in which records become its prompts."""

    target: TaskTarget
    options: Options
    sample: Sequence[Mapping[str, Any]]  # records that show which columns there are
    read: ReadPrompt = field(init=False)

    def __post_init__(self) -> None:
        task = self.target.task
        self.read = prompt_reader(task, self.sample, column=self.options.column, system=self.options.system)
        if self.options.top and not self.target.scores_labels:
            what = "Only labels have probabilities, and this target writes its answers"
            step = "leave --top out, or name a run that was trained to classify"
            raise UserError(what, where="--top", next_step=step)

    @property
    def block(self) -> int:
        """Rows that are answered at once; fixed, so that a resumed run has the same blocks."""
        return SCORED_AT_ONCE if self.target.scores_labels else WRITTEN_AT_ONCE

    @property
    def limit(self) -> int:
        """Longest answer, in tokens."""
        task = self.target.task
        return self.options.max_new_tokens or (task.max_new_tokens if task else USUAL_ANSWER)

    def answers(
        self, records: Iterable[Record | Rejection], *, total: int = 0, before: int = 0
    ) -> Iterator[Prediction]:
        """An answer to each record, block by block; `total`, `before`: all rows, and those before these, for progress.

        What could not be read is a `Rejection`, which becomes an answer with an error.
        """
        for block in batched(records, self.block):
            yield from self.answer_block(block, total=total, before=before)
            before += len(block)

    def answer_block(
        self, records: Sequence[Record | Rejection], *, total: int = 0, before: int = 0
    ) -> list[Prediction]:
        """Answers to the records of a block; `total` and `before` as for `answers`."""

        outer = reporter().progress

        def scaled(task: str, at: float, of: float, /, **info: float | str) -> None:
            if total and at < of:  # of the block, scaled to its rows
                outer("predicting", before + at * len(records) / max(of, 1), total, **info)

        requests: dict[int, Request] = {}
        predictions: list[Prediction] = [Prediction()] * len(records)
        for i, record in enumerate(records):
            prompt = record if isinstance(record, Rejection) else self.read(record)
            if isinstance(prompt, Rejection):
                predictions[i] = Prediction(error=f"{prompt.reason}: {prompt.detail}")
            else:
                requests[i] = self.request(prompt)
        with reporting(progress=scaled):
            for i, answer in zip(requests, self.ask(list(requests.values())), strict=True):
                predictions[i] = answer
        if total:
            progress("predicting", before + len(records), total)
        return predictions

    def request(self, prompt: TaskPrompt) -> Request:
        """A prompt as a request."""
        return Request(prompt.messages, prompt.tools, prompt.continues, max_new_tokens=self.limit)

    def ask(self, requests: Sequence[Request]) -> Iterator[Prediction]:
        """The target's answers: labels where it was trained to choose one, else texts."""
        task, target = self.target.task, self.target.target
        if not self.target.scores_labels:
            yield from map(prediction_of, target.complete(requests))
            return
        assert task is not None and task.labels is not None
        top, model = self.options.top, self.target.model
        assert model is not None
        tokens = model.label_tree(task.labels).tokens if top else {}
        for answer in target.score(requests, task.labels, exact=bool(top)):
            likeliest = label_distribution(answer, tokens, top) if top and not answer.error else None
            yield prediction_of(answer, likeliest)


def batched(records: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """`itertools.batched`, which Python 3.11 has not."""
    left = iter(records)
    while block := tuple(itertools.islice(left, size)):
        yield block
