"""The order in which rows are trained on: a plan of steps, known before the first one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.models.template import Rendered
from tuneloop.train.config import TrainConfig

# Steps are cut from pools of this many rows, sorted by length: rows of one step are alike, so little is padded,
# and the order stays random from pool to pool.
POOL_STEPS = 16


@dataclass(frozen=True)
class Step:
    """Rows of one optimizer step, divided into micro-batches of row indices; `epoch` counts from 0."""

    micro_batches: tuple[tuple[int, ...], ...]
    epoch: float

    @property
    def rows(self) -> int:
        """Rows in the step."""
        return sum(len(m) for m in self.micro_batches)


def plan_steps(rows: Sequence[Rendered], config: TrainConfig, seed: int) -> list[Step]:
    """All steps of a run, from the seed alone.

    A step takes `rows_per_step` rows and then more until it has `tokens_per_step` tokens; every epoch
    visits every row once. A fraction of an epoch is cut at the nearest step.
    """
    lengths = [len(row.ids) for row in rows]
    mean = sum(lengths) / len(lengths)
    rows_a_step = max(config.rows_per_step, round(config.tokens_per_step / mean))
    steps: list[Step] = []
    epoch = 0
    while epoch < config.epochs:
        share = min(config.epochs - epoch, 1.0)
        of_epoch = _epoch_steps(lengths, config, rows_a_step, random.Random(f"{seed}/{epoch}"))
        count = max(round(len(of_epoch) * share), 1)
        steps += [Step(micros, epoch + (i + 1) / len(of_epoch)) for i, micros in enumerate(of_epoch[:count])]
        epoch += 1
    return steps


def _epoch_steps(
    lengths: Sequence[int], config: TrainConfig, rows_a_step: int, rng: random.Random
) -> list[tuple[tuple[int, ...], ...]]:
    order = list(range(len(lengths)))
    rng.shuffle(order)
    steps: list[tuple[tuple[int, ...], ...]] = []
    pool_size = rows_a_step * POOL_STEPS
    for start in range(0, len(order), pool_size):
        pool = sorted(order[start : start + pool_size], key=lambda i: (lengths[i], i))
        cut: list[list[int]] = []
        for i in pool:
            if not cut or (
                len(cut[-1]) >= config.rows_per_step and sum(lengths[j] for j in cut[-1]) >= config.tokens_per_step
            ):
                cut.append([])
            cut[-1].append(i)
        if len(cut) > 1 and len(cut[-1]) < config.rows_per_step // 2:  # a remnant would be a noisy step of its own
            remnant = cut.pop()
            cut[-1] += remnant
        rng.shuffle(cut)
        steps += [_micro_batches(step, lengths, config.micro_batch_tokens) for step in cut]
    return steps


def _micro_batches(step: Sequence[int], lengths: Sequence[int], tokens: int) -> tuple[tuple[int, ...], ...]:
    """Rows of a step (by length) in groups of at most `tokens` padded tokens."""
    micros: list[list[int]] = []
    for i in step:
        if not micros or (len(micros[-1]) + 1) * lengths[i] > tokens:
            micros.append([])
        micros[-1].append(i)
    return tuple(tuple(m) for m in micros)
