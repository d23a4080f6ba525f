"""What is measured before a run begins: how fast it will go."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Sequence

import torch

from tuneloop.core.device import is_out_of_memory, release_memory
from tuneloop.core.machine import processes
from tuneloop.core.ui import busy
from tuneloop.models import Model
from tuneloop.models.methods import method_named
from tuneloop.planning import RunWork
from tuneloop.training.batches import Step, plan_steps, too_large
from tuneloop.training.config import TrainConfig
from tuneloop.training.distributed import agreed, own_share, summed
from tuneloop.training.loss import shared_prefix
from tuneloop.training.methods import attach, recompute_layers
from tuneloop.training.rows import TrainRow, check_rows, conversations, supervised_tokens, tokens_of
from tuneloop.training.step import batch_loss

# A run's speed over minutes as a share of that over its first seconds: the optimizer, freed memory that is faulted in
# again, a shared processor that slows down under load. From experience: .90, .78 and .75 on three runs of the demo.
SUSTAINED = 0.82
MEASURING = "measuring this machine"  # as progress calls it
# Seconds of passes that are enough; most seconds of a measurement, and most of them as a share of a run's time.
ENOUGH, MOST, MOST_SHARE = 3.0, 15.0, 0.06
FEW_TOKENS = 256  # of the first passes of several rows: products of so many are about as fast as larger ones


def measure_speed(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, seed: int, seconds: float = 0.0, kept_layers: int = 0
) -> float:
    """Tokens a second that a run will keep up, from forward and backward passes on some of its batches.

    Nothing is changed. A few seconds run faster than many minutes, see SUSTAINED. Where even one micro-batch would take
    too long, see `longest_measurement`, a few of its rows are the measure.

    Args:
        seconds: that are enough; 0: `ENOUGH`, or a tenth of the run's time where that is less.
        kept_layers: where layers are computed again, so many of the last ones are not.
    """
    seconds = seconds or min(ENOUGH, 6 * (config.max_minutes or 1.0))
    check_rows(rows, "training", model.head.shape[0])
    trainable = attach(model, config, seed, rows)
    steps = plan_steps(rows, config, seed)
    some = random.Random(seed).sample(steps, min(len(steps), 8))
    recompute_layers(model.net, config.gradient_checkpointing == "always", kept_layers)
    model.net.train()
    with busy(MEASURING), torch.random.fork_rng(devices=[]):
        speed = _timed(model, rows, config, some, seconds)
    for parameter in trainable.parameters.values():
        parameter.grad = None
    trainable.detach()
    recompute_layers(model.net, False)
    model.net.eval()
    return SUSTAINED * speed


def longest_measurement(config: TrainConfig, seconds: float) -> float:
    """Seconds after which no pass of a measurement may end, as far as is known before it begins: some per cent of the
    run's time, and at least half more than the `seconds` that are enough."""
    return MOST if config.max_minutes is None else min(MOST, max(1.5 * seconds, MOST_SHARE * 60 * config.max_minutes))


def _timed(model: Model, rows: Sequence[TrainRow], config: TrainConfig, steps: Sequence[Step], seconds: float) -> float:
    """Tokens a second of passes on these steps. They grow from a row to a whole micro-batch, each begun only where the
    one before says that it will end in time: so a very slow machine is measured by a row."""
    began, most = time.monotonic(), longest_measurement(config, seconds)
    tokens, took = 0, 0.0  # of the last pass

    def fits(micro: Sequence[int]) -> bool:
        expected = took / max(tokens, 1) * sum(tokens_of(rows[i]) for i in micro)
        return not agreed(time.monotonic() - began + expected > most)

    def timed_pass(micro: Sequence[int]) -> tuple[int, float]:
        start = time.monotonic()
        _forward_and_backward(model, [rows[i] for i in micro], config)
        return sum(tokens_of(rows[i]) for i in micro), time.monotonic() - start

    micros = [micro for step in steps for micro, _ in own_share(step.micro_batches)]
    totals = itertools.accumulate(tokens_of(rows[i]) for i in micros[0])
    few = micros[0][: sum(total < FEW_TOKENS for total in totals) + 1]  # the first rows with so many tokens together
    # The first pass does what is done once, often for ten times as long: a row is timed again where there is any time
    # left. The first of a size takes new memory: its time counts if it is the only one.
    for number, micro in enumerate((micros[0][:1], micros[0][:1], few, few, micros[0])):
        again = number == 1 and not agreed(time.monotonic() - began > most)
        if not again and not fits(micro):
            return summed([tokens])[0] / took
        tokens, took = timed_pass(micro)
    whole: list[tuple[int, float]] = []
    for micro in micros:
        if not fits(micro):
            break
        whole.append(timed_pass(micro))
        if agreed(sum(seconds for _, seconds in whole) > seconds):
            break
    if whole:
        tokens, took = sum(n for n, _ in whole), sum(seconds for _, seconds in whole)
    return summed([tokens])[0] / took


def _forward_and_backward(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, recomputing: bool = False
) -> None:
    """A micro-batch's passes, divided as a run divides them when memory runs out."""
    try:
        batch_loss(model, rows, 1.0, config).backward()  # type: ignore[no-untyped-call]
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or processes() > 1:
            raise
    release_memory()
    if len(rows) > 1:
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
            _forward_and_backward(model, half, config, recomputing)
    elif recomputing or config.gradient_checkpointing != "auto":
        raise too_large(tokens_of(rows[0]), "while measuring the speed")
    else:
        recompute_layers(model.net, True)
        _forward_and_backward(model, rows, config, True)


def micro_shape(model: Model, rows: Sequence[TrainRow], config: TrainConfig) -> tuple[int, int, int]:
    """Conversations, their length behind what is computed once for all, and the length of that. The first length is the
    root of the mean square, between what layers and attention need; the longest where padding may be computed."""
    parts = [part for row in rows for part in conversations(row)]
    virtual = method_named(config.method).footprint.has_virtual_tokens
    shares = model.shares(max(len(part.ids) for part in parts), behind_prefix=virtual)
    prefix = shared_prefix(parts) if shares else 0
    lengths = [len(part.ids) - prefix for part in parts]
    if processes() > 1:
        return len(parts), max(lengths), prefix
    return len(parts), math.ceil(math.sqrt(sum(n * n for n in lengths) / len(lengths))), prefix


def work_of(
    model: Model, rows: Sequence[TrainRow], steps: Sequence[Step], config: TrainConfig, forward_tokens: int = 0
) -> RunWork:
    """What steps compute, as the planner counts it."""
    micros = [[rows[i] for i in micro] for step in steps for micro in step.micro_batches]
    of_steps = [row for micro in micros for row in micro]
    return RunWork(
        steps=len(steps),
        tokens=sum(map(tokens_of, of_steps)),
        supervised=round(sum(map(supervised_tokens, of_steps))),
        val_tokens=forward_tokens,
        micro_batches=tuple(sorted({micro_shape(model, micro, config) for micro in micros})),
        accumulated=max((len(step.micro_batches) for step in steps), default=1),
    )
