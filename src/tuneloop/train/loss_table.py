"""The table of losses, apart from what they compute: settings and rows look here without loading torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.load import Model
    from tuneloop.models.template import Template
    from tuneloop.records.rows import Row
    from tuneloop.train.config import TrainConfig
    from tuneloop.train.rows import TrainRow


@dataclass(frozen=True)
class RowKind:
    """What a loss learns from.

    Args:
        usable: whether a row of a data set is of the kind.
        make: what those rows become.
        needed: what a row must have, for the error when none has it.
    """

    usable: Callable[[Row], bool]
    make: Callable[[Sequence[Row], Template, TrainConfig], list[TrainRow]]
    needed: str = ""


@dataclass(frozen=True)
class Batch:
    """A micro-batch and what a loss may need with it.

    Args:
        rows: of the micro-batch.
        share: what one unit counts: 1 / units of the whole step, so that its division changes nothing.
        base: a context in which the model computes as it did before training.
        constant: of the step, see `Loss`.
    """

    model: Model
    rows: Sequence[Any]
    share: float
    config: TrainConfig
    base: Callable[[], AbstractContextManager[None]] = nullcontext
    constant: float = 0.0


@dataclass(frozen=True)
class Loss:
    """A loss.

    Args:
        value: sum over the micro-batch times `share`, and figures for `metrics.jsonl` summed alike.
        units: what of a row the mean is taken over: 1, or its supervised tokens.
        constant: something that a step needs of all its rows before the first micro-batch.
        rows: what it learns from; None: conversations.
    """

    value: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
    units: Callable[[TrainRow], float] = lambda row: 1.0
    constant: Callable[[Batch], float] = lambda step: 0.0
    rows: RowKind | None = None


# `train/loss.py` puts in what ships; a file of your own may put in more.
LOSSES: dict[str, Loss] = {}
