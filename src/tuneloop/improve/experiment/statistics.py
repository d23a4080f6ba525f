"""Experiments with a candidate on live traffic, from events to a decision; each can be made again from the log.

The unit is the user: drawn into an arm by a hash, which keeps the arm of the first request and counts once, with
what came within one maturation window, the same for both arms. Bounds may be read at any time
(`core/stats/sequences.py`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from tuneloop.core.files import content_hash
from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.stats.sequences import best_rho2, difference, excess_log_e, ratio_log_e, running_bounds
from tuneloop.core.units import counted, exactly, verb
from tuneloop.improve.experiment.record import (
    ArmDifference,
    Evidence,
    ExperimentDesign,
    ExperimentVerdict,
    Guardrail,
    GuardrailFinding,
)
from tuneloop.improve.feedback.value import by_request, conversations_of, mean_value
from tuneloop.records.feedback import Feedback, value_of
from tuneloop.records.request import NOT_LOADED, StoredRequest

CANDIDATE, CHAMPION = "candidate", "champion"
RATES = ("invalid", "dislikes")  # guardrails on the share of users that are affected
AMOUNTS = ("latency", "cost", "length")  # guardrails on geometric means
GUARD_UNITS = 20  # users of either arm before a guardrail on amounts is read


def registration_hash(design: ExperimentDesign) -> str:
    """The hash of a registration, as it is in every decision: sha256 of its JSON with sorted keys."""
    return "sha256:" + content_hash(design.model_dump(mode="json"))


def place_of(design: ExperimentDesign, unit: str) -> float:
    """Position of a unit between 0 and 1, by its hash: below the candidate's share it meets the candidate.

    Args:
        unit: the user's pseudonym; where there is none the conversation, else the request.
    """
    digest = hashlib.sha256(f"{design.salt}\x1f{design.name}\x1f{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7]) / 2**56


def assign(design: ExperimentDesign, unit: str, share: float) -> str:
    """The arm of a unit that comes for the first time.

    Call it once for each unit and keep the answer: a later share holds for new units only.

    Args:
        share: of new units that meet the candidate now; it is the propensity to be logged.
    """
    return CANDIDATE if place_of(design, unit) < share else CHAMPION


def unit_of(request: StoredRequest) -> str:
    """What a request is counted by: its user, else its conversation, else itself.

    Users whom a key names that is not believed are one together, and all callers without a key are one: a stranger
    can't count as many. See `StoredRequest.voice`.
    """
    return request.voice or person_of(request)


def person_of(request: StoredRequest) -> str:
    """Whom a request says that it comes from: its user, else its conversation, else itself."""
    return request.user or request.conversation or request.id


@dataclass(frozen=True)
class Units:
    """Units in the order of their first request, one value each."""

    candidate: NDArray[np.bool_]  # whether it is in the candidate's arm
    propensity: Array  # the chance of that when it came
    outcome: Array  # its mean value of the measure; NaN: none yet, or not matured
    affected: Mapping[str, NDArray[np.bool_]]  # guardrail on a rate -> whether it happened to the unit
    amounts: Mapping[str, Array]  # guardrail on an amount -> the unit's mean of logarithms; NaN: nothing measured
    dropped: int = 0  # conversations that were left out


def units_of(
    design: ExperimentDesign, requests: Iterable[StoredRequest], feedback: Iterable[Feedback], at: datetime
) -> Units:
    """The units of an experiment, from its requests in order and the feedback on them, as they stood at a time.

    Requests without an arm, of another model, or with a propensity of 0 or 1 say nothing and are passed over. What came
    after `at` must have been left out.
    """
    counted = [r for r in requests if r.model == design.model and r.arm in (CANDIDATE, CHAMPION)]
    counted = [r for r in counted if r.propensity and 0 < r.propensity < 1]
    mixed = _mixed_conversations(counted)
    counted = [r for r in counted if (r.voice, r.conversation) not in mixed]
    groups: dict[str, list[StoredRequest]] = {}
    for request in counted:
        groups.setdefault(unit_of(request), []).append(request)
    feedback_of = by_request(feedback, conversations_of(counted))
    rows = [_unit(design, group, feedback_of, at) for group in groups.values()]
    return Units(
        candidate=np.array([row.candidate for row in rows], dtype=bool),
        propensity=np.array([row.propensity for row in rows], dtype=np.float64),
        outcome=np.array([row.outcome for row in rows], dtype=np.float64),
        affected={name: np.array([row.affected[name] for row in rows], dtype=bool) for name in RATES},
        amounts={name: np.array([row.amounts[name] for row in rows], dtype=np.float64) for name in AMOUNTS},
        dropped=len(mixed),
    )


def _mixed_conversations(requests: Sequence[StoredRequest]) -> set[tuple[str | None, str | None]]:
    """Voice and name of conversations in which more than one release answered, as after a fallback."""
    seen: dict[tuple[str | None, str | None], set[tuple[str | None, str | None, str | None]]] = {}
    for r in requests:
        if r.conversation:
            seen.setdefault((r.voice, r.conversation), set()).add((r.arm, r.release, r.adapter))
    return {name for name, releases in seen.items() if len(releases) > 1}


@dataclass(frozen=True)
class _Unit:
    candidate: bool
    propensity: float
    outcome: float
    affected: Mapping[str, bool]
    amounts: Mapping[str, float]


def _unit(
    design: ExperimentDesign, group: Sequence[StoredRequest], feedback_of: Mapping[str, list[Feedback]], at: datetime
) -> _Unit:
    first = group[0]
    end = time_of(first.time) + timedelta(hours=design.maturation_hours)
    requests = [r for r in group if r.arm == first.arm and time_of(r.time) <= end]
    feedback = [one for r in requests for one in feedback_of.get(r.id, ()) if time_of(one.time) <= end]
    mean = mean_value(one for one in feedback if one.kind == design.measure)
    outcome = mean if mean is not None and at >= end else math.nan
    goods = [v for one in feedback if (v := value_of(one.kind, one.value)) is not None]
    return _Unit(
        candidate=first.arm == CANDIDATE,
        propensity=first.propensity or math.nan,
        outcome=1 - outcome if design.lower_is_better else outcome,
        affected={"invalid": any(is_invalid(r) for r in requests), "dislikes": any(value < 0.5 for value in goods)},
        amounts={
            "latency": _mean_log(r.total_ms for r in requests),
            "cost": _mean_log(r.usd for r in requests),
            "length": _mean_log(r.completion_tokens for r in requests),
        },
    )


def is_invalid(request: StoredRequest) -> bool:
    """Whether an answer failed, was cut off, or came from the champion since the candidate failed."""
    return request.error is not None or request.finish == "length" or request.fallback not in (None, NOT_LOADED)


def _mean_log(values: Iterable[float | None]) -> float:
    logs = [math.log(value) for value in values if value is not None and value > 0]
    return sum(logs) / len(logs) if logs else math.nan


def time_of(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text)


@dataclass(frozen=True)
class Stage:
    """How far an experiment has come."""

    days: float  # since its start
    step_days: float  # since its share was last changed
    share: float  # of new users that meet the candidate; 0 in shadow mode


def evidence_of(
    design: ExperimentDesign, units: Units, stage: Stage, shadow: Sequence[float] = (), copies: int = 0
) -> Evidence:
    """All that a decision is made from.

    Args:
        shadow: judged pairs in order, each 1 (the candidate is better), 0 or -1.
        copies: of requests that the candidate has answered unseen, or failed to answer; judged or not.
    """
    rated = ~np.isnan(units.outcome)
    inside, values, chance = units.candidate[rated], units.outcome[rated], units.propensity[rated]
    contrast = difference(
        inside, values, chance, alpha=design.alpha, planned=design.planned_units, start=design.least_units
    )
    votes = np.asarray(shadow, dtype=np.float64)
    shadow_high = math.nan
    if len(votes) >= design.least_units and votes.std() != 0:
        rho2 = best_rho2(max(design.shadow_votes, 2), min(2 * design.alpha, 0.99))
        shadow_high = float(running_bounds(votes, design.alpha, rho2, one_sided=True)[2][-1])
    measure = ArmDifference(
        units=len(values),
        candidate_units=int(inside.sum()),
        candidate=_mean(values[inside]),
        champion=_mean(values[~inside]),
        difference=contrast.value,
        low=contrast.low if math.isfinite(contrast.low) else math.nan,
        high=contrast.high if math.isfinite(contrast.high) else math.nan,
    )
    counts: dict[str, Any] = {
        "users": len(units.candidate), "candidate_users": int(units.candidate.sum()), "dropped": units.dropped,
        "shadow_copies": max(copies, len(votes)), "shadow_votes": len(votes), "shadow_mean": _mean(votes),
    }  # fmt: skip
    return Evidence(
        **asdict(stage),
        **counts,
        measure=measure,
        guardrails=[_guardrail(design, units, rail) for rail in design.guardrails],
        ratio_strength=_ratio_strength(units.candidate, units.propensity, design.ratio_alpha),
        rated_ratio_strength=_ratio_strength(inside, chance, design.ratio_alpha),
        shadow_high=shadow_high,
    )


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def _ratio_strength(candidate: NDArray[np.bool_], propensity: Array, alpha: float) -> float:
    """Evidence that units don't fall into the arms as drawn, over what is needed; all steps' e-values multiply."""
    log_e = 0.0
    for share in map(float, np.unique(propensity)):
        here = propensity == share
        inside = float(candidate[here].sum())
        log_e += float(ratio_log_e(np.array([inside, here.sum() - inside]), np.array([share, 1 - share])))
    return log_e / math.log(1 / alpha)


def _guardrail(design: ExperimentDesign, units: Units, rail: Guardrail) -> GuardrailFinding:
    """One guardrail; alpha is divided among all."""
    level = design.alpha / len(design.guardrails)
    inside = units.candidate
    if rail.name in RATES:
        bad = units.affected[rail.name]
        log_e = 0.0
        for share in map(float, np.unique(units.propensity)):
            here = units.propensity == share
            tolerated = share * rail.tolerance / (share * rail.tolerance + 1 - share)
            log_e += float(excess_log_e((bad & inside & here).sum(), (bad & ~inside & here).sum(), tolerated))
        strength = log_e / math.log(1 / level)
        means = _mean(bad[inside].astype(float)), _mean(bad[~inside].astype(float))
    else:
        logs = units.amounts[rail.name]
        measured = ~np.isnan(logs)
        sample = inside[measured], logs[measured], units.propensity[measured]
        excess = difference(*sample, alpha=level, planned=design.planned_units, start=GUARD_UNITS, one_sided=True)
        # How far the lower bound has come towards the tolerated excess: 1 where it reaches it.
        half, limit = excess.value - excess.low, math.log(rail.tolerance)
        strength = (excess.value - limit) / half if math.isfinite(excess.low) and half > 0 else 0.0
        means = math.exp(_mean(logs[measured & inside])), math.exp(_mean(logs[measured & ~inside]))
    values = {"candidate": means[0], "champion": means[1], "strength": strength, "tripped": strength >= 1}
    return GuardrailFinding(name=rail.name, tolerance=rail.tolerance, **values)


def decide(design: ExperimentDesign, evidence: Evidence, at: str) -> ExperimentVerdict:
    """What follows from the evidence, and from nothing else: the first of these rules that applies.

    1. Users don't fall into the arms as drawn: roll back, since no comparison holds.
    2. A guardrail trips: roll back.
    3. Shadow mode: roll back where the candidate's answers are worse, begin the ramp after enough copies. Pairs that
       no one could judge count as copies, so that shadow mode ends without a judge, too.
    4. The measure is lower: roll back. It is higher: promote, unless the arms are rated at different rates.
    5. A gain of the registered size is excluded: roll back where the estimate is a loss of that size, else futility.
       The time is over: futility. Whether a loss is certain is then left open, since no one would be served worse to
       know it.
    6. Else continue, with the next share where the step has lasted long enough and both arms have values.

    Args:
        at: the time, ISO 8601.
    """
    rules = (_wrong_shares, _tripped, _shadow, _measured, _futile, _continued)
    outcome, reason, share, sentence = next(result for rule in rules if (result := rule(design, evidence)))
    values = {"registration": registration_hash(design), "at": at, "outcome": outcome, "reason": reason, "share": share}
    return ExperimentVerdict.model_validate({**values, "sentence": sentence, "evidence": evidence})


RuleResult = tuple[str, str, float, str]  # outcome, reason, share, sentence


def _wrong_shares(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    if evidence.ratio_strength < 1:
        return None
    why = (
        f"{evidence.candidate_users:,} of {counted(evidence.users, 'user')} met the candidate, which does not fit the "
    )
    why += f"shares that were drawn (level {design.ratio_alpha:g}), so no comparison holds."
    return "roll back", "assignment", 0.0, f"Rolled back: {why}"


def _tripped(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    rail = next((rail for rail in evidence.guardrails if rail.tripped), None)
    if rail is None:
        return None
    form = "{:.1%} of users" if rail.name in RATES else "{:,.4g}"
    candidate, champion = form.format(rail.candidate), form.format(rail.champion)
    why = f"{rail.name} is {candidate} under the candidate and {champion} under the champion, more than the "
    why += f"{exactly(rail.tolerance, 'time')} that {verb(rail.tolerance, 'is', 'are')} tolerated."
    return "roll back", "guardrail", 0.0, f"Rolled back after {counted(evidence.candidate_users, 'user')}: {why}"


def _shadow(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    if evidence.share > 0:
        return None
    copies = evidence.shadow_copies
    mean = f", mean {evidence.shadow_mean:+.3f}" if evidence.shadow_votes else ""
    votes = f"{counted(copies, 'copy')}, {evidence.shadow_votes:,} of them judged{mean}"
    if evidence.shadow_high < 0:  # not so where it is NaN
        why = f"Rolled back in shadow mode: {votes}, significantly below 0 ({evidence.shadow_high:+.3f} at most)."
        return "roll back", "shadow", 0.0, why
    if copies >= design.shadow_votes:
        share = design.ramp[0]
        why = f"Shadow mode is passed ({votes}): {share:.0%} of new users meet the candidate."
        return "continue", "shadow", share, why
    if evidence.days >= design.most_days:
        return "futility", "time", 0.0, f"Ended for futility: {counted(evidence.days, 'day')}, and only {votes}."
    why = f"{votes}; {counted(design.shadow_votes, 'copy')} {verb(design.shadow_votes, 'is', 'are')} needed"
    if not copies:
        why = "no copy yet; a server that has loaded the candidate makes them of its next requests, while none waits"
    return "continue", "open", 0.0, f"Shadow mode continues: {why}."


def _measured(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    m, difference = evidence.measure, _difference_words(design, evidence.measure)
    if m.high < 0:
        why = f"Rolled back after {counted(evidence.candidate_users, 'user')}: {difference}."
        return "roll back", "worse", 0.0, why
    if m.low > 0 and evidence.rated_ratio_strength >= 1:
        why = f"Not promoted: {difference}, but users of the two arms are rated at different rates "
        why += f"({m.candidate_units:,} of {m.units:,} are the candidate's), so the comparison may not hold."
        over = evidence.days >= design.most_days
        return ("futility" if over else "continue"), "ratings", (0.0 if over else evidence.share), why
    if m.low > 0:
        return "promote", "better", 1.0, f"Promoted after {counted(evidence.days, 'day')}: {difference}."
    return None


def _futile(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    m, difference = evidence.measure, _difference_words(design, evidence.measure)
    excluded = f"a gain of {design.effect:g} is excluded; {difference}."
    if m.high < design.effect and m.difference <= -design.effect:
        return "roll back", "no gain", 0.0, f"Rolled back after {counted(evidence.candidate_users, 'user')}: {excluded}"
    if m.high < design.effect:
        return "futility", "no gain", 0.0, f"Ended for futility: {excluded}"
    if evidence.days >= design.most_days:
        why = f"{counted(design.most_days, 'day')} {verb(design.most_days, 'is', 'are')} over; {difference}"
        return "futility", "time", 0.0, f"Ended for futility: {why}."
    return None


def _continued(design: ExperimentDesign, evidence: Evidence) -> RuleResult:
    m, share = evidence.measure, evidence.share
    later = [step for step in design.ramp if share < step < 1]
    values = 0 < m.candidate_units < m.units and m.low == m.low  # both arms have enough of them
    difference = _difference_words(design, m)
    if later and evidence.step_days >= design.hold_days and values:
        why = f"Continues with {later[0]:.0%} of new users instead of {share:.0%}: {difference}."
        return "continue", "open", later[0], why
    return "continue", "open", share, f"Continues at {share:.0%}: {difference}."


def _difference_words(design: ExperimentDesign, m: ArmDifference) -> str:
    if m.low != m.low:
        users = f"{counted(m.units, 'user')} {verb(m.units, 'has', 'have')} a value for {design.measure}"
        return f"{users}, {m.candidate_units:,} of them the candidate's, too few to compare"
    users = f"{counted(m.candidate_units, 'user')} and {counted(m.units - m.candidate_units, 'user')}"
    difference = f"{m.difference:+.4f} [{m.low:+.4f}, {m.high:+.4f}] in {design.measure}"
    return f"{difference} against the champion, above 0 is better ({users})"
