"""What follows from an experiment's evidence, and from nothing else, so that each decision can be made again.

`endings` is the stop rule, on many experiments at once; `outcome_of` says in words what it means for a real one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneloop.core.lazy import Array, NDArray, np
from tuneloop.core.units import counted, exactly, verb
from tuneloop.improve.experiment.record import (
    MISSING,
    ArmDifference,
    Evidence,
    ExperimentDesign,
    ExperimentVerdict,
    GuardrailFinding,
)
from tuneloop.improve.experiment.statistics import registration_hash
from tuneloop.improve.experiment.tally import AMOUNTS, RATES, WEEK, levels_of, trusted

RuleResult = tuple[str, str, float, str]  # outcome, reason, share, sentence
# How experiments with users may end or continue: outcome and reason, the first that applies.
ENDINGS = (
    ("roll back", "assignment"), ("roll back", "guardrail"), ("roll back", "worse"), ("promote", "better"),
    ("futility", "no gain"), ("futility", "time"), ("continue", "open"),
)  # fmt: skip


@dataclass(frozen=True)
class Proven:
    """What the stop rule reads of experiments, arrays with one value each; see `record.Evidence`.

    Args:
        tripped, held: whether any guardrail is.
        estimate: of the difference.
    """

    days: Array
    live_days: Array
    ratio: Array
    unlikely: NDArray[np.bool_]
    tripped: NDArray[np.bool_]
    held: NDArray[np.bool_]
    suspected: NDArray[np.bool_]
    worse: Array
    promotion: Array
    no_gain: Array
    whole_weeks: Array
    estimate: Array


def endings(design: ExperimentDesign, proven: Proven) -> NDArray[np.int64]:
    """The stop rule: how experiments with users end or continue, places in `ENDINGS`.

    Decisions, plans and simulations call it. See `outcome_of` for its order. A gain that is excluded ends an experiment
    unless the estimate is nearer to a loss of the registered size than to none: what harm it does is soon proven then.
    """
    held = np.logical_or.reduce([*holds(design, proven).values()])
    rules = [
        proven.ratio >= 1, proven.tripped, proven.worse >= 1, (proven.promotion >= 1) & ~held,
        (proven.no_gain >= 1) & ~(proven.estimate <= -design.effect / 2), proven.days >= design.most_days,
    ]  # fmt: skip
    return np.select(rules, range(len(rules)), len(rules))


def holds(design: ExperimentDesign, proven: Proven) -> dict[str, NDArray[np.bool_]]:
    """What keeps a candidate that is better from being promoted yet, the first reason first."""
    weeks = proven.whole_weeks < 1 if design.least_days >= WEEK else np.zeros(proven.held.shape, dtype=bool)
    early = proven.live_days < first_promotion(design)
    return {"assignment": proven.unlikely, "guardrail": proven.held, "first": early, "weeks": weeks}


def waits(proven: Proven) -> NDArray[np.bool_]:
    """Where the ramp waits: users seem to be missing, votes seem to be lower, or a gain is excluded."""
    return np.asarray(proven.unlikely | proven.suspected | (proven.no_gain >= 1))


def next_share(design: ExperimentDesign, share: float, step_days: float, units: float) -> float:
    """The share of new users from now on, where an experiment continues and the ramp does not wait. `units`: with a
    value, in the smaller arm."""
    later = [step for step in design.ramp if share < step < 1]
    return later[0] if later and step_days >= design.hold_days and units >= design.least_units else share


def decide(design: ExperimentDesign, evidence: Evidence, at: str) -> ExperimentVerdict:
    """The decision that follows from the evidence; see `outcome_of`. `at`: the time, ISO 8601."""
    outcome, reason, share, sentence = outcome_of(design, evidence)
    values = {"registration": registration_hash(design), "at": at, "outcome": outcome, "reason": reason, "share": share}
    return ExperimentVerdict.model_validate({**values, "sentence": sentence, "evidence": evidence})


def outcome_of(design: ExperimentDesign, evidence: Evidence) -> RuleResult:
    """What follows from the evidence, and from nothing else: the first of these rules that applies.

    1. Users don't fall into the arms as drawn, or don't stay in them: roll back, since no comparison holds.
    2. A guardrail trips: roll back.
    3. Shadow mode: roll back where the candidate's answers are worse, begin the ramp after enough copies. Pairs that
       no one could judge count as copies, so that shadow mode ends without a judge, too.
    4. The measure is lower: roll back. It is higher, whatever the missing values are as far as the registration
       assumes: promote, unless something holds that back (`holds`).
    5. A gain of the registered size is excluded, and the estimate is no loss of half that size: futility. The time is
       over: futility.
    6. Else continue, with the next share unless that must wait (`next_share`, `waits`).

    Raises:
        ValueError: a strength is not a number. None is where `evidence_of` made the evidence.
    """
    proven = _proven_by(evidence)
    if evidence.strengths.switched >= 1:
        cause = "users who came again met the other arm without a new draw, so no comparison holds."
        return "roll back", "assignment", 0.0, f"Rolled back: {cause}"
    outcome, reason = ENDINGS[int(endings(design, proven)[0])]
    if not evidence.share > 0 and reason not in ("assignment", "guardrail"):
        return _shadow(design, evidence)
    difference = _difference_words(design, evidence)
    held = _held_back(design, evidence, proven)
    if outcome == "continue":
        return _continued(design, evidence, proven, difference, held)
    users = counted(evidence.candidate_users, "user")
    if reason == "assignment":
        cause = (
            f"{evidence.candidate_users:,} of {counted(evidence.users, 'user')} met the candidate, which does not fit"
        )
        cause += f" the shares that were drawn (level {levels_of(design)['assignment']:.2g}), so no comparison holds"
        sentence = f"Rolled back: {cause}"
    elif reason == "guardrail":
        rail = next(rail for rail in evidence.guardrails if rail.tripped)
        sentence = f"Rolled back after {users}: {_compared(design, rail)}"
    elif reason == "worse":
        sentence = f"Rolled back after {users}: {difference}"
    elif outcome == "promote":
        sentence = _promoted(design, evidence, difference)
    elif reason == "no gain":
        sentence = f"Ended for futility: a gain of {design.effect:g} is excluded; {difference}"
    else:
        cause = f"{counted(design.most_days, 'day')} {verb(design.most_days, 'is', 'are')} over; {difference}"
        more = ""
        if evidence.strengths.better >= 1:
            reason, more = "ratings", _what_is_missing(design, evidence)
        reason, more = held or (reason, more)
        sentence = f"Ended for futility: {cause}{more}"
    return outcome, reason, 1.0 if outcome == "promote" else 0.0, f"{sentence}."


def _proven_by(evidence: Evidence) -> Proven:
    """The evidence as the rule reads it; ValueError: a strength is not a number."""
    strengths = {f"guardrail {rail.name}": rail.strength for rail in evidence.guardrails}
    strengths |= {"ratio": evidence.ratio_strength}
    strengths |= {name: getattr(evidence, name) for name in ("days", "step_days", "share", "live_days")}
    strengths |= evidence.strengths.model_dump()
    missing = [name for name, value in strengths.items() if math.isnan(value)]
    if missing:
        raise ValueError(f"no decision follows from evidence that is not a number: {', '.join(missing)}")
    names = ("days", "live_days", "worse", "promotion", "no_gain", "whole_weeks")
    return Proven(
        **{name: np.array([strengths[name]]) for name in names},
        ratio=np.array([evidence.ratio_strength]),
        unlikely=np.array([evidence.unlikely]),
        suspected=np.array([evidence.suspected]),
        tripped=np.array([any(rail.tripped for rail in evidence.guardrails)]),
        held=np.array([any(rail.held for rail in evidence.guardrails)]),
        estimate=np.array([evidence.estimate]),
    )


def _compared(design: ExperimentDesign, rail: GuardrailFinding) -> str:
    """What a guardrail has seen, and what is tolerated."""
    form = "{:.1%} of requests" if rail.name in RATES else "{:,.4g}"
    candidate, champion = form.format(rail.candidate), form.format(rail.champion)
    if rail.name in RATES + AMOUNTS:
        subject = rail.name
        limit = f"more than the {exactly(rail.tolerance, 'time')} that {verb(rail.tolerance, 'is', 'are')} tolerated"
    else:
        subject = {
            "dislikes": "the mean of votes on the first day",
            "unhappy": "the share of users with a good vote",
            "later": f"{design.measure} after the window",
            "slices": f"{design.measure} of {rail.where}",
        }[rail.name]
        limit = f"a loss of more than the {rail.tolerance:g} that are tolerated"
    return f"{subject} is {candidate} under the candidate and {champion} under the champion, {limit}"


def _held_back(design: ExperimentDesign, evidence: Evidence, proven: Proven) -> tuple[str, str] | None:
    """Why a candidate that is better is not promoted yet: a reason, and words for it."""
    hold = next((name for name, held in holds(design, proven).items() if held[0]), "")
    if hold == "assignment":
        met = f"{evidence.candidate_users:,} of {counted(evidence.users, 'user')} met the candidate"
        return "assignment", f"; but users of one arm seem to be missing ({met}): look for what loses them"
    if not hold or evidence.strengths.promotion < 1:
        return None
    if hold == "guardrail":
        rail = next(rail for rail in evidence.guardrails if rail.held)
        return "guardrail", f"; but it seems that {_compared(design, rail)}, so more users must tell"
    if hold == "first":
        days = counted(design.least_days, "full day")
        return "weeks", f"; but nothing is promoted before {days} of users whose windows are over"
    return "weeks", "; but the average of the days of the week, each counting the same, does not show it yet"


def first_promotion(design: ExperimentDesign) -> float:
    """Days from the first user on before which nothing is promoted."""
    return design.least_days + design.maturation_hours / 24 if design.least_days else 0.0


def _shadow(design: ExperimentDesign, evidence: Evidence) -> RuleResult:
    copies, judged = evidence.shadow_copies, evidence.shadow_votes
    votes = f"{counted(copies, 'copy')}, {judged:,} of them judged"
    votes += f", mean {evidence.shadow_mean:+.3f}" if judged else ""
    if evidence.strengths.shadow_worse >= 1:
        conclusion = f"{votes}, significantly below 0 (level {design.alpha:g})."
        return "roll back", "shadow", 0.0, f"Rolled back in shadow mode: {conclusion}"
    if copies >= design.shadow_votes:
        share = design.ramp[0]
        conclusion = f"Shadow mode is passed ({votes}): {share:.0%} of new users meet the candidate."
        return "continue", "shadow", share, conclusion
    if evidence.days >= design.most_days:
        return "futility", "time", 0.0, f"Ended for futility: {counted(evidence.days, 'day')}, and only {votes}."
    conclusion = f"{votes}; {counted(design.shadow_votes, 'copy')} {verb(design.shadow_votes, 'is', 'are')} needed"
    if not copies:
        conclusion = (
            "no copy yet; a server that has loaded the candidate makes them of its next requests, while none waits"
        )
    return "continue", "open", 0.0, f"Shadow mode continues: {conclusion}."


def _promoted(design: ExperimentDesign, evidence: Evidence, difference: str) -> str:
    if evidence.strengths.sample >= 1:
        holds = f"{counted(evidence.strengths.checked_units, 'user')} of the random sample prove it"
    elif trusted(design) == "one-way":
        holds = f"good values per request are more and bad ones fewer; {_explained(evidence.measure)}"
    else:
        holds = f"of missing values it is assumed: {MISSING[trusted(design)]}"
        holds += f"; {_explained(evidence.measure)}" if trusted(design) == "random" else ""
    sentence = f"Promoted after {counted(evidence.days, 'day')}: {difference}; {holds}"
    rails = {rail.name: rail for rail in evidence.guardrails}
    if (invalid := rails.get("invalid")) and invalid.candidate > invalid.champion:
        sentence += f"; invalid: {invalid.candidate:.1%} of requests, the champion's {invalid.champion:.1%}"
    if (later := rails.get("later")) and not math.isnan(later.candidate - later.champion):
        sentence += f"; after the window {later.candidate:.3f}, the champion's {later.champion:.3f}"
    return sentence


def _explained(measure: ArmDifference) -> str:
    """How much the rates of rating would have to differ to explain a gain: the ratio of the odds of good values."""
    bad = (1 - measure.candidate) * measure.champion, measure.candidate * (1 - measure.champion)
    times = bad[0] / bad[1] if bad[1] else math.inf
    return f"all of it would be explained if the candidate's bad answers were rated {times:.2f} times as often"


def _what_is_missing(design: ExperimentDesign, evidence: Evidence) -> str:
    """Why a candidate that is better among users with a value is not promoted."""
    if trusted(design) == "random" and evidence.strengths.rates >= 1:
        return "; but requests of the two arms are rated at different rates, which contradicts what was registered"
    if design.sample and evidence.strengths.checked_units:
        return f"; the random sample ({design.sample:.0%} of users) does not prove it yet"
    if design.sample:
        return f"; but nothing is promoted by who votes: check the random sample (tuneloop ab sample {design.name})"
    conclusion = "; but different rates of rating in the two arms may be the reason"
    return f"{conclusion} ({_explained(evidence.measure)}): only more values, or a random sample, tell"


def _continued(
    design: ExperimentDesign, evidence: Evidence, proven: Proven, difference: str, held: tuple[str, str] | None
) -> RuleResult:
    m, share, reason = evidence.measure, evidence.share, "open"
    if held:
        reason, difference = held[0], difference + held[1]
    elif evidence.strengths.better >= 1:
        difference, reason = difference + _what_is_missing(design, evidence), "ratings"
    later = next_share(design, share, evidence.step_days, min(m.candidate_units, m.units - m.candidate_units))
    if later != share and not waits(proven)[0]:
        conclusion = f"Continues with {later:.0%} of new users instead of {share:.0%}: {difference}."
        return "continue", reason, later, conclusion
    return "continue", reason, share, f"Continues at {share:.0%}: {difference}."


def _difference_words(design: ExperimentDesign, evidence: Evidence) -> str:
    m = evidence.measure
    if not 0 < m.candidate_units < m.units:
        users = f"{counted(m.units, 'user')} {verb(m.units, 'has', 'have')} a value for {design.measure}"
        return f"{users}, {m.candidate_units:,} of them the candidate's, too few to compare"
    users = f"{counted(m.candidate_units, 'user')} and {counted(m.units - m.candidate_units, 'user')}"
    difference = f"{m.difference:+.4f} [{m.low:+.4f}, {m.high:+.4f}] in {design.measure}"
    if evidence.requests and max(evidence.requests) > 1:
        users += f", of {evidence.requests[0]:.2f} and {evidence.requests[1]:.2f} requests each"
    return f"{difference} against the champion, above 0 is better ({users})"
