"""Figures of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneloop.records.completion import Answer
from tuneloop.records.rows import Row

LOWER_IS_BETTER = frozenset({"perplexity", "loss", "ece", "invalid_rate"})


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better; `FIELD.METRIC` is as its metric."""
    return metric.rpartition(".")[2] in LOWER_IS_BETTER


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval; the bounds are NaN where there is none."""

    value: float
    low: float
    high: float


# A contender: takes the prompts of rows, gives an answer to each, in order.
AnswerFunction = Callable[[Sequence[Row]], list[Answer]]
