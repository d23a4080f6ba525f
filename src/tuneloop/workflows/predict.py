"""Answers to rows: each row formatted as in training, in blocks, in order, a row that can't be asked told with its reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from tuneloop.core.errors import UserError
from tuneloop.core.progress import Progress, no_progress
from tuneloop.data.formats import Rejection
from tuneloop.data.task import Prompt, ReadPrompt, prompt_reader
from tuneloop.workflows.targets import Target, open_target

if TYPE_CHECKING:
    from tuneloop.inference.client import Endpoint
    from tuneloop.inference.generate import LabelTrie
    from tuneloop.models.load import Model

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
    target: str | Path | Target,
    rows: Iterable[str | Mapping[str, Any] | Sequence[Mapping[str, Any]]],
    *,
    column: str = "",
    system: str | None = None,
    top: int = 0,
    max_new_tokens: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[Prediction]:
    """Ask a model about rows.

    Args:
        target: a run's folder, an exported artifact's, an adapter's or a model's, a model's name, or an open `Target`.
        rows: each a record with the columns of training, a text, or a list of turns.
        column: the column with the text that is asked; default: those that were trained, or the only one there is.
        system: takes the place of the trained system turn; "" for none.
        top: give the probabilities of so many labels with each answer; of a classifier only.
        max_new_tokens: longest answer; default: that of training, else 256.
        progress: told how far it is.

    Returns:
        One `Prediction` for each row, in order; a row that can't be asked has an `error`. Answers come in blocks of rows as
        they are taken from the iterator.

    Raises:
        UserError: no such target, or rows without the columns that it needs: at once, before the first answer.
    """
    opened = target if isinstance(target, Target) else open_target(str(target))
    stream = (_record(row) for row in rows)
    sample = list(itertools.islice(stream, SAMPLE))
    if not sample:
        return iter(())
    total = len(rows) if isinstance(rows, Sequence) else 0
    asker = Asker(opened, Options(column, system, top, max_new_tokens), sample)
    return asker.answers(itertools.chain(sample, stream), total=total, progress=progress)


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

    target: Target
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
        self, records: Iterable[Mapping[str, Any] | Rejection], *, total: int = 0, done: int = 0, progress: Progress
    ) -> Iterator[Prediction]:
        """An answer to each record, block by block.

        Args:
            records: what could not be read is a `Rejection`, which becomes an answer with an error.
            total, done: of all rows, for progress.
        """
        for block in batched(records, self.block):
            yield from self.answer_block(block, total=total, done=done, progress=progress)
            done += len(block)

    def answer_block(
        self, records: Sequence[Mapping[str, Any] | Rejection], *, total: int = 0, done: int = 0, progress: Progress
    ) -> list[Prediction]:
        """Answers to the records of a block."""

        def shown(task: str, at: float, of: float, /, **info: float | str) -> None:
            if total and at < of:  # of the block, scaled to its rows
                progress("predicting", done + at * len(records) / max(of, 1), total, **info)

        prompts = [r if isinstance(r, Rejection) else self.read(r) for r in records]
        if self.target.endpoint is not None:
            found = ask_endpoint(self.target.endpoint, prompts, self.limit, shown)
        else:
            found = self._ask_model(prompts, shown)
        if total:
            progress("predicting", done + len(records), total)
        return found

    def _ask_model(self, prompts: Sequence[Prompt | Rejection], progress: Progress) -> list[Prediction]:
        model = self.target.model
        room = max(self._trie.lengths) if self.target.scores_labels else 1
        found: list[Prediction | None] = [None] * len(prompts)
        ids: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            made = prompt if isinstance(prompt, Rejection) else prompt_ids(model, prompt, room)
            if isinstance(made, Rejection):
                found[i] = Prediction(error=f"{made.reason}: {made.detail}")
            else:
                ids[i] = made
        asked = list(ids.values())
        answered = (
            self.score(asked, progress) if self.target.scores_labels else write(model, asked, self.limit, progress)
        )
        for i, answer in zip(ids, answered, strict=True):
            found[i] = answer
        return [each for each in found if each is not None]

    @cached_property
    def _trie(self) -> LabelTrie:
        """The labels as tokens; what stands before them does not matter."""
        from tuneloop.workflows.systems import trie_of_labels

        task = self.target.task
        assert task is not None and task.labels is not None
        return trie_of_labels(self.target.model, task.labels, [{"role": "user", "content": "x"}])

    def score(self, ids: Sequence[Sequence[int]], progress: Progress, model: Model | None = None) -> list[Prediction]:
        """The label of each prompt by choice scoring; `model` takes the place of the target's."""
        from tuneloop.evaluate.metrics.calibration import label_distribution, label_probabilities
        from tuneloop.inference.generate import choose

        if not ids:
            return []
        trie, top = self._trie, self.options.top
        lengths = dict(zip(trie.labels, trie.lengths, strict=True))
        answers = choose(model or self.target.model, ids, trie, prune=not top, progress=progress)
        sure = label_probabilities(answers, lengths)
        found = []
        for answer, probability in zip(answers, sure, strict=True):
            likeliest = label_distribution(answer, lengths, top) if top else None
            label = answer.text
            found.append(Prediction(label, label, probability, likeliest, "stop", answer.prompt_tokens, answer.tokens))
        return found


def batched(records: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """`itertools.batched`, which Python 3.11 has not."""
    left = iter(records)
    while block := tuple(itertools.islice(left, size)):
        yield block


def prompt_ids(model: Model, prompt: Prompt, room: int = 1) -> list[int] | Rejection:
    """The ids of a prompt, or why it can't be asked.

    Args:
        room: tokens that must fit behind it.
    """
    from tuneloop.models.template import TemplateError

    try:
        if prompt.continues is not None:
            ids = model.template.document_ids(prompt.continues)
        else:
            ids = model.template.prompt_ids(prompt.messages, prompt.tools)
    except TemplateError as error:
        return Rejection("template_error", str(error))
    if len(ids) + room > model.context:
        return Rejection("too_long", f"{len(ids):,} tokens, and the model reads {model.context:,} with its answer")
    return ids


def write(model: Model, ids: Sequence[Sequence[int]], limit: int, progress: Progress) -> list[Prediction]:
    """Written answers; those whose prompts leave less room in the context are cut earlier."""
    from tuneloop.inference.generate import generate

    rooms = [min(limit, model.context - len(prompt)) for prompt in ids]
    found: list[Prediction | None] = [None] * len(ids)
    for room in sorted(set(rooms), reverse=True):
        group = [i for i, own in enumerate(rooms) if own == room]
        for i, answer in zip(
            group, generate(model, [ids[i] for i in group], max_new_tokens=room, progress=progress), strict=True
        ):
            finish: Literal["stop", "length"] = "stop" if answer.finished else "length"
            found[i] = Prediction(answer.text, finish=finish, prompt_tokens=answer.prompt_tokens, tokens=answer.tokens)
    return [each for each in found if each is not None]


def ask_endpoint(
    endpoint: Endpoint, prompts: Sequence[Prompt | Rejection], limit: int, progress: Progress
) -> list[Prediction]:
    """A server's answers."""
    from tuneloop.inference.client import Request, complete

    found: list[Prediction | None] = [None] * len(prompts)
    asked: dict[int, Request] = {}
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, Rejection):
            found[i] = Prediction(error=f"{prompt.reason}: {prompt.detail}")
        elif prompt.continues is not None:
            found[i] = Prediction(
                error="no_prompt: the model was trained on plain text, which no chat endpoint goes on with"
            )
        else:
            asked[i] = Request(prompt.messages, limit, tools=prompt.tools)
    replies = complete(endpoint, list(asked.values()), progress=progress) if asked else []
    for i, reply in zip(asked, replies, strict=True):
        finish: Literal["stop", "length", ""] = "" if reply.error else "stop" if reply.finished else "length"
        found[i] = Prediction(reply.text, None, None, None, finish, reply.prompt_tokens, reply.tokens, reply.error)
    return [each for each in found if each is not None]
