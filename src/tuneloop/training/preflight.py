"""What is about to be trained, looked at before the first step: rendered rows, counts, and what would spoil the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.core.units import counted
from tuneloop.models.chat import Rendered, Template
from tuneloop.training.batches import Step
from tuneloop.training.config import TrainConfig
from tuneloop.training.rows import TrainRow, conversations, tokens_of

NAMED = 3  # rows that a problem names


@dataclass(frozen=True)
class Preflight:
    """What a run begins with."""

    rows: int  # of the training split as the model sees it
    tokens: int
    supervised: int  # tokens that count in the loss
    longest: int  # tokens of the longest row
    limit: int  # most tokens that a row may have
    bos: dict[int, int]  # for each number of begin-of-text tokens how many rows have it; empty: the model has none
    answers: int  # runs of supervised tokens
    ended: int  # of them, those that end in a supervised end-of-turn token
    end_token: str  # the end-of-turn token as text
    steps: int  # of the run as planned
    warmup_steps: int
    rows_per_step: float
    learning_rate: float  # the peak
    schedule: str  # how it falls
    problems: tuple[str, ...]  # what makes training refuse to start, each with rows and what to do
    shown: tuple[tuple[str, Rendered], ...] = ()  # two rows with their ids

    @staticmethod
    def of(
        rows: Sequence[TrainRow],
        ids: Sequence[str],
        template: Template,
        config: TrainConfig,
        steps: list[Step],
        limit: int,
    ) -> Preflight:
        """Of rows, their ids and the planned steps, without the model; `limit`: most tokens that a row may have."""
        parts = [(name, part) for name, row in zip(ids, rows, strict=True) for part in conversations(row)]
        bos = template.tokenizer.token_to_id(str(template.variables.get("bos_token") or ""))
        ends = [_ends(part, template.end_ids) for _, part in parts]
        schedules = {"constant": "constant", "linear": "linear to zero", "cosine": "along a cosine to zero"}
        return Preflight(
            rows=len(rows),
            tokens=sum(tokens_of(row) for row in rows),
            supervised=sum(sum(1 for weight in part.mask[1:] if weight) for _, part in parts),
            longest=max((len(part.ids) for _, part in parts), default=0),
            limit=limit,
            bos=dict(Counter(part.ids.count(bos) for _, part in parts)) if bos is not None else {},
            answers=sum(map(len, ends)),
            ended=sum(map(sum, ends)),
            end_token=template.tokenizer.id_to_token(template.end_ids[0]) if template.end_ids else "end of turn",
            steps=len(steps),
            warmup_steps=max(round(len(steps) * config.warmup), 1),
            rows_per_step=sum(len(step.indices) for step in steps) / max(len(steps), 1),
            learning_rate=config.learning_rate,
            schedule=schedules[config.schedule],
            problems=tuple(_problems(parts, ends, template, config, limit)),
            shown=tuple(parts[:2]),
        )

    def lines(self) -> list[str]:
        """The numbers in plain sentences."""
        counts = ", ".join(f"{n} in {counted(rows, 'row')}" for n, rows in sorted(self.bos.items()))
        return [
            f"rows          {self.rows:,} of at most {self.longest:,} tokens ({self.limit:,} are allowed)",
            f"supervised    {self._supervised()} tokens ({self.supervised / max(self.tokens, 1):.0%})",
            f"begin of text {counts or 'the model has none'}",
            f"end of turn   {self._endings()}",
            f"steps         {self.steps:,} of about {self.rows_per_step:.3g} rows",
            f"learning rate {self.learning_rate:g} after {counted(self.warmup_steps, 'step')}, then {self.schedule}",
        ]

    def line(self) -> str:
        """The short form."""
        tokens = f"{counted(self.rows, 'row')}, {self._supervised()} tokens supervised, {self._endings()}"
        rate = f"learning rate {self.learning_rate:g}, then {self.schedule}"
        return f"{tokens}; {counted(self.steps, 'step')}, {rate}"

    def _supervised(self) -> str:
        return f"{self.supervised:,} of {self.tokens:,}"

    def _endings(self) -> str:
        return f"{self.ended:,} of {self.answers:,} answers end in a supervised {self.end_token}"


def _ends(row: Rendered, end_ids: Sequence[int]) -> list[bool]:
    """For each run of supervised tokens whether an end-of-turn token is its last, or the last but white space."""
    return [
        any(token in end_ids for token in row.ids[max(i - 1, 0) : i + 1])
        for i, (weight, following) in enumerate(zip(row.mask, [*row.mask[1:], 0], strict=True))
        if weight and not following
    ]


def _problems(
    parts: list[tuple[str, Rendered]], ends: list[list[bool]], template: Template, config: TrainConfig, limit: int
) -> list[str]:
    bos = template.tokenizer.token_to_id(str(template.variables.get("bos_token") or ""))
    unsupervised = [name for name, part in parts if not any(part.mask[1:])]
    long = [f"{name} ({len(part.ids):,} tokens)" for name, part in parts if len(part.ids) > limit]
    open_ended = [name for (name, _), problems in zip(parts, ends, strict=True) if problems and not any(problems)]
    starts = [part.ids[:1] == [bos] for _, part in parts]
    doubled = [name for name, part in parts if bos is not None and part.ids[:2] == [bos, bos]]
    bare = [name for (name, _), begins in zip(parts, starts, strict=True) if not begins]
    if not template.end_ids or config.train_on == "all":
        open_ended = []
    shorter = f"prepare again with data.max_length={limit} and data.too_long=truncate or split"
    endless = "the model would never learn to stop; the chat template is at fault"
    problems = (
        (unsupervised, "no token to learn: every row needs an assistant turn with text and a weight"),
        (long, f"more than {limit:,} tokens: {shorter}"),
        (open_ended, f"no supervised end-of-turn token: {endless}"),
        (doubled, "two begin-of-text tokens: the text of the first turn holds one"),
        (bare if len(bare) < len(parts) else [], "no begin-of-text token while others do"),
    )
    if not parts:
        return ["there is no training row: give more data, or smaller split.val and split.test"]
    sentences = []
    for names, problem in problems:
        if names:
            some = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
            sentences.append(f"{len(names):,} {'row has' if len(names) == 1 else 'rows have'} ({some}) {problem}")
    return sentences
