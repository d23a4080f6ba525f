"""How sure a plan is: by what is known of its kind of setup (runs here, runs of others, or formulas alone), and how far
runs of sources that no constant had seen were from their plans."""

from __future__ import annotations

from pathlib import Path

from tuneloop.core.foreign import packaged_yaml
from tuneloop.planning.job import TrainingSetup
from tuneloop.records.plan import COMPUTED, HERE, OTHERS, Certainty

KNOWN = Path(__file__).with_name("certainty.yaml")  # made by benchmarks/plan_left_out.py
# Of tuneloop's own loop on a processor: peaks of 24 jobs to which nothing was fitted, 22 of them within 10 %
# (`benchmarks/plan.py loop` and `families`).
OWN_LOOP = (0.9, 1.1)


def kind_of(job: TrainingSetup) -> str:
    """A kind of setup that errs alike: whether all weights, adapters or adapters of quantised weights are trained, on
    one card, on several that are linked, or on several that exchange all through the host's memory."""
    trained = "all weights" if job.full else "quantised" if job.quant != "none" else "adapter"
    cards = "one card" if job.gpus == 1 else job.sharding if job.gpu.p2p else f"{job.sharding} without links"
    cards = "processor" if job.gpu.is_cpu else cards
    return f"{trained}, {cards}{', experts' if job.shape.experts else ''}"


def groups_of(job: TrainingSetup) -> dict[str, str]:
    """The groups that have intervals of their own, since each kind has too few sources: for memory by whether a card
    holds the whole model, for speed by whether there are several."""
    whole = job.sharding in ("none", "ddp")
    return {"memory": "whole" if whole else "sharded", "speed": "one card" if job.gpus == 1 else "several cards"}


def certainty_of(
    job: TrainingSetup, required_gib: float, capacity_gib: float, speed: float | None = None, *, here: bool
) -> Certainty:
    """How sure a plan of the job is.

    Args:
        required_gib: as planned, of `capacity_gib`.
        speed: tokens a second by formula; None: just measured.
        here: whether its speed is known from runs on this machine.
    """
    known = packaged_yaml(KNOWN)
    published = known["published"].get(kind_of(job), {})
    memory, speeds = (known["intervals"][part][group] for part, group in groups_of(job).items())
    low, high = (share * required_gib for share in (OWN_LOOP if job.gpu.is_cpu else memory))
    slow, fast = (None, None) if speed is None else (round(share * speed) for share in speeds)
    return Certainty(
        basis=HERE if here else OTHERS if published else COMPUTED,
        **published,
        required_low_gib=round(low, 2),
        required_high_gib=round(high, 2),
        may_not_fit=required_gib <= capacity_gib < high,
        tokens_per_second_low=slow,
        tokens_per_second_high=fast,
    )
