"""What a loss is computed from: rows of a data set as token ids and masks, with what people thought of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuneloop.core.errors import UserError
from tuneloop.inference.local import open_local
from tuneloop.models.chat import Rendered, Template
from tuneloop.records.rows import Message, Row
from tuneloop.training.config import LOSSES, RowKind, TrainConfig
from tuneloop.training.teachers import aligned, is_store, keys_of, refuse_other_tokens, teachers_template


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better one first."""

    chosen: Rendered  # the conversation; the mask marks the answer
    rejected: Rendered
    reference: tuple[float, float] = (0.0, 0.0)  # log likelihoods of both answers under the reference model


@dataclass(frozen=True)
class UnpairedAnswer:
    """An answer with a thumb."""

    answer: Rendered  # the conversation; the mask marks the rated answer
    other: Rendered  # the same prompt with another row's answer, by which KTO estimates how far the model has moved
    good: bool  # thumb up
    reference: tuple[float, float] = (0.0, 0.0)  # log likelihoods of both answers under the reference model


@dataclass(frozen=True)
class Taught(Rendered):
    """A conversation at whose supervised positions a teacher's probabilities are stored."""

    key: str = ""  # by which they are found; empty: the teacher is queried in each step
    theirs: Rendered | None = None  # the conversation as a teacher with other tokens reads it; None: it has the same
    # For each supervised position the number of the one of `theirs` that is at the same place, see `teachers.aligned`.
    aligned: tuple[int, ...] = ()


TrainRow = Rendered | PreferencePair | UnpairedAnswer


@dataclass(frozen=True)
class SplitRows:
    """What a run reads."""

    train: Sequence[TrainRow]  # of the configured loss's kind, as those of `val`
    val: Sequence[TrainRow] = ()
    general: Sequence[Rendered] = ()  # rows of other work, held out; their loss shows what is forgotten


def conversations(row: TrainRow) -> tuple[Rendered, ...]:
    """What is computed of a row in a training step."""
    if isinstance(row, PreferencePair):
        return row.chosen, row.rejected
    return (row.answer,) if isinstance(row, UnpairedAnswer) else (row,)


def tokens_of(row: TrainRow) -> int:
    """Tokens of a row in a training step."""
    return sum(len(part.ids) for part in conversations(row))


def reference_tokens(row: TrainRow) -> int:
    """Tokens of a row that the reference model reads before the first step."""
    if isinstance(row, UnpairedAnswer):
        return len(row.answer.ids) + len(row.other.ids)
    return tokens_of(row) if isinstance(row, PreferencePair) else 0


def supervised_tokens(row: TrainRow) -> float:
    """Supervised tokens of a row; by weight, where tokens have weights."""
    return sum(sum(part.mask[1:]) for part in conversations(row))


def training_rows(rows: Sequence[Row | TrainRow], template: Template, config: TrainConfig) -> list[TrainRow]:
    """Rows that the loss can use, rendered, or as made for it before. Raises UserError: none is of the needed kind."""
    if made := [row for row in rows if not isinstance(row, Row)]:
        return made
    kind = row_kind(config)
    usable = [row for row in rows if isinstance(row, Row) and kind.usable(row)]
    if rows and not usable and kind.needed:
        step = "set train.loss=supervised, or give such data"
        raise UserError(f"No row has {kind.needed}", where=f"train.loss={config.loss}", next_step=step)
    return kind.make(usable, template, config)


def is_usable(row: Row, config: TrainConfig) -> bool:
    """Whether the configured loss can learn from a row."""
    return row_kind(config).usable(row)


def row_kind(config: TrainConfig) -> RowKind:
    """What the configured loss learns from."""
    return SHIPPED.get(config.loss) or LOSSES[config.loss].rows or CONVERSATIONS


def _conversations(rows: Sequence[Row], template: Template, config: TrainConfig) -> list[TrainRow]:
    rendered = (template.render(row.messages, row.tools, reasoning=config.reasoning_weight) for row in rows)
    return [_learned(row, config.train_on) for row in rendered]


def _pairs(rows: Sequence[Row], template: Template, config: TrainConfig) -> list[TrainRow]:
    pairs: list[TrainRow] = []
    for row in rows:
        shared = int(row.meta.get("shared_turns", len(row.messages) - 1))
        both = row.messages, [*row.messages[:shared], *row.meta["rejected"]]
        better, worse = (_turns_from(turns, shared, row, template) for turns in both)
        pairs.append(PreferencePair(better, worse))
    return pairs


def _ratings(rows: Sequence[Row], template: Template, config: TrainConfig) -> list[TrainRow]:
    answers = [_turns_from(row.messages, len(row.messages) - 1, row, template) for row in rows]
    return [
        UnpairedAnswer(answer, _mismatched(answer, answers[index - 1]), bool(row.meta["thumb"]))
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]


def _taught(rows: Sequence[Row], template: Template, config: TrainConfig) -> list[TrainRow]:
    """Conversations that a teacher judges, each with the place of what is stored."""
    rendered = [template.render(row.messages, row.tools, reasoning=config.reasoning_weight) for row in rows]
    if rendered and config.divergence == "universal":  # a teacher with other tokens: each as both read it
        theirs = teachers_template(config)
        others = [theirs.render(row.messages, row.tools) for row in rows]
        return [
            Taught(row.ids, row.mask, key, other, aligned(row, other, template.decode, theirs.decode))
            for row, other, key in zip(rendered, others, keys_of(others, config), strict=True)
        ]
    if rendered and not is_store(str(config.teacher)):
        refuse_other_tokens(open_local(str(config.teacher)), rows[0], rendered[0], template)
    return [Taught(row.ids, row.mask, key) for row, key in zip(rendered, keys_of(rendered, config), strict=True)]


CONVERSATIONS = RowKind(lambda row: not row.rated_bad, _conversations)
PAIRS = RowKind(lambda row: bool(row.meta.get("rejected")), _pairs, "a chosen and a rejected answer")
RATINGS = RowKind(lambda row: isinstance(row.meta.get("thumb"), bool), _ratings, "a thumb up or down")
TAUGHT = RowKind(lambda row: not row.rated_bad, _taught)
SHIPPED = {"supervised": CONVERSATIONS, "dpo": PAIRS, "kto": RATINGS, "distil": TAUGHT}  # known without importing torch


def _learned(row: Rendered, learned: str) -> Rendered:
    if learned == "assistant":
        return row
    if learned == "all":
        return Rendered(row.ids, [1] * len(row.ids))
    begin, end = last_answer(row)
    return Rendered(row.ids, [0] * begin + row.mask[begin:end] + [0] * (len(row.mask) - end))


def last_answer(row: Rendered) -> tuple[int, int]:
    """Where a row's last run of supervised tokens begins, and where it ends; (0, 0) without any."""
    end = max((i for i, weight in enumerate(row.mask) if weight), default=-1) + 1
    begin = end
    while begin and row.mask[begin - 1]:
        begin -= 1
    return begin, end


def _turns_from(messages: Sequence[Message], shared: int, row: Row, template: Template) -> Rendered:
    """The conversation, only its turns from `shared` on learned."""
    turns: list[Message] = [{**m, "weight": 0} for m in messages[:shared]]
    return template.render([*turns, *messages[shared:]], row.tools)


def _mismatched(prompt: Rendered, answer: Rendered) -> Rendered:
    """The prompt of one conversation with the answer of another."""
    begin, other = (next((i for i, weight in enumerate(row.mask) if weight), len(row.mask)) for row in (prompt, answer))
    return Rendered(prompt.ids[:begin] + answer.ids[other:], prompt.mask[:begin] + answer.mask[other:])


def with_reference(row: TrainRow, values: tuple[float, float]) -> TrainRow:
    """The row with the reference model's log likelihoods."""
    return row if isinstance(row, Rendered) else replace(row, reference=values)


def check_rows(rows: Sequence[TrainRow], split: str, vocabulary: int) -> None:
    """Raises UserError: no rows, one without a supervised token, or a token id that the model does not have."""
    if not rows:
        raise UserError(f"The {split} split is empty", next_step="give more data, or smaller split.val and split.test")
    for number, row in enumerate(rows, 1):
        name = f"Row {number} of the {split} split"
        for part in conversations(row):
            if not any(part.mask[1:]):
                step = "every row needs an assistant turn; `tuneloop prepare --show 3` shows the supervised tokens"
                raise UserError(f"{name} has no token to learn", next_step=step)
            if max(part.ids) >= vocabulary or min(part.ids) < 0:
                step = "the tokenizer is not this model's: download the model's folder again, with its tokenizer.json"
                message = f"{name} has the token {max(part.ids)}, and the model knows {vocabulary}"
                raise UserError(message, next_step=step)
