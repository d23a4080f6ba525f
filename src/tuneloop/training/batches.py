"""The order in which rows are trained on: a plan of steps, known before the first one."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.core.device import backend
from tuneloop.core.errors import UserError
from tuneloop.models.methods import method_named
from tuneloop.training.config import TrainConfig
from tuneloop.training.rows import TrainRow, conversations

ORDER = 2  # raised with every change of what `plan_steps` plans: a run continues only with the steps that it began with


@dataclass(frozen=True)
class Step:
    """Rows of one optimizer step, divided into micro-batches of row indices; `epoch` counts from 0."""

    micro_batches: tuple[tuple[int, ...], ...]
    epoch: float

    @property
    def indices(self) -> list[int]:
        """Its row indices."""
        return [i for micro in self.micro_batches for i in micro]


def plan_steps(rows: Sequence[TrainRow], config: TrainConfig, seed: int, mixed: Sequence[bool] = ()) -> list[Step]:
    """All steps of a run, from the seed alone; the number of processes that share them plays no part.

    A step takes `rows_per_step` rows and then more until it has `tokens_per_step` tokens; every epoch visits every row
    once. A fraction of an epoch is cut at the nearest step. The rows of a step are drawn whatever their length: steps
    of rows of similar length have gradients of very different noise, and end at a higher loss.

    Args:
        mixed: for each row whether it is general data that was blended in. Then every step has the same number of rows,
            and any run of steps within an epoch holds its share of general rows, give or take one.
    """
    # Tokens that a row takes in a batch of rows as long as itself: its conversations are padded to the longest.
    lengths = [len(parts) * max(len(part.ids) for part in parts) for parts in map(conversations, rows)]
    rows_a_step = max(config.rows_per_step, round(config.tokens_per_step / (sum(lengths) / len(lengths))))
    steps: list[Step] = []
    for epoch in range(math.ceil(config.epochs)):
        rng = random.Random(f"{seed}/{epoch}")
        epoch_rows = _mixed_epoch(mixed, rows_a_step, rng) if any(mixed) else _epoch(lengths, config, rng)
        micro_batches = [_micro_batches(step, lengths, tokens_at_once(config)) for step in epoch_rows]
        count = max(round(len(micro_batches) * min(config.epochs - epoch, 1.0)), 1)
        steps += [Step(micros, epoch + (i + 1) / len(micro_batches)) for i, micros in enumerate(micro_batches[:count])]
    return steps


def tokens_at_once(config: TrainConfig) -> int:
    """Tokens of a micro-batch: as configured, or what suits the method and device."""
    here = backend()
    full = method_named(config.method).footprint.all_weights
    return config.micro_batch_tokens or (here.micro_batch_tokens_full if full else here.micro_batch_tokens)


def _epoch(lengths: Sequence[int], config: TrainConfig, rng: random.Random) -> list[list[int]]:
    order = list(range(len(lengths)))
    rng.shuffle(order)
    steps: list[list[int]] = [[]]
    tokens = 0
    for i in order:
        if len(steps[-1]) >= config.rows_per_step and tokens >= config.tokens_per_step:
            steps.append([])
            tokens = 0
        steps[-1].append(i)
        tokens += lengths[i]
    if len(steps) > 1 and len(steps[-1]) < config.rows_per_step // 2:  # a remnant would be a noisy step
        remnant = steps.pop()
        steps[-1] += remnant
    return steps


def _mixed_epoch(mixed: Sequence[bool], rows_a_step: int, rng: random.Random) -> list[list[int]]:
    """Rows of each step of an epoch of two kinds of rows; how many general rows a step has follows from its place."""
    kinds = [[i for i, is_general in enumerate(mixed) if bool(is_general) is general] for general in (False, True)]
    for kind in kinds:
        rng.shuffle(kind)
    count = max(round(len(mixed) / rows_a_step), 1)
    places = range(count)
    steps = [[i for kind in kinds for i in kind[n * len(kind) // count : (n + 1) * len(kind) // count]] for n in places]
    return [step for step in steps if step]


MOST_PADDED = 1.5  # where padding is computed, a micro-batch may hold half as much of it as of tokens


def _micro_batches(step: Sequence[int], lengths: Sequence[int], tokens: int) -> tuple[tuple[int, ...], ...]:
    """Rows of a step, by length, in groups of at most `tokens` tokens and not much more with padding."""
    micros: list[list[int]] = []
    size = 0
    for i in sorted(step, key=lambda i: (lengths[i], i)):
        size += lengths[i]
        if not micros or size > tokens or (len(micros[-1]) + 1) * lengths[i] > MOST_PADDED * tokens:
            micros.append([])
            size = lengths[i]
        micros[-1].append(i)
    return tuple(tuple(m) for m in micros)


def halved(step: Step) -> Step:
    """The same step in micro-batches of half as many rows. Raises ValueError: each is a single row already."""
    if all(len(micro) == 1 for micro in step.micro_batches):
        raise ValueError("a step of single rows can't be divided further")
    halves = ((micro[: len(micro) // 2], micro[len(micro) // 2 :]) for micro in step.micro_batches)
    return Step(tuple(half for pair in halves for half in pair if half), step.epoch)


def too_large(tokens: int, when: str, where: str = "") -> UserError:
    """The error where a single row does not fit into memory; `when` as in "at step 3"."""
    step = f"set data.max_length={tokens // 2}, or use a machine with more memory; the same command continues"
    return UserError(
        f"Out of memory {when}: a single row of {tokens:,} tokens does not fit", where=where, next_step=step
    )
