"""What an experiment can show before anything is spent: false promotions, power and days, by simulation.
Ratings are simulated look by look as counts. Estimate, variance and bounds follow from these exactly as
`core/stats/sequences.py` gets them from single units, with the arms' means of the looks before, so thousands of
experiments take a second."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.sequences import best_rho2, margin
from tuneloop.core.units import counted
from tuneloop.improve.experiment.record import DenserMeasure, ExperimentPlan, ExperimentPlanOptions, PlannedPower

LEAST_UNITS = 30  # rated units of either arm before the first decision: the sequence is asymptotic
MOST_LOOKS = 400
MOST_DAYS = 3650
Z_TWO_SIDED = 1.959963984540054
TABLE_DAYS = (7, 28, 91, 182, 365, 730, 1460)
if TYPE_CHECKING:
    Counts = NDArray[np.int64]
    Arm = tuple[Counts, Counts]  # units, and those of them whose value is good


@dataclass(frozen=True)
class SimulatedTraffic:
    """Units of both arms."""

    units_per_day: float  # that get a value
    share: float  # of the candidate
    base: float  # base, effect: the champion's rate, and how much higher the candidate's is
    effect: float

    @property
    def deviation(self) -> float:
        """Standard deviation of what one unit says of the difference, where there is none."""
        return math.sqrt(self.base * (1 - self.base) * (1 / self.share + 1 / (1 - self.share)))


@dataclass(frozen=True)
class Looks:
    """Simulated experiments, looked at again and again; arrays are (experiments, looks)."""

    days: NDArray[np.int64]  # of each look
    units: Array  # mean number of units by then
    promoted: NDArray[np.bool_]  # promoted, rolled_back: whether it has so ended by then
    rolled_back: NDArray[np.bool_]
    z_promoted: NDArray[np.bool_]  # whether the usual z-test has been significant for the candidate by then


def units_for(deviation: float, effect: float, alpha: float) -> int:
    """Units after which the interval is as narrow as the effect: one look then finds it with a chance of 50 %.

    `deviation`: standard deviation of what one unit says; `alpha`: of the sequence, which is narrowest there.
    """
    x = best_rho2(1.0, alpha)  # at the best mixture the width depends on units times rho2 alone
    return math.ceil(2 * (1 + 1 / x) * math.log(math.sqrt(x + 1) / alpha) * (deviation / effect) ** 2)


def simulate(traffic: SimulatedTraffic, *, planned: int, alpha: float, days: int, simulations: int, seed: int) -> Looks:
    """Simulate experiments that are looked at daily; over long times less often, 400 times in all.

    `planned`: units at which the sequence is narrowest; `alpha`: of the sequence and of the z-test.
    """
    rng = np.random.default_rng(seed)
    every = math.ceil(days / MOST_LOOKS)
    at = np.arange(every, days + every, every)
    units = rng.poisson(traffic.units_per_day * every, (simulations, len(at)))
    in1 = rng.binomial(units, traffic.share)
    in0 = units - in1
    good1, good0 = rng.binomial(in1, traffic.base + traffic.effect), rng.binomial(in0, traffic.base)
    total, total1, total0 = (np.cumsum(counts, axis=1) for counts in (units, in1, in0))
    mean, deviation = _estimate(traffic.share, units, (in1, good1), (in0, good0))
    n = np.maximum(total, 1)
    enough = (total1 >= LEAST_UNITS) & (total0 >= LEAST_UNITS)
    half = np.where(enough, deviation * margin(n, alpha, best_rho2(planned, alpha)), np.inf)
    up, down = mean > half, mean < -half
    first_up, first_down = _first(up), _first(down)
    looks = np.arange(len(at))
    z = _z_scores(np.cumsum(good1, axis=1), total1, np.cumsum(good0, axis=1), total0)
    return Looks(
        days=at,
        units=total.mean(axis=0),
        promoted=(first_up < first_down)[:, None] & (first_up[:, None] <= looks),
        rolled_back=(first_down < first_up)[:, None] & (first_down[:, None] <= looks),
        z_promoted=_first(enough & (z > Z_TWO_SIDED))[:, None] <= looks,
    )


def _estimate(share: float, units: Counts, candidate: Arm, champion: Arm) -> tuple[Array, Array]:
    """The mean and the standard deviation of the units' values after each look; see `sequences.contrast`."""
    (in1, good1), (in0, good0) = candidate, champion

    def before(counts: Counts) -> Counts:
        return np.asarray(np.cumsum(counts, axis=1) - counts)

    everyone = (before(good1 + good0) + 0.5) / (before(units) + 1)
    m1 = (before(good1) + everyone) / (before(in1) + 1)
    m0 = (before(good0) + everyone) / (before(in0) + 1)
    values = (  # how many units have which value
        (good1, m1 - m0 + (1 - m1) / share),
        (in1 - good1, m1 - m0 - m1 / share),
        (good0, m1 - m0 - (1 - m0) / (1 - share)),
        (in0 - good0, m1 - m0 + m0 / (1 - share)),
    )
    n = np.maximum(np.cumsum(units, axis=1), 1)
    mean = np.cumsum(sum(count * value for count, value in values), axis=1) / n
    square = np.cumsum(sum(count * value * value for count, value in values), axis=1) / n
    return mean, np.sqrt(np.maximum(square - mean * mean, 0.0))


def _first(happened: NDArray[np.bool_]) -> Counts:
    """The first look at which it happened; one beyond the last where it never did."""
    return np.asarray(np.where(happened.any(axis=1), happened.argmax(axis=1), happened.shape[1]))


def _z_scores(good1: Array, n1: Array, good0: Array, n0: Array) -> Array:
    n1, n0 = np.maximum(n1, 1), np.maximum(n0, 1)
    pooled = (good1 + good0) / (n1 + n0)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n0))
    return np.asarray(np.divide(good1 / n1 - good0 / n0, error, out=np.zeros_like(error), where=error > 0))


def plan_experiment(settings: Mapping[str, Any]) -> ExperimentPlan:
    """What an experiment with this traffic can show.

    `settings`: by the names of `ExperimentPlanOptions`; what is missing has its default. Raises UserError: a number
    that can't be.
    """
    options = build_config(ExperimentPlanOptions, settings)
    if options.base + options.effect >= 1:
        what = f"A share of {options.base:g} can't rise by {options.effect:g}: it would pass 1"
        raise UserError(what, where="--effect", next_step=f"set --effect below {1 - options.base:.3g}")
    traffic = SimulatedTraffic(options.requests_per_day * options.rated, options.share, options.base, options.effect)
    planned = units_for(traffic.deviation, options.effect, options.alpha)
    days = _days_to_simulate(planned, traffic)
    seeds = iter(range(options.seed, options.seed + 100))

    def looks(effect: float) -> Looks:
        sizes = {"planned": planned, "days": days, "simulations": options.simulations, "seed": next(seeds)}
        return simulate(replace(traffic, effect=effect), alpha=options.alpha, **sizes)

    null, effective = looks(0.0), looks(options.effect)
    more = [factor * options.effect for factor in (-1.0, 0.5, 2.0)]
    others = [(effect, looks(effect)) for effect in more if 0 < options.base + effect < 1]
    tables = sorted([(0.0, null), (options.effect, effective), *others], key=lambda pair: pair[0])
    units_50, days_50 = _when(effective, 0.5)
    units_80, days_80 = _when(effective, 0.8)
    values: dict[str, Any] = {
        "units_per_day": traffic.units_per_day, "candidate_units_per_day": traffic.units_per_day * options.share,
        "units_one_look": planned, "days_one_look": math.ceil(planned / traffic.units_per_day),
        "units_50": units_50, "days_50": days_50, "units_80": units_80, "days_80": days_80,
        "false_promotion": float(null.promoted[:, -1].mean()),
        "false_promotion_z": float(null.z_promoted[:, -1].mean()),
        "days_simulated": int(null.days[-1]), "look_every_days": int(null.days[0]),
        "power": [row for effect, table in tables for row in _power(effect, table)],
        "denser": list(_denser(options, traffic)),
    }  # fmt: skip
    plan = ExperimentPlan(**options.model_dump(), **values, summary=[])
    return plan.model_copy(update={"summary": list(_summary(plan))})


def _days_to_simulate(units: int, traffic: SimulatedTraffic) -> int:
    return int(min(max(7, math.ceil(3 * units / traffic.units_per_day)), MOST_DAYS))


def _when(looks: Looks, share: float) -> tuple[int | None, int | None]:
    """Units and days until this share of the experiments has been promoted; None: not in the simulated time."""
    reached = looks.promoted.mean(axis=0) >= share
    if not reached.any():
        return None, None
    at = int(reached.argmax())
    return round(float(looks.units[at])), int(looks.days[at])


def _power(effect: float, looks: Looks) -> Iterator[PlannedPower]:
    last = int(looks.days[-1])
    for days in [*(day for day in TABLE_DAYS if day < last), last]:
        at = int(np.searchsorted(looks.days, days))
        promoted, rolled_back = (float(ended[:, at].mean()) for ended in (looks.promoted, looks.rolled_back))
        day, units = int(looks.days[at]), round(float(looks.units[at]))
        yield PlannedPower(effect=effect, days=day, units=units, promoted=promoted, rolled_back=rolled_back)


def _denser(options: ExperimentPlanOptions, traffic: SimulatedTraffic) -> Iterator[DenserMeasure]:
    """What else could be measured, each simulated with the same effect in points."""
    requests = options.requests_per_day
    ways = []
    if options.share < 0.5:
        how = "give the candidate half of the traffic, after shadow mode and a ramp; more users meet it if it is bad"
        ways.append(("half of the traffic", how, replace(traffic, share=0.5)))
    if options.rated < 0.1:
        how = "request a rating under every answer, or from some users: 10 % rated"
        ways.append(("more ratings", how, replace(traffic, units_per_day=requests * 0.1)))
    if options.rated < 1:
        how = "count what every request shows on its own: was the answer kept as it is, was the question not repeated"
        ways.append(("no edits, no retries", how, replace(traffic, units_per_day=requests)))
        how = "people label requests of both arms (`tuneloop review`): is the answer right? Here 200 a day, in halves"
        ways.append(("label agreement", how, replace(traffic, units_per_day=min(200.0, requests), share=0.5)))
    for name, how, way in ways:
        planned = units_for(way.deviation, options.effect, options.alpha)
        days = _days_to_simulate(planned, way)
        looks = simulate(way, planned=planned, alpha=options.alpha, days=days, simulations=400, seed=options.seed)
        units, reached = _when(looks, 0.5)
        yield DenserMeasure(name=name, how=how, units_per_day=way.units_per_day, units=units, days=reached)
    # A judge says which of two answers is better, +1 or -1: a win rate of 1/2 + effect has a mean of 2 effect.
    pairs = units_for(1.0, 2 * options.effect, options.alpha)
    how = "both answer each request, users see the champion's answer, and a checked judge says which is better"
    days = math.ceil(pairs / requests)
    yield DenserMeasure(name="shadow judging", how=how, units_per_day=requests, units=pairs, days=days)


def _summary(plan: ExperimentPlan) -> Iterator[str]:
    requests, within = counted(plan.requests_per_day, "request"), counted(plan.days_simulated, "day")
    units = f"{plan.units_per_day:,.3g} rated units a day, {plan.candidate_units_per_day:,.3g} of them the candidate's"
    yield f"{requests} a day, of which {100 * plan.rated:.3g}% are rated, give {units}."
    traffic = f"At {plan.share:.0%} of the traffic and {100 * plan.base:.3g}% liked"
    look = f"{counted(plan.units_one_look, 'rated unit')}: {counted(plan.days_one_look, 'day')}"
    yield f"{traffic}, a true {100 * plan.effect:+.3g} points has a 50% chance to show at one look after about {look}."
    every = "day" if plan.look_every_days == 1 else counted(plan.look_every_days, "day")
    if plan.days_50 is not None:
        more = f", 80% after {plan.days_80:,}" if plan.days_80 is not None else ""
        half = counted(plan.days_50, "day")
        yield f"Looked at every {every}, half of such candidates are promoted after {half}{more}."
    else:
        yield f"Looked at every {every}, fewer than half of such candidates are promoted within {within}."
    false = f"A candidate that is no better is promoted with a chance of {plan.false_promotion:.1%} within {within}"
    yield f"{false}; by a z-test that is read as often, of {plan.false_promotion_z:.1%}."
    quick = min((way for way in plan.denser if way.days is not None), key=lambda way: way.days or 0, default=None)
    if quick and quick.days is not None and quick.days < plan.days_one_look:
        yield f"Quicker: {quick.name}, about {counted(quick.days, 'day')} for the same effect in points."
