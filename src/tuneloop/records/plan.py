"""What a job will take: `plan.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.records.record import Part, Record

PLAN = "plan.json"


@dataclass(frozen=True)
class MeasuredMachine:
    """What the plan measured of a machine, for the training loop: how steps are divided there, and how fast they are.

    None of it changes a run's steps, so a run is not identified by it.
    """

    micro_batch_tokens: int = 0  # computed at once, as a GPU's memory allows; 0: as the settings or the loop have it
    recompute: bool = False  # layers are computed again in the backward pass from the beginning
    kept_layers: int = 0  # but for so many of the last ones
    tokens_per_second: float = 0.0  # speed of forward and backward passes; 0: not measured
    seconds_spent: float = 0.0  # of the training time, on measuring that speed

    @staticmethod
    def of_plan(plan: Mapping[str, Any] | None) -> MeasuredMachine:
        """What a `plan.json` says, the same for a resumed run, whatever memory is free; nothing without a plan."""
        if not plan:
            return MeasuredMachine()
        division = {name: plan[name] for name in DIVISION if name in plan}
        speed, seconds = plan["time"]["tokens_per_second"], plan.get("measuring_seconds", 0.0)
        return MeasuredMachine(**division, tokens_per_second=speed, seconds_spent=seconds)

    def division(self) -> dict[str, Any]:
        """How steps are divided, by the keys of `plan.json`."""
        return {name: getattr(self, name) for name in DIVISION}


DIVISION = ("micro_batch_tokens", "recompute", "kept_layers")


class PlannedMemory(Part):
    """Memory of a training step.

    Args:
        peak_gib, capacity_gib: most that is in use at a time, and what the machine has.
        phase: the part of a step with the peak; `terms`: what the peak consists of, in GiB.
        phases: the terms of every phase.
        allocated_gib, reserved_gib, torch_reserved_gib, required_gib, headroom_gib: see `planning.memory`.
    """

    peak_gib: float
    capacity_gib: float
    phase: str = ""
    terms: dict[str, float] = {}
    phases: dict[str, dict[str, float]] | None = None
    allocated_gib: float | None = None
    reserved_gib: float | None = None
    torch_reserved_gib: float | None = None
    required_gib: float | None = None
    headroom_gib: float | None = None


class PlannedTime(Part):
    """Hours with the bounds of 80 % of runs, and the speed they follow from; None of a job that does not fit."""

    hours: float | None = None
    low: float | None = None
    high: float | None = None
    tokens_per_second: float | None = None
    tflop_per_token: float | None = None
    share_of_peak: float | None = None
    bound: str | None = None
    breakdown: dict[str, float] | None = None


class UntilKept(Part):
    """Dollars of what usually happens until a run is kept."""

    usd: float
    breakdown: dict[str, float] = {}


class PlannedCost(Part):
    """Dollars, see `planning.cost.Cost`; None of a job that does not fit, or where no price is known."""

    usd: float | None = None
    low: float | None = None
    high: float | None = None
    p50: float | None = None
    p90: float | None = None
    breakdown: dict[str, float] = {}
    usd_per_hour: float | None = None
    hours: float | None = None
    explained: dict[str, str] | None = None
    until_kept: UntilKept | None = None
    assumptions: list[str] | None = None


class Change(Part):
    """A setting that would make a job fit, and why."""

    change: str
    why: str = ""
    required_gib: float | None = None


class Corrected(Part):
    """Factors that earlier runs on this machine have taught, and the results without them."""

    memory: float = 1.0
    time: float = 1.0
    peak_gib: float | None = None
    hours: float | None = None


class ByFormula(Part):
    """The speed as the formulas give it, where it was measured too."""

    tokens_per_second: float


class PlannedRows(Part):
    """Training rows, how many of them the steps see, and that in words."""

    train: int
    seen: int
    words: str


class PlannedValidation(Part):
    """How often the run is validated, on how many rows."""

    times: int
    rows: int


class NotOfTraining(Part):
    """Minutes that the baselines took and that the evaluation will take."""

    baselines_minutes: float
    evaluation_minutes: float


class TrialRun(Part):
    """What a short trial run came to."""

    minutes: float
    peak_gib: float
    tokens_per_second: float


HERE, OTHERS, COMPUTED = "measured here", "measured by others", "computed"


class Certainty(Part):
    """How sure a plan is, and the intervals that 90 % of the published runs are within whose sources the constants had
    not seen.

    Args:
        basis: what is known of this kind of setup: `measured here`, `measured by others`, or `computed`.
        sources, runs: how many have published runs of its kind, and how many runs.
        required_low_gib, required_high_gib: of the memory that the device must have.
        may_not_fit: it fits as planned, and that interval reaches over the device's memory.
        tokens_per_second_low, tokens_per_second_high: of the speed; None of one that was just measured.
    """

    basis: str
    sources: int = 0
    runs: int = 0
    required_low_gib: float
    required_high_gib: float
    may_not_fit: bool = False
    tokens_per_second_low: float | None = None
    tokens_per_second_high: float | None = None


class Plan(Record, noun="a plan", file=PLAN, again="delete the file and plan again"):
    """`plan.json`: a job on a machine.

    Args:
        key: hash of everything that a run's plan depends on.
        gpu, gpus: the device and how many; 0 for a processor.
        fits: whether the memory is enough; `certainty`: how sure that is.
        settings: of the job, as the command line spells them.
        steps, tokens: optimizer steps, and tokens that they train on.
        micro_batch_tokens: computed at once, where a GPU's memory decided that; 0: as the loop does. recompute: whether
            layers are computed again in the backward pass from the first step on; kept_layers: but for the last ones.
        assumptions: in words; `alternatives`: what to change where it does not fit.
        table: every device that was looked at; `recommendation`: one sentence.
        apart: what is not of the training; `max_minutes`: the limit on time.
        disturbed: the machine was busy when its speed was measured; `measuring_seconds`: how long that took.
        measured: what a trial run came to (`tuneloop plan --calibrate`).
    """

    model: str
    method: str
    gpu: str
    gpus: int
    fits: bool
    trainable_parameters: int = 0
    total_parameters: int = 0
    settings: dict[str, Any] | None = None
    steps: int = 0
    tokens: int = 0
    micro_batch_tokens: int = 0
    recompute: bool = False
    kept_layers: int = 0
    by_formula: ByFormula | None = None
    certainty: Certainty | None = None
    memory: PlannedMemory
    time: PlannedTime
    cost: PlannedCost
    assumptions: list[str] = []
    alternatives: list[Change] = []
    table: list[dict[str, Any]] | None = None
    recommendation: str | None = None
    corrected_by: Corrected | None = None
    rows: PlannedRows | None = None
    validation: PlannedValidation | None = None
    max_minutes: float | None = None
    apart: NotOfTraining | None = None
    disturbed: bool = False
    measuring_seconds: float = 0.0
    measured: TrialRun | None = None
    key: str = ""


@dataclass(frozen=True)
class ServingFit:
    """A format on a machine.

    Args:
        weights_gib, cache_gib, peak_gib: of all GPUs together.
        one, all, prompt: tokens a second: written to a single request, to all of them together, read of a prompt.
    """

    format: str
    engine: str
    machine: str
    gpus: int  # of which all are needed
    fits: bool
    weights_gib: float
    cache_gib: float
    peak_gib: float
    capacity_gib: float  # that they have
    one: float | None = None
    all: float | None = None
    prompt: float | None = None
