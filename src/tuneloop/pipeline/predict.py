"""Answers to rows: each row formatted as in training, in blocks, in order, a row that can't be asked reported with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.ui import progress, reporter, reporting
from tuneloop.data.formats import Rejection
from tuneloop.data.task import ReadPrompt, TaskPrompt, prompt_reader
from tuneloop.inference.local.labels import label_distribution
from tuneloop.inference.request import Request
from tuneloop.pipeline.targets import TaskTarget, open_with_task
from tuneloop.records.completion import Completion

T = TypeVar("T")
SAMPLE = 2000  # records that show which columns there are
WRITTEN_AT_ONCE, SCORED_AT_ONCE = 64, 256  # rows of a block whose answers are written, or whose labels are scored
USUAL_ANSWER = 256  # tokens of an answer, where no training rows tell


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one row.

    Args:
        text: the answer; of a classifier the label. Empty where there is none.
        label: the label, where labels were scored.
        probability: that the model writes this label, given that it writes one of them. Without `top` a lower bound, close for a
            sure model: labels that can't win are not computed to their end.
        probabilities: of the likeliest labels, where they were asked for.
        finish: `stop`: the model ended its answer; `length`: the limit cut it; "" without answer.
        prompt_tokens, tokens: read and written.
        error: why there is no answer.
    """

    text: str = ""
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    finish: Literal["stop", "length", ""] = ""
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


def prediction_of(answer: Completion, probabilities: dict[str, float] | None = None) -> Prediction:
    """A completion as a prediction."""
    label = answer.text if answer.finish == "choice" else None
    finish: Literal["stop", "length", ""] = "" if answer.error else "length" if answer.finish == "length" else "stop"
    sure = None if label is None else answer.label_probability
    return Prediction(
        answer.text, label, sure, probabilities, finish, answer.prompt_tokens, answer.completion_tokens, answer.error
    )


@dataclass(frozen=True)
class Options:
    """How rows are asked.

    Args:
        column: the column with the text; default: those of training.
        system: in place of the trained system turn; "" for none.
        top: probabilities of so many labels for each row.
        max_new_tokens: longest answer; default: that of training.
    """

    column: str = ""
    system: str | None = None
    top: int = 0
    max_new_tokens: int | None = None


def predict(
    target: str | Path | TaskTarget,
    rows: Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    column: str = "",
    system: str | None = None,
    top: int = 0,
    max_new_tokens: int | None = None,
) -> Iterator[Prediction]:
    """Ask a model about rows.

    Args:
        target: a run's folder, an exported artifact's, an adapter's or a model's, a model's name, or an open `TaskTarget`.
        rows: each a record with the columns of training, a text, or a list of turns.
        column: the column with the text that is asked; default: those that were trained.
        system: takes the place of the trained system turn; "" for none.
        top: give the probabilities of so many labels with each answer; of a classifier only.
        max_new_tokens: longest answer; default: that of training, else 256.

    Returns:
        One `Prediction` for each row, in order; a row that can't be asked has an `error`. Answers come in blocks of rows as
        they are taken from the iterator.

    Raises:
        UserError: no such target, or rows without the columns that it needs: at once, before the first answer.
    """
    opened = target if isinstance(target, TaskTarget) else open_with_task(str(target))
    stream = (_record(row) for row in rows)
    sample = list(itertools.islice(stream, SAMPLE))
    if not sample:
        return iter(())
    total = len(rows) if isinstance(rows, Sequence) else 0
    asker = Asker(opened, Options(column, system, top, max_new_tokens), sample)
    return asker.answers(itertools.chain(sample, stream), total=total)


def _record(row: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    return row if isinstance(row, Mapping) else {"messages": list(row)}


@dataclass
class Asker:
    """A target with the way in which records become its prompts.

    Args:
        sample: records that show which columns there are.
    """

    target: TaskTarget
    options: Options
    sample: Sequence[Mapping[str, Any]]
    read: ReadPrompt = field(init=False)

    def __post_init__(self) -> None:
        task = self.target.task
        self.read = prompt_reader(task, self.sample, column=self.options.column, system=self.options.system)
        if self.options.top and not self.target.scores_labels:
            raise UserError(
                "Only labels have probabilities, and this target writes its answers",
                where="--top",
                next_step="leave --top out, or name a run that was trained to classify",
            )

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
        self, records: Iterable[Mapping[str, Any] | Rejection], *, total: int = 0, done: int = 0
    ) -> Iterator[Prediction]:
        """An answer to each record, block by block.

        Args:
            records: what could not be read is a `Rejection`, which becomes an answer with an error.
            total, done: of all rows, for progress.
        """
        for block in batched(records, self.block):
            yield from self.answer_block(block, total=total, done=done)
            done += len(block)

    def answer_block(
        self, records: Sequence[Mapping[str, Any] | Rejection], *, total: int = 0, done: int = 0
    ) -> list[Prediction]:
        """Answers to the records of a block."""

        outer = reporter().progress

        def shown(task: str, at: float, of: float, /, **info: float | str) -> None:
            if total and at < of:  # of the block, scaled to its rows
                outer("predicting", done + at * len(records) / max(of, 1), total, **info)

        asked: dict[int, Request] = {}
        found: list[Prediction] = [Prediction()] * len(records)
        for i, record in enumerate(records):
            prompt = record if isinstance(record, Rejection) else self.read(record)
            if isinstance(prompt, Rejection):
                found[i] = Prediction(error=f"{prompt.reason}: {prompt.detail}")
            else:
                asked[i] = self.request(prompt)
        with reporting(progress=shown):
            for i, answer in zip(asked, self.ask(list(asked.values())), strict=True):
                found[i] = answer
        if total:
            progress("predicting", done + len(records), total)
        return found

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
        top = self.options.top
        for answer in target.score(requests, task.labels, exact=bool(top)):
            likeliest = label_distribution(answer, self._tokens, top) if top and not answer.error else None
            yield prediction_of(answer, likeliest)

    @cached_property
    def _tokens(self) -> dict[str, int]:
        """Tokens of each label."""
        task, model = self.target.task, self.target.model
        assert model is not None and task is not None and task.labels is not None
        return model.label_tree(task.labels).tokens


def batched(records: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """`itertools.batched`, which Python 3.11 has not."""
    left = iter(records)
    while block := tuple(itertools.islice(left, size)):
        yield block
