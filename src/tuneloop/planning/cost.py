"""What a run costs in all: the machine, what goes wrong, files, and people's hours; expected, P50 and P90.

Where a share is uncertain it is a lognormal with the given P10 and P90, as durations of work and of runs tend to be
(never negative, a long tail to the right). The distribution of the sum is drawn with a fixed seed, so the same
question has the same answer.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted, exactly, hours_words, usd_words
from tuneloop.planning.catalogue.prices import Price

DRAWS = 2000
MOST = 10**9  # of any hours, dollars an hour, rows or runs: more is a slip of the pen
Z90 = 1.2815515594  # the normal distribution's 90th percentile


@dataclass(frozen=True)
class Interruptions:
    """How a run is interrupted, and what its checkpoints cost."""

    per_hour: float = 0.0  # hazard of one machine: expected interruptions an hour
    checkpoint_minutes: float | None = None  # work between two checkpoints; None: the best interval (Daly)
    save_minutes: float = 0.25  # a checkpoint takes that long
    restart_minutes: float = 10.0  # from an interruption to the next useful step: a new machine, loading, compiling
    last_minutes: float | None = None  # the last one, of the result without the optimizer's states; None: as the others

    @property
    def saved_at_the_end(self) -> float:
        """Hours by which the last checkpoint is shorter than the others."""
        return 0.0 if self.last_minutes is None else (self.save_minutes - self.last_minutes) / 60


# A GPU machine fails once in 50,000 GPU hours: 419 unexpected interruptions in 54 days on 16,384 GPUs ("The Llama 3
# Herd of Models", 2024, table 5). How soon a spot machine is taken away depends on place, card and day, and no provider
# publishes hours: one in 10 is an assumption on the careful side, stated with every result.
FAILURES_PER_GPU_HOUR = 1 / 50_000
RECLAIMS_PER_SPOT_HOUR = 1 / 10
GPUS_A_MACHINE = 8
NEVER = 1e-9  # an hour: less often than once in 100,000 years is not at all, and exact sums end in nothing


@dataclass(frozen=True)
class Efforts:
    """What a run takes apart from training: a machine's hours, files, people; each result states the defaults."""

    setup_hours: float = 0.5  # paid machine time before the first useful step: image, model download, a trial run
    evaluation_hours: float = 0.5  # paid machine time for baselines and evaluation
    runs: float = 3.0  # training runs until one is kept: the first seldom is
    failed_share: float = 0.1  # share of runs that end in an error and are paid for half of their time
    storage_gb: float = 20.0  # kept after the run: checkpoints, adapter, data
    storage_months: float = 3.0  # how long
    rows_to_label: int = 0  # rows that people still have to write or check
    minutes_a_row: float = 1.0  # people's time for each of them
    engineer_hours: float = 16.0  # people's time for setting up, watching, evaluating, deploying
    usd_per_engineer_hour: float = 0.0  # what people cost; 0 leaves their time out
    usd_per_labeller_hour: float = 0.0
    hours_spread: float = 2.0  # P90 of people's hours over their middle


# One run alone, where `plan` and `advise` start: no trial before it, nothing kept but its result.
ONE_RUN = Efforts(setup_hours=0.0, evaluation_hours=0.0, runs=1, storage_gb=0.0, storage_months=1)


@dataclass(frozen=True)
class Cost:
    """Dollars: `usd` expected, `p50` and `p90` of the distribution, `low` its P10."""

    usd: float
    low: float
    p50: float
    p90: float
    breakdown: dict[str, float]  # expected dollars by part; they add up to `usd`
    hours: float  # expected wall hours of one run, interruptions included
    explained: dict[str, str] = field(default_factory=dict)  # how each part comes about, as in `10 hours x $50 an hour`
    # the same parts of what usually happens until a run is kept (`Efforts()`), where only one run is counted; else None
    until_kept: dict[str, float] | None = None
    assumptions: list[str] = field(default_factory=list)  # everything that was assumed, in words

    def to_json(self) -> dict[str, Any]:
        """As `plan.json` holds it: `high` is the P90."""
        parts = self.until_kept
        until_kept = None if parts is None else {"usd": sum(parts.values()), "breakdown": parts}
        return {**asdict(self), "high": self.p90, "until_kept": until_kept}


def best_checkpoint_hours(save_hours: float, mean_hours: float) -> float:
    """Work between checkpoints that loses least, in hours. Daly, "A higher order estimate of the optimum checkpoint
    interval for restart dumps" (2006), eq. 37, with d the time of a checkpoint and M the mean time between
    interruptions; its first term is Young's sqrt(2 d M) (1974)."""
    if save_hours >= 2 * mean_hours:
        return mean_hours
    ratio = save_hours / (2 * mean_hours)
    return math.sqrt(2 * save_hours * mean_hours) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_hours


def expected_hours(work_hours: float, how: Interruptions) -> float:
    """Expected wall hours of `work_hours` of training with checkpoints and interruptions that come at random. Daly
    (2006), eq. 20: T = M exp(R/M) (exp((t + d)/M) - 1) W/t, with t the interval, d the time of a checkpoint, R the time
    of a restart, M the mean time between interruptions; exact for a Poisson process, also during restarts."""
    save, restart = how.save_minutes / 60, how.restart_minutes / 60
    if how.per_hour <= NEVER:
        return work_hours + checkpoint_hours(work_hours, how)
    mean, interval = 1 / how.per_hour, _interval_hours(work_hours, how)
    exponent = (interval + save) / mean
    if exponent + restart / mean > 50:
        return math.inf  # interrupted again before the first checkpoint: it never ends
    hours = mean * math.exp(restart / mean) * math.expm1(exponent) * work_hours / interval
    return hours - how.saved_at_the_end if work_hours else hours


def checkpoint_hours(work_hours: float, how: Interruptions) -> float:
    """Hours of those that go into writing checkpoints, the last at the end; an uninterrupted run has these too."""
    if not work_hours:
        return 0.0
    return how.save_minutes / 60 * work_hours / _interval_hours(work_hours, how) - how.saved_at_the_end


def _interval_hours(work_hours: float, how: Interruptions) -> float:
    """Work between two checkpoints: as given, or the best interval, but never more than the run."""
    interval = work_hours
    if how.checkpoint_minutes:
        interval = how.checkpoint_minutes / 60
    elif how.per_hour > NEVER:
        interval = best_checkpoint_hours(how.save_minutes / 60, 1 / how.per_hour)
    return min(max(interval, 1 / 3600), max(work_hours, 1 / 3600))


def finite_hours(work_hours: float, how: Interruptions) -> float:
    """`expected_hours`. Raises UserError: the run never ends."""
    hours = expected_hours(work_hours, how)
    if math.isfinite(hours):
        return hours
    where = f"{how.per_hour:g} interruptions an hour, a checkpoint of {how.save_minutes:.2g} minutes"
    message = "Interruptions come faster than checkpoints: the run never ends"
    raise UserError(message, where=where, next_step="checkpoint more often, or rent on demand")


def interruptions(tier: str, gpus: int = 1) -> Interruptions:
    """What to expect of a price tier: failures of GPUs, and reclaimed machines on spot; any of them stops the run."""
    reclaims = RECLAIMS_PER_SPOT_HOUR * math.ceil(gpus / GPUS_A_MACHINE) if tier == "spot" else 0.0
    return Interruptions(per_hour=FAILURES_PER_GPU_HOUR * gpus + reclaims)


def cost_of(
    training_hours: float,
    low_hours: float,
    high_hours: float,
    gpus: int,
    price: Price,
    *,
    efforts: Efforts | None = None,
    how: Interruptions | None = None,
    usd_per_gb_month: float = 0.07,
) -> Cost:
    """The cost of training until a run is kept.

    `training_hours`: predicted wall hours of one uninterrupted run; `low_hours`, `high_hours`: its P10 and P90. `gpus`:
    used by the run; whole machines are paid for. `efforts`: what it takes apart from training; default: `Efforts()`.
    `how`: interruptions; default: what the price's tier lets expect. `usd_per_gb_month`: of kept files. Raises
    UserError: hours that can't be, or interruptions so frequent that the run never ends.
    """
    efforts = efforts or Efforts()
    how = how or interruptions(price.tier, gpus)
    _check(training_hours, low_hours, high_hours, efforts, how)
    rate = price.machines_usd(gpus)
    stretch = finite_hours(training_hours, how) / training_hours if training_hours else 1.0
    writing = checkpoint_hours(training_hours, how) / training_hours if training_hours else 0.0
    charges = _Charges(training_hours, stretch, writing, rate, usd_per_gb_month)
    parts = charges.parts(efforts)
    usd, labour = sum(parts.values()), [parts["data preparation"], parts["engineering"]]
    fixed = parts["setup"] + parts["evaluation"] + parts["storage"]
    spread, human = lognormal_sigma(low_hours, high_hours), math.log(efforts.hours_spread) / Z90
    quantiles = _quantiles(fixed, usd - fixed - sum(labour), spread, labour, human)
    alone = (efforts.runs, efforts.setup_hours, efforts.evaluation_hours) == (1, 0, 0)
    usual = replace(efforts, runs=3.0, setup_hours=0.5, evaluation_hours=0.5)
    until_kept, explained = charges.parts(usual) if alone else None, charges.explained(efforts)
    assumptions = assumptions_of(efforts, how, price, usd_per_gb_month)
    return Cost(usd, *quantiles, parts, training_hours * stretch, explained, until_kept, assumptions)


@dataclass(frozen=True)
class _Charges:
    hours: float  # of one run
    stretch: float  # by checkpoints and interruptions
    writing: float  # what of that is writing of checkpoints
    rate: float  # dollars an hour of all its machines
    usd_per_gb_month: float

    def parts(self, efforts: Efforts) -> dict[str, float]:
        runs = self.hours * self.rate * efforts.runs
        return {
            "training": runs,
            "checkpoints": runs * self.writing,
            "interruptions": runs * (self.stretch - 1 - self.writing),
            "failed runs": runs * efforts.failed_share / 2,
            "setup": efforts.setup_hours * self.rate,
            "evaluation": efforts.evaluation_hours * efforts.runs * self.rate,
            "storage": efforts.storage_gb * efforts.storage_months * self.usd_per_gb_month,
            "data preparation": efforts.rows_to_label * efforts.minutes_a_row / 60 * efforts.usd_per_labeller_hour,
            "engineering": efforts.engineer_hours * efforts.usd_per_engineer_hour,
        }

    def explained(self, efforts: Efforts) -> dict[str, str]:
        rate, runs = f"{usd_words(self.rate)} an hour", exactly(efforts.runs, "run")
        rows, minutes = counted(efforts.rows_to_label, "row"), exactly(efforts.minutes_a_row, "minute")
        labeller, engineer = usd_words(efforts.usd_per_labeller_hour), usd_words(efforts.usd_per_engineer_hour)
        stored = f"{efforts.storage_gb:g} GB x {exactly(efforts.storage_months, 'month')}"
        return {
            "training": f"{runs} of {hours_words(self.hours)} x {rate}",
            "checkpoints": f"{hours_words(self.hours * self.writing)} of writing them x {rate}",
            "interruptions": "work repeated and restarts, as often as they are expected",
            "failed runs": f"{efforts.failed_share:.0%} of runs fail, half-way on average",
            "setup": f"{hours_words(efforts.setup_hours)} x {rate}",
            "evaluation": f"{runs} x {hours_words(efforts.evaluation_hours)} x {rate}",
            "storage": f"{stored} x {usd_words(self.usd_per_gb_month)} a GB and month",
            "data preparation": f"{rows} x {minutes} x {labeller} an hour",
            "engineering": f"{exactly(efforts.engineer_hours, 'hour')} x {engineer} an hour",
        }


def _quantiles(
    fixed: float, machine: float, spread: float, labour: list[float], human: float
) -> tuple[float, float, float]:
    """P10, P50 and P90 of fixed + lognormal parts; drawn only where there are several, for one they are known.
    `machine` is the middle of a distribution, `labour` the means of lognormals, which lie above their middles."""
    if not any(labour):
        low, middle, high = (fixed + machine * math.exp(spread * z) for z in (-Z90, 0.0, Z90))
        return low, middle, high
    totals = []
    for z, *hs in _normals():
        people = sum(usd * math.exp(human * h - human**2 / 2) for usd, h in zip(labour, hs, strict=True))
        totals.append(fixed + machine * math.exp(spread * z) + people)
    totals.sort()
    return totals[DRAWS // 10], totals[DRAWS // 2], totals[DRAWS * 9 // 10]


def lognormal_sigma(low: float, high: float) -> float:
    """Sigma of the lognormal whose P10 and P90 are given."""
    return math.log(high / low) / (2 * Z90) if high > low > 0 else 0.0


@functools.cache
def _normals() -> tuple[tuple[float, float, float], ...]:
    normal = random.Random(0).gauss
    return tuple((normal(0, 1), normal(0, 1), normal(0, 1)) for _ in range(DRAWS))


def assumptions_of(efforts: Efforts, how: Interruptions, price: Price, usd_per_gb_month: float) -> list[str]:
    """Everything that `cost_of` assumes, in words."""
    mean = f"one interruption in {1 / how.per_hour:,.0f} hours" if how.per_hour else "no interruptions"
    minutes = how.checkpoint_minutes
    every = f"every {exactly(minutes, 'minute')}" if minutes else "at the best interval (Daly 2006)"
    runs = "training runs until one is kept" if efforts.runs != 1 else "training run"
    sentences = [
        price.words(),
        f"{efforts.runs:g} {runs}; {efforts.failed_share:.0%} of runs fail, half-way on average",
        f"{mean}, checkpoints {every}, {exactly(how.restart_minutes, 'minute')} to restart",
    ]
    if efforts.setup_hours or efforts.evaluation_hours:
        setup = f"{efforts.setup_hours:g} machine hours of setup"
        sentences.append(f"{setup}, {efforts.evaluation_hours:g} of evaluation for each run")
    months = exactly(efforts.storage_months, "month")
    sentences.append(f"{efforts.storage_gb:g} GB kept for {months} at ${usd_per_gb_month:g} a GB and month")
    if efforts.rows_to_label:
        pace = f"{exactly(efforts.minutes_a_row, 'minute')} and {usd_words(efforts.usd_per_labeller_hour)} an hour"
        sentences.append(f"{counted(efforts.rows_to_label, 'row')} to write or check at {pace}")
    people = f"{exactly(efforts.engineer_hours, 'hour')} of engineering at ${efforts.usd_per_engineer_hour:g}"
    if not efforts.usd_per_engineer_hour:
        people = "people's time is not counted (--engineer-hours, --usd-per-engineer-hour)"
    return [*sentences, people]


def _check(hours: float, low: float, high: float, efforts: Efforts, how: Interruptions) -> None:
    numbers = {"hours": hours, "low": low, "high": high, **vars(efforts), **vars(how)}
    for name, value in numbers.items():
        if value is not None and not 0 <= value <= MOST:
            message = f"Not a possible {name.replace('_', ' ')}: {value!r}"
            raise UserError(message, where=name, next_step=f"give 0 to {MOST:,}")
    if not low <= hours <= high:
        message = f"{hours:g} hours lie outside of their range, {low:g} to {high:g}"
        raise UserError(message, where="hours", next_step="check the range")
    if efforts.hours_spread < 1 or efforts.failed_share > 1:
        raise UserError("hours_spread is at least 1, failed_share at most 1", where="efforts", next_step="check them")
