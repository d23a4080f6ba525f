"""How a data set is trained on where nothing else is said: one choice of settings for `plan` and `advise`, so that both name one price."""

from __future__ import annotations

from typing import Any

from tuneloop.models.methods import method_named
from tuneloop.models.shape import ModelShape

# `tokens_at_once` and `rows_per_step` of the loop (train/batches.py, train/config.py, which import torch): a micro-batch has no more tokens than these, and no
# more rows than a step.
LOOP_TOKENS, LOOP_TOKENS_FULL_CPU, LOOP_ROWS = 2048, 1024, 8
NO_LENGTH = 1024  # tokens of a row where the data set's are not known


def loop_rows(length: float, *, full_on_cpu: bool = False) -> int:
    """Rows of that length that the loop computes at once."""
    tokens = LOOP_TOKENS_FULL_CPU if full_on_cpu else LOOP_TOKENS
    return max(1, min(LOOP_ROWS, int(tokens / max(length, 1))))


def loop_batches(length: float, *, full_on_cpu: bool = False) -> tuple[int, ...]:
    """Rows at once as the loop takes them, and fewer: it divides a micro-batch that does not fit."""
    rows, found = loop_rows(length, full_on_cpu=full_on_cpu), []
    while rows:
        found.append(rows)
        rows //= 2
    return tuple(found)


def usual_settings(method: str, shape: ModelShape, longest: int | None, *, cpu: bool = False) -> dict[str, Any]:
    """Settings of a job that trains on a data set: rows as long as its longest, layers recomputed, no logits kept.

    Args:
        method: its name, or its file. shape: the model's sizes.
        longest: tokens of the longest row; None: `NO_LENGTH`.
        cpu: whether the processor trains.
    """
    footprint = method_named(method).footprint
    length = min(longest or NO_LENGTH, shape.context or 1 << 20)
    found: dict[str, Any] = {
        "seq_len": length,
        "micro_batch": loop_batches(length, full_on_cpu=cpu and footprint.all_weights),
    }
    found |= footprint.usual
    if not cpu:
        found |= {"grad_ckpt": True, "loss_kernel": "fused", **footprint.usual_on_gpu}
    return found
