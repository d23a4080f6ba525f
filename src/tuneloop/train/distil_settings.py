"""The settings of `train.loss=distil`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tuneloop.core.files import Config

Divergence = Literal["forward", "reverse", "skewed", "skewed-reverse", "jensen-shannon", "universal"]


class DistilSettings(Config):
    """Of a student that learns a teacher's probabilities."""

    teacher: str | None = Field(
        None,
        description="of distil: who teaches: a folder of stored probabilities, which `tuneloop distill --level logits` makes, or a run or "
        "model that is asked in each step",
    )
    divergence: Divergence = Field(
        "forward",
        description="of distil: how the distance between teacher and student is measured; universal: between models with different tokens",
    )
    divergence_mix: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="of distil: share of the first model in the mix that skewed divergences (0.1 is usual) and jensen-shannon compare with",
    )
    teacher_temperature: float = Field(
        1.0,
        gt=0,
        le=100,
        description="of distil: both models' logits are divided by it; above 1 rare tokens count more",
    )
    hard_weight: float = Field(
        0.5, ge=0, le=1, description="of distil: weight of the rows' own tokens; the teacher has the rest"
    )
    on_policy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of distil: share of rows whose answers the student writes itself, in each step anew, for the teacher to score",
    )
    teacher_bits: Literal[4, 16] = Field(
        16, description="of distil: bits of a weight of a teacher that is asked in each step"
    )
