"""What an experiment can show before anything is spent: false promotions, power, days and harm, by simulation.

`walk.py` simulates the decisions with ramp, holds, maturation, users who come again, and missing ratings, so thousands
of experiments take a second."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config
from tuneloop.core.lazy import np
from tuneloop.core.units import counted
from tuneloop.improve.experiment.record import (
    MISSING,
    ExperimentDesign,
    ExperimentOptions,
    ExperimentPlan,
    ExperimentPlanOptions,
    PlannedPower,
    RampHarm,
    sample_of,
)
from tuneloop.improve.experiment.tally import UNHAPPY_VALUES
from tuneloop.improve.experiment.walk import Looks, PlannedTraffic, days_needed, walk

LEAST_UNITS = 10  # users with a value in either arm before a step of the ramp; decisions need no least number
MOST_DAYS = 3650
TABLE_DAYS = (7, 28, 91, 182, 365, 730, 1460)
RAMPS = ("2,5,10", "5,10,25,50", "10,25,50", "20,50", "30,50", "50")
FEW = 400  # simulations of what is listed for comparison


def ramp_of(text: str, where: str = "--ramp") -> list[float]:
    """Shares from percent with commas. Raises UserError: a part is no number."""
    try:
        return [float(step) / 100 for step in text.split(",")]
    except ValueError:
        step = "percent with commas, as in 10,25,50,100"
        raise UserError(f"Not a ramp: {text!r:.60}", where=where, next_step=step) from None


@dataclass(frozen=True)
class Planned:
    """A registration with its traffic, and how it is simulated."""

    design: ExperimentDesign
    traffic: PlannedTraffic
    seed: int

    def looks(self, effect: float, experiments: int, days: int = 0) -> Looks:
        """What becomes of experiments with this true effect. `days`: 0: as long as the registered effect needs."""
        traffic = replace(self.traffic, effect=effect)
        seed = self.seed + round(1000 * (effect + 1))
        return walk(self.design, traffic, days=days or self.days(), experiments=experiments, seed=seed)

    def days(self) -> int:
        """Days in which most experiments with the registered effect end."""
        design = self.design
        last = max(share for share in design.ramp if share < 1)
        needed = days_needed(design, replace(self.traffic, effect=design.effect), last)
        held = len(design.ramp) * design.hold_days + design.maturation_hours / 24
        return math.ceil(min(max(14.0, held + 3 * needed), MOST_DAYS))


def _planned(options: ExperimentPlanOptions, ramp: str = "") -> Planned:
    """`ramp`: in place of that of the options."""
    shares = [options.share] if options.share and not ramp else ramp_of(ramp or options.ramp)
    try:
        design = ExperimentDesign(
            name="plan",
            model="m",
            candidate="c",
            champion="b",
            salt="s",
            shadow=False,
            missing=options.missing,
            sample=sample_of(options.missing, options.sample),
            base=options.base,
            effect=options.effect,
            alpha=options.alpha,
            ramp=shares,
            hold_days=options.hold_days,
            maturation_hours=options.maturation_hours,
            least_units=LEAST_UNITS,
            least_days=ExperimentOptions.model_fields["least_days"].default,
            most_days=MOST_DAYS,
        )
    except ValueError as error:
        message = f"Not a ramp: {options.ramp!r:.60}"
        step = "shares that rise from above 0 to at most 100, the first below 100"
        raise UserError(message, where="--ramp", next_step=step) from error
    traffic = PlannedTraffic(
        users_per_day=options.requests_per_day / options.requests_per_user,
        base=options.base,
        rated=options.rated,
        requests=options.requests_per_user,
        correlation=options.correlation,
        population=options.users,
    )
    return Planned(design, traffic, options.seed)


def plan_experiment(settings: Mapping[str, Any]) -> ExperimentPlan:
    """What an experiment with this traffic can show.

    `settings`: by the names of `ExperimentPlanOptions`; what is missing has its default. Raises UserError: a number
    that can't be.
    """
    options = build_config(ExperimentPlanOptions, settings)
    refuse_unreachable(options.base, options.effect)
    ramps = list(_ramps(options))
    if options.harm:
        fit = [ramp for ramp in ramps if ramp.harmed <= options.harm and ramp.days_50 is not None]
        best = min(fit, key=lambda ramp: ramp.days_50 or 0, default=min(ramps, key=lambda ramp: ramp.harmed))
        options = options.model_copy(update={"ramp": best.ramp, "share": 0.0})
    planned = _planned(options)
    null, effective = planned.looks(0.0, options.simulations), planned.looks(options.effect, options.simulations)
    more = [factor * options.effect for factor in (-1.0, 0.5, 2.0)]
    others = [(e, planned.looks(e, options.simulations)) for e in more if 0 < options.base + e < 1]
    tables = sorted([(0.0, null), (options.effect, effective), *others], key=lambda pair: pair[0])
    units_50, days_50 = _when(effective, 0.5)
    units_80, days_80 = _when(effective, 0.8)
    per_day = float(effective.units[-1] / max(1, effective.days[-1] - options.maturation_hours / 24))
    values: dict[str, Any] = {
        "units_per_day": per_day, "candidate_units_per_day": per_day * planned.design.ramp[0],
        "units_50": units_50, "days_50": days_50, "units_80": units_80, "days_80": days_80,
        "false_promotion": float(null.promoted[:, -1].mean()),
        "days_simulated": int(null.days[-1]), "look_every_days": int(null.days[0]),
        "power": [row for effect, table in tables for row in _power(effect, table)],
        "ramps": ramps,
    }  # fmt: skip
    values["sample"] = planned.design.sample
    plan = ExperimentPlan(**{**options.model_dump(), **values}, summary=[])
    return plan.model_copy(update={"summary": list(_summary(plan))})


def refuse_unreachable(base: float, effect: float, *, lower_is_better: bool = False) -> None:
    """Refuse a gain that the base leaves no room for. Raises UserError, which proposes half of what is left to gain."""
    room = base if lower_is_better else 1 - base
    if effect >= room - 1e-9:
        move, end = ("fall", "reach 0") if lower_is_better else ("rise", "reach 1")
        message = f"A share of {base:g} can't {move} by {effect:g}: it would {end} or more"
        step = f"set --effect below {room:.3g}, as in --effect {room / 2:.2g}, or give another --base"
        raise UserError(message, where="--effect", next_step=step)


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
        ends = {"promoted": looks.promoted, "rolled_back": looks.rolled_back, "futile": looks.futile}
        shares = {name: float(ended[:, at].mean()) for name, ended in ends.items()}
        day, units = int(looks.days[at]), round(float(looks.units[at]))
        yield PlannedPower(effect=effect, days=day, units=units, **shares)


def _ramps(options: ExperimentPlanOptions) -> Iterator[RampHarm]:
    """What ramps cost users of a candidate that is twice the effect worse, and how soon they promote a better one."""
    loss = -min(2 * options.effect, 0.999 * options.base)
    for ramp in RAMPS:
        planned = _planned(options, ramp)
        _, days = _when(planned.looks(options.effect, FEW), 0.5)
        yield RampHarm(ramp=ramp, days_50=days, harmed=round(float(np.median(planned.looks(loss, FEW).met))))


def _summary(plan: ExperimentPlan) -> Iterator[str]:
    requests, within = counted(plan.requests_per_day, "request"), counted(plan.days_simulated, "day")
    units = f"{plan.units_per_day:,.3g} rated units a day, {plan.candidate_units_per_day:,.3g} of them the candidate's"
    yield f"{requests} a day, of which {100 * plan.rated:.3g}% are rated, give {units} at first."
    shares = f"{plan.share:.0%} of the traffic" if plan.share else f"the ramp {plan.ramp} %"
    traffic = f"{shares} and {100 * plan.base:.3g}% liked"
    every = "day" if plan.look_every_days == 1 else counted(plan.look_every_days, "day")
    gain = f"{100 * plan.effect:.3g} points better ({traffic})"
    if plan.days_50 is not None:
        more = f", 80% after {plan.days_80:,}" if plan.days_80 is not None else ""
        half = counted(plan.days_50, "day")
        yield f"Looked at every {every}, half of the candidates {gain} are promoted after {half}{more}."
    else:
        yield f"Looked at every {every}, fewer than half of the candidates {gain} are promoted within {within}."
    false = f"A candidate that is no better is promoted with a chance of {plan.false_promotion:.1%} within {within}"
    yield f"{false}."
    if plan.sample:
        checks = counted(round(plan.sample * plan.requests_per_day / plan.requests_per_user), "user")
        yield f"Who votes promotes nothing: {checks} a day of a random sample ({plan.sample:.0%}) are checked."
    elif plan.missing != "any":
        yield f"Assumed of missing ratings: {MISSING[plan.missing]}. A random sample (--sample) needs no such thing."
    yield from _harm(plan, plan.ramps)
    votes = plan.requests_per_user * plan.rated
    if votes < UNHAPPY_VALUES:
        hidden = "Harm to a few users can't be seen unless they are a slice"
        yield f"{hidden}: a user gives {votes:.3g} ratings, and {UNHAPPY_VALUES} or more would show it."


def _harm(plan: ExperimentPlan, ramps: Sequence[RampHarm]) -> Iterator[str]:
    mine = next((ramp for ramp in ramps if f"{ramp.ramp},100" == plan.ramp or ramp.ramp == plan.ramp), None)
    if mine is None or plan.share:
        return
    loss = f"A candidate {200 * plan.effect:.3g} points worse meets about {counted(mine.harmed, 'user')}"
    accepted = ""
    if plan.harm:
        fits = "at most" if mine.harmed <= plan.harm else "more than"
        accepted = f", {fits} the {plan.harm:,} that you accept"
    yield f"{loss} until it is taken away{accepted}."
