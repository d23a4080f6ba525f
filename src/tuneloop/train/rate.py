"""`train.learning_rate=auto`: a short range test on a throwaway adapter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from tuneloop.models.load import Model
from tuneloop.train.batches import plan_steps
from tuneloop.train.checkpoint import State
from tuneloop.train.config import TrainConfig, usual_rate
from tuneloop.train.loop import Run, optimizer_step
from tuneloop.train.methods import attach
from tuneloop.train.optimizers import make_optimizer
from tuneloop.train.rows import TrainRow
from tuneloop.types import Progress, no_progress

# Rates tried: from a hundredth of the usual one to a hundred times it, in even factors.
RATES, SPAN = 36, 100.0
# Batches that the rates take turns on; fewer would be known by heart before the high rates come. A batch's loss is compared
# with its own first one: other rows, other losses.
BATCHES = 12
# The loss has its lowest point just before it rises; a whole run needs a margin to that (Smith 2017; fast.ai takes a tenth).
MARGIN = 4.0


@dataclass(frozen=True)
class RangeTest:
    """Rates tried in order, the loss at each as a share of the same batch's before, the rate chosen, and why."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    chosen: float
    sentence: str


def range_test(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, seed: int, *, progress: Progress = no_progress
) -> RangeTest:
    """Raise the learning rate step by step and see where the loss stops to fall (Smith 2017, arXiv 1506.01186).

    The model is left as it was.
    """
    import torch

    steps = plan_steps(rows, config, seed)
    picked = random.Random(seed).sample(steps, min(len(steps), BATCHES))
    usual = usual_rate(config.method, config.loss)
    rates = [usual / SPAN * SPAN ** (2 * i / (RATES - 1)) for i in range(RATES)]
    rng = torch.get_rng_state()
    trainable = attach(model, config, seed, rows)
    run = Run(model, config, trainable, make_optimizer(trainable, config), State("range test"), Path())
    model.net.train()
    first: dict[int, float] = {}
    losses: list[float] = []
    for i, rate in enumerate(rates):
        loss, _, _ = optimizer_step(run, picked[i % len(picked)], rows, rate)
        losses.append(loss / first.setdefault(i % len(picked), loss))
        progress("trying learning rates", i + 1, RATES)
        if not math.isfinite(loss) or losses[-1] > 2:
            break
    progress("trying learning rates", RATES, RATES)
    trainable.detach()
    model.net.eval()
    torch.set_rng_state(rng)
    return choose(rates[: len(losses)], losses, usual)


def choose(rates: Sequence[float], losses: Sequence[float], usual: float) -> RangeTest:
    """The rate that a range test speaks for: a quarter of that at which the smoothed loss is lowest, in one digit.

    Where the loss never fell by a tenth there is nothing to choose by, and the usual rate stays.
    """
    known = [loss if math.isfinite(loss) else 1e9 for loss in losses]
    smooth = [mean(known[max(i - 1, 0) : i + 2]) for i in range(len(known))]
    at = min(range(len(smooth)), key=smooth.__getitem__)
    tried = f"{len(rates)} rates from {rates[0]:.1g} to {rates[-1]:.1g} tried"
    if smooth[at] > 0.9:
        return RangeTest(
            tuple(rates),
            tuple(losses),
            usual,
            f"{tried}: the loss hardly falls at any of them; {usual:g} is usual and stays",
        )
    chosen = float(f"{rates[at] / MARGIN:.1g}")
    after = "rises from there on" if at < len(smooth) - 1 else "was still falling at the highest"
    return RangeTest(
        tuple(rates),
        tuple(losses),
        chosen,
        f"{tried}: the loss is lowest at {rates[at]:.1g} ({smooth[at]:.0%} of where it began) and {after}; "
        f"a whole run needs a margin, so the rate is {chosen:g}, a quarter ({usual:g} is usual)",
    )
