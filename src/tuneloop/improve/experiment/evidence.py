"""What an experiment's users prove, by bets (`core/stats/betting.py`), which hold from the first user on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.core.lazy import Array, np
from tuneloop.core.stats.betting import ArmClaim, bound, negative_mean_log_e
from tuneloop.core.stats.sequences import excess_log_e
from tuneloop.improve.experiment.record import ArmDifference, Evidence, ExperimentDesign, GuardrailFinding, Strengths
from tuneloop.improve.experiment.statistics import Units
from tuneloop.improve.experiment.tally import (
    AMOUNTS,
    BETTER,
    RATES,
    WORSE,
    Arrivals,
    Findings,
    Matured,
    UserTally,
    empty_tally,
    findings_of,
    with_affected,
    with_amounts,
    with_arrivals,
    with_matured,
    with_values,
)

MOST_SWITCHED = 0.01  # share of returning units that may meet the other arm, as where two servers see a step at once


@dataclass(frozen=True)
class Stage:
    """How far an experiment has come."""

    days: float  # since its start
    step_days: float  # since its share was last changed
    share: float  # of new users that meet the candidate; 0 in shadow mode
    live_days: float = 0.0  # since users meet the candidate


def evidence_of(
    design: ExperimentDesign, units: Units, stage: Stage, shadow: Sequence[float] = (), copies: int = 0
) -> Evidence:
    """All that a decision is made from.

    Args:
        shadow: judged pairs in order, each 1 (the candidate is better), 0 or -1.
        copies: of requests that the candidate has answered unseen, or failed to answer; judged or not.
    """
    tally = tally_of(design, units)
    evidence = evidence_at(design, tally, findings_of(design, tally), 0, stage, list(units.slices))
    valued = ~np.isnan(units.outcome)
    data = (units.candidate[None, valued], units.outcome[None, valued], units.propensity[None, valued])
    bounds = {}
    if valued.any():
        guess = {"guess": 1 - design.base if design.lower_is_better else design.base}
        bounds["low"] = bound(ArmClaim(1, BETTER), data, design.effect, design.alpha, **guess)
        bounds["high"] = bound(ArmClaim(-1, WORSE), data, design.effect, design.alpha, **guess)
    votes = np.asarray(shadow, dtype=np.float64)
    worse = negative_mean_log_e(votes) / math.log(1 / design.alpha) if len(votes) else 0.0
    switched = float(excess_log_e(units.switched, units.returned - units.switched, MOST_SWITCHED))
    strengths = evidence.strengths.model_copy(
        update={
            "shadow_worse": worse,
            "switched": max(0.0, switched) / math.log(1 / design.ratio_alpha),
            "checked_units": int((~np.isnan(units.checked)).sum()),
        }
    )
    changes = {
        "measure": evidence.measure.model_copy(update=bounds), "strengths": strengths, "dropped": units.dropped,
        "shadow_copies": max(copies, len(votes)), "shadow_votes": len(votes), "shadow_mean": _mean(votes),
    }  # fmt: skip
    return evidence.model_copy(update=changes)


def tally_of(design: ExperimentDesign, units: Units) -> UserTally:
    """The sums of one experiment's users; those whose windows are over come in the order of their first requests."""
    tally = empty_tally(design, np.unique(units.propensity), slices=len(units.slices))
    users = Arrivals(units.candidate[None], units.propensity[None])
    tally = with_arrivals(tally, users)
    for name in RATES:
        tally = with_affected(tally, name, users, units.affected[name][None])
    for name in AMOUNTS:
        if name in tally.amounts:
            tally = with_amounts(tally, name, users, units.amounts[name][None])
    if "later" in tally.books:
        tally = with_values(tally, "later", users, units.later[None], design.effect)
    values = (units.outcome[None], units.likes[None], units.dislikes[None], units.checked[None])
    slices = np.stack([*units.slices.values(), units.candidate], axis=-1)[None, :, :-1]
    matured = Matured(users.candidate, users.propensity, *values, slices, units.kinds[None], units.weekday[None])
    return with_matured(tally, design, matured)


def evidence_at(
    design: ExperimentDesign, tally: UserTally, findings: Findings, at: int, stage: Stage, slices: Sequence[str] = ()
) -> Evidence:
    """The evidence of one of a tally's experiments, without the bounds, which no decision needs.

    Args:
        at: place of the experiment on the first axis of the tally and its findings.
        slices: their names.
    """
    users, rated = tally.users[at].sum(axis=0), tally.rated[at].sum(axis=0)
    means = findings.means[at]
    rails = []
    for place, rail in enumerate(design.guardrails):
        strength, (candidate, champion) = float(findings.guardrails[at, place]), findings.affected[at, place]
        rails.append(
            GuardrailFinding(
                name=rail.name,
                tolerance=rail.tolerance,
                candidate=float(candidate),
                champion=float(champion),
                strength=strength,
                tripped=strength >= 1,
                held=bool(findings.held[at, place]),
                where=slices[int(findings.worst[at])] if slices and rail.name == "slices" else "",
            )
        )
    proven = ("better", "worse", "no_gain", "promotion", "more_likes", "fewer_dislikes", "whole_weeks")
    return Evidence(
        days=stage.days,
        step_days=stage.step_days,
        share=stage.share,
        users=int(users.sum()),
        candidate_users=int(users[0]),
        dropped=0,
        measure=ArmDifference(
            units=int(rated.sum()),
            candidate_units=int(rated[0]),
            candidate=float(means[0]),
            champion=float(means[1]),
            difference=float(findings.difference[at]),
            low=math.nan,
            high=math.nan,
        ),
        guardrails=rails,
        ratio_strength=float(findings.ratio[at]),
        rated_ratio_strength=float(findings.rated_ratio[at]),
        live_days=stage.live_days,
        strengths=Strengths(**{name: float(getattr(findings, name)[at]) for name in proven}),
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan
