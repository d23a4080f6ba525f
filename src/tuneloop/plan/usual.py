"""How a data set is trained on where nothing else is said: one choice of settings for `plan` and `advise`, so that both name one price."""

from __future__ import annotations

from typing import Any

from tuneloop.plan.shape import ModelShape

MICRO_BATCH_TOKENS = 4096  # rows at once: no more tokens than these, and at most four rows
PREFIX_TOKENS = 64  # as a recipe has it where it says nothing
NO_LENGTH = 1024  # tokens of a row where the data set's are not known


def usual_settings(method: str, shape: ModelShape, longest: int | None, *, cpu: bool = False) -> dict[str, Any]:
    """Settings of a job that trains on a data set: rows as long as its longest, layers recomputed, no logits kept.

    Args:
        method: as in `Job`. shape: the model's sizes.
        longest: tokens of the longest row; None: `NO_LENGTH`.
        cpu: whether the processor trains.
    """
    length = min(longest or NO_LENGTH, shape.context or 1 << 20)
    batches = tuple(rows for rows in (4, 2, 1) if rows * length <= MICRO_BATCH_TOKENS or rows == 1)
    found: dict[str, Any] = {"seq_len": length, "micro_batch": batches}
    if method == "prefix":
        found["prefix_tokens"] = PREFIX_TOKENS
    if not cpu:
        found |= {"grad_ckpt": True, "loss_kernel": "fused"}
        if method == "full":
            found["optimizer"] = "adamw-bf16"
    return found
