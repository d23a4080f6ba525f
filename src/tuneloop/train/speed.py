"""How fast a run will go, measured before it begins."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence

from tuneloop.core.progress import Progress, no_progress
from tuneloop.models.load import Model
from tuneloop.models.methods import method_named
from tuneloop.models.sharded import processes
from tuneloop.train.batches import is_out_of_memory, plan_steps, too_large
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import agreed, own_share
from tuneloop.train.layers import recompute_layers
from tuneloop.train.loss import shared_prefix
from tuneloop.train.methods import attach
from tuneloop.train.rows import TrainRow, check_rows, conversations, tokens_of
from tuneloop.train.step import batch_loss, free_memory

# A run's speed over minutes as a share of that over its first seconds: the optimizer, freed memory that is faulted in again, and a
# shared processor that slows down under load. .90, .78 and .75 on three runs of the demo; a figure of experience.
SUSTAINED = 0.82
MEASURING = "measuring this machine"  # as progress calls it


def measure_speed(
    model: Model,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    seed: int,
    seconds: float = 3.0,
    progress: Progress = no_progress,
) -> float:
    """Tokens a second that a run will keep up, from forward and backward passes on some of its own batches.

    Nothing is changed. A few seconds run faster than many minutes, see SUSTAINED.
    """
    import torch

    check_rows(rows, "training", model.head.shape[0])
    trainable = attach(model, config, seed, rows)
    steps = plan_steps(rows, config, seed)
    picked = random.Random(seed).sample(steps, min(len(steps), 8))
    recompute_layers(model.net, config.gradient_checkpointing == "always")
    model.net.train()
    progress(MEASURING, 0, seconds)
    with torch.random.fork_rng(devices=[]):
        _forth_and_back(model, [rows[i] for i in picked[0].micro_batches[0]], config)
        began, tokens = time.monotonic(), 0
        for step in picked:
            for micro, _ in own_share(step.micro_batches):
                _forth_and_back(model, [rows[i] for i in micro], config)
            tokens += sum(tokens_of(rows[i]) for i in step.indices)
            progress(MEASURING, min(time.monotonic() - began, seconds), seconds)
            if agreed(time.monotonic() - began > seconds):
                break
    took = time.monotonic() - began
    progress(MEASURING, seconds, seconds)
    for parameter in trainable.parameters.values():
        parameter.grad = None
    trainable.detach()
    recompute_layers(model.net, False)
    model.net.eval()
    return SUSTAINED * tokens / took


def _forth_and_back(model: Model, rows: Sequence[TrainRow], config: TrainConfig, recomputing: bool = False) -> None:
    """A micro-batch's passes, divided as a run divides them when memory runs out.

    Raises:
        UserError: a single row does not fit.
    """
    try:
        batch_loss(model, rows, 1.0, config).backward()  # type: ignore[no-untyped-call]
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or processes() > 1:
            raise
    free_memory()
    if len(rows) > 1:
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            _forth_and_back(model, half, config, recomputing)
    elif recomputing or config.gradient_checkpointing != "auto":
        raise too_large(tokens_of(rows[0]), "while measuring the speed")
    else:
        recompute_layers(model.net, True)
        _forth_and_back(model, rows, config, True)


def micro_shape(model: Model, rows: Sequence[TrainRow], config: TrainConfig) -> tuple[int, int, int]:
    """Conversations, their length behind what is computed once for all of them, and the length of that.

    The length is the root of the mean square, between what layers and what attention needs; on several processes, which may compute all padding, the longest.
    """
    parts = [part for row in rows for part in conversations(row)]
    virtual = method_named(config.method).footprint.has_virtual_tokens
    shares = model.shares(max(len(part.ids) for part in parts), behind_prefix=virtual)
    prefix = shared_prefix(parts) if shares else 0
    lengths = [len(part.ids) - prefix for part in parts]
    if processes() > 1:
        return len(parts), max(lengths), prefix
    return len(parts), math.ceil(math.sqrt(sum(n * n for n in lengths) / len(lengths))), prefix
