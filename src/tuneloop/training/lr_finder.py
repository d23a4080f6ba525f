"""`train.learning_rate=auto`: a short range test on a throwaway adapter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from tuneloop.core.ui import progress
from tuneloop.models.load import Model
from tuneloop.records.run import LearningRate
from tuneloop.training.batches import plan_steps
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig, usual_rate
from tuneloop.training.distributed import regroup
from tuneloop.training.loss import mean_loss, with_references
from tuneloop.training.methods import attach
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.rows import TrainRow
from tuneloop.training.run import TrainingRun
from tuneloop.training.step import optimizer_step

RATES, SPAN = 24, 100.0  # rates tried: from a hundredth of the usual one to a hundred times it, in even factors
# Rows whose loss judges; no step learns from them, for what is seen a few times is soon known by heart, at any rate.
JUDGES = 12
MARGIN = 3.0  # the loss is lowest just before it rises; a run needs a margin (Smith 2017; fast.ai takes a tenth)
LEAST_FALL = 0.05  # less of a fall may be chance, and is nothing to choose by


def range_test(model: Model, rows: Sequence[TrainRow], config: TrainConfig, seed: int) -> LearningRate:
    """Raise the learning rate step by step and see where the loss of other rows stops to fall (after Smith 2017, arXiv
    1506.01186). The model is left as it was."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    held_out = order[: min(JUDGES, len(rows) // 3)] or order
    usual = usual_rate(config.method, config.loss)
    rates = [usual / SPAN * SPAN ** (2 * i / (RATES - 1)) for i in range(RATES)]
    rng = torch.get_rng_state()
    trainable = attach(model, config, seed, rows)
    with trainable.base():
        judges = with_references(model, [rows[i] for i in held_out])
        train_rows = with_references(model, [rows[i] for i in order if i not in set(held_out)] or list(judges))
    regroup(model)
    steps = plan_steps(train_rows, config.model_copy(update={"epochs": 1.0}), seed)
    run = TrainingRun(model, config, trainable, make_optimizer(trainable, config), State("range test"), Path())

    def loss_now() -> float:
        model.net.eval()
        loss, _ = mean_loss(model, judges, config, base=trainable.base)
        model.net.train()
        return loss

    before = loss_now()
    losses: list[float] = []
    for i, rate in enumerate(rates):
        optimizer_step(run, steps[i % len(steps)], train_rows, rate)
        losses.append(loss_now() / before)
        progress("trying learning rates", i + 1, RATES)
        if not losses[-1] < 2:
            break
    progress("trying learning rates", RATES, RATES)
    trainable.detach()
    model.net.eval()
    torch.set_rng_state(rng)
    return choose(rates[: len(losses)], losses, usual)


def choose(rates: Sequence[float], losses: Sequence[float], usual: float) -> LearningRate:
    """The rate that a range test speaks for: a third of that at which the smoothed loss is lowest, in one digit. Where
    the loss hardly fell there is nothing to choose by, and the usual rate stays."""
    finite = [loss if math.isfinite(loss) else 1e9 for loss in losses]
    smooth = [mean(finite[max(i - 1, 0) : i + 2]) for i in range(len(finite))]
    at = min(range(len(smooth)), key=smooth.__getitem__)
    tried = f"{len(rates)} rates from {rates[0]:.1g} to {rates[-1]:.1g} tried"
    if smooth[at] > 1 - LEAST_FALL:
        rate, why = usual, f"the loss of rows held out hardly falls at any of them; {usual:g} is usual and stays"
    else:
        rate = float(f"{rates[at] / MARGIN:.1g}")
        after = "rises from there on" if at < len(smooth) - 1 else "was still falling at the highest"
        lowest = f"lowest at {rates[at]:.1g} ({smooth[at]:.0%} of where it began) and {after}"
        margin = f"a whole run needs a margin, so the rate is {rate:g}, a third ({usual:g} is usual)"
        why = f"the loss of rows held out is {lowest}; {margin}"
    return LearningRate(rates=list(rates), losses=list(losses), chosen=rate, sentence=f"{tried}: {why}")
