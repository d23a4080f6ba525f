"""What follows from an experiment's evidence, and from nothing else, so that each decision can be made again."""

from __future__ import annotations

import math

from tuneloop.core.units import counted, exactly, verb
from tuneloop.improve.experiment.record import (
    MISSING,
    ArmDifference,
    Evidence,
    ExperimentDesign,
    ExperimentVerdict,
    GuardrailFinding,
    Strengths,
)
from tuneloop.improve.experiment.statistics import registration_hash
from tuneloop.improve.experiment.tally import AMOUNTS, RATES, WEEK

LIKELY_WORSE = 0.9  # of the evidence for a loss, with which a candidate without a gain is rolled back


RuleResult = tuple[str, str, float, str]  # outcome, reason, share, sentence


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
       assumes: promote, unless something holds that back (`_held_back`).
    5. A gain of the registered size is excluded: roll back where the estimate is a loss of that size and most of the
       evidence for a loss is there, else futility. The time is over: futility. Whether a loss is certain is then left
       open, since no one would be served worse to know it.
    6. Else continue, with the next share where the step has lasted long enough, both arms have values, and no users
       seem to be missing.

    Raises:
        ValueError: a strength is not a number. None is where `evidence_of` made the evidence.
    """
    _refuse_nan(evidence)
    rules = (_wrong_shares, _tripped, _shadow, _settled, _over, _continued)
    return next(result for rule in rules if (result := rule(design, evidence)))


def _refuse_nan(evidence: Evidence) -> None:
    strengths = {f"guardrail {rail.name}": rail.strength for rail in evidence.guardrails}
    strengths |= {"ratio": evidence.ratio_strength, "rated ratio": evidence.rated_ratio_strength}
    strengths |= {
        "days": evidence.days,
        "step": evidence.step_days,
        "share": evidence.share,
        "live": evidence.live_days,
    }
    strengths |= evidence.strengths.model_dump()
    missing = [name for name, value in strengths.items() if math.isnan(value)]
    if missing:
        raise ValueError(f"no decision follows from evidence that is not a number: {', '.join(missing)}")


def _wrong_shares(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    if evidence.strengths.switched >= 1:
        why = "users who came again met the other arm without a new draw, so no comparison holds."
        return "roll back", "assignment", 0.0, f"Rolled back: {why}"
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
    users = counted(evidence.candidate_users, "user")
    return "roll back", "guardrail", 0.0, f"Rolled back after {users}: {_compared(design, rail)}."


def _compared(design: ExperimentDesign, rail: GuardrailFinding) -> str:
    """What a guardrail has seen, and what is tolerated."""
    form = "{:.1%} of users" if rail.name in RATES else "{:,.4g}"
    candidate, champion = form.format(rail.candidate), form.format(rail.champion)
    if rail.name in RATES + AMOUNTS:
        what = rail.name
        limit = f"more than the {exactly(rail.tolerance, 'time')} that {verb(rail.tolerance, 'is', 'are')} tolerated"
    else:
        what = f"{design.measure} {f'of {rail.where}' if rail.where else 'after the window'}"
        limit = f"a loss of more than the {rail.tolerance:g} that are tolerated"
    return f"{what} is {candidate} under the candidate and {champion} under the champion, {limit}"


def likely_missing(design: ExperimentDesign) -> float:
    """The strength of evidence, at the level alpha, with which users of one arm seem to be missing."""
    return math.log(design.alpha) / math.log(design.ratio_alpha)


def _held_back(design: ExperimentDesign, evidence: Evidence) -> tuple[str, str] | None:
    """Why a candidate that is better is not promoted yet: a reason, and words for it."""
    if evidence.ratio_strength >= likely_missing(design):
        met = f"{evidence.candidate_users:,} of {counted(evidence.users, 'user')} met the candidate"
        return "assignment", f"; but users of one arm seem to be missing ({met}): look for what loses them"
    if evidence.strengths.promotion < 1:
        return None
    if rail := next((rail for rail in evidence.guardrails if rail.held), None):
        return "guardrail", f"; but it seems that {_compared(design, rail)}, so more users must tell"
    if evidence.live_days < first_promotion(design):
        days = counted(design.least_days, "full day")
        return "weeks", f"; but nothing is promoted before {days} of users whose windows are over"
    if design.least_days >= WEEK and evidence.strengths.whole_weeks < 1:
        return "weeks", "; but the average of the days of the week, each counting the same, does not show it yet"
    return None


def first_promotion(design: ExperimentDesign) -> float:
    """Days from the first user on before which nothing is promoted."""
    return design.least_days + design.maturation_hours / 24 if design.least_days else 0.0


def _shadow(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    if evidence.share > 0:
        return None
    if evidence.strengths.shadow_worse >= 1:
        why = f"{_votes(evidence)}, significantly below 0 (level {design.alpha:g})."
        return "roll back", "shadow", 0.0, f"Rolled back in shadow mode: {why}"
    return _shadow_continued(design, evidence)


def _votes(evidence: Evidence) -> str:
    mean = f", mean {evidence.shadow_mean:+.3f}" if evidence.shadow_votes else ""
    return f"{counted(evidence.shadow_copies, 'copy')}, {evidence.shadow_votes:,} of them judged{mean}"


def _shadow_continued(design: ExperimentDesign, evidence: Evidence) -> RuleResult:
    copies, votes = evidence.shadow_copies, _votes(evidence)
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


def _settled(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    proven, difference = evidence.strengths, _difference_words(design, evidence.measure)
    if proven.worse >= 1:
        why = f"Rolled back after {counted(evidence.candidate_users, 'user')}: {difference}."
        return "roll back", "worse", 0.0, why
    if proven.promotion >= 1 and _held_back(design, evidence) is None:
        why = f"Promoted after {counted(evidence.days, 'day')}: {difference}; {_why_it_holds(design, proven)}"
        rails = {rail.name: rail for rail in evidence.guardrails}
        if (invalid := rails.get("invalid")) and invalid.candidate > invalid.champion:
            why += f"; invalid: {invalid.candidate:.1%} of users, the champion's {invalid.champion:.1%}"
        if (later := rails.get("later")) and not math.isnan(later.candidate - later.champion):
            why += f"; after the window {later.candidate:.3f}, the champion's {later.champion:.3f}"
        why += "."
        return "promote", "better", 1.0, why
    return None


def _why_it_holds(design: ExperimentDesign, proven: Strengths) -> str:
    if design.sample:
        return f"{counted(proven.checked_units, 'user')} of the random sample prove it"
    if design.missing == "one-way":
        return "good values per request are more and bad ones fewer"
    return f"of missing values it is assumed: {MISSING[design.missing]}"


def _over(design: ExperimentDesign, evidence: Evidence) -> RuleResult | None:
    proven, difference = evidence.strengths, _difference_words(design, evidence.measure)
    if proven.no_gain >= 1:
        excluded = f"a gain of {design.effect:g} is excluded; {difference}."
        if evidence.measure.difference <= -design.effect and proven.worse >= LIKELY_WORSE:
            why = f"Rolled back after {counted(evidence.candidate_users, 'user')}: {excluded}"
            return "roll back", "no gain", 0.0, why
        return "futility", "no gain", 0.0, f"Ended for futility: {excluded}"
    if evidence.days >= design.most_days:
        why = f"{counted(design.most_days, 'day')} {verb(design.most_days, 'is', 'are')} over; {difference}"
        reason, more = ("ratings", _what_is_missing(design)) if proven.better >= 1 else ("time", "")
        reason, more = _held_back(design, evidence) or (reason, more)
        return "futility", reason, 0.0, f"Ended for futility: {why}{more}."
    return None


def _what_is_missing(design: ExperimentDesign) -> str:
    """Why a candidate that is better among users with a value is not promoted."""
    if design.sample:
        return (
            f"; the random sample ({design.sample:.0%} of users, feedback {design.sample_kind!r}) does not prove it yet"
        )
    if design.missing == "random":
        return "; but users of the two arms are rated at different rates, so the comparison may not hold"
    return (
        "; but different rates of rating in the two arms may be the reason: only more values, or a random sample, tell"
    )


def _continued(design: ExperimentDesign, evidence: Evidence) -> RuleResult:
    m, share = evidence.measure, evidence.share
    later = [step for step in design.ramp if share < step < 1]
    difference, reason = _difference_words(design, m), "open"
    values = min(m.candidate_units, m.units - m.candidate_units) >= design.least_units
    if held := _held_back(design, evidence):
        reason, difference = held[0], difference + held[1]
        later = [] if reason == "assignment" else later
    elif evidence.strengths.better >= 1:
        difference, reason = difference + _what_is_missing(design), "ratings"
    if later and evidence.step_days >= design.hold_days and values:
        why = f"Continues with {later[0]:.0%} of new users instead of {share:.0%}: {difference}."
        return "continue", reason, later[0], why
    return "continue", reason, share, f"Continues at {share:.0%}: {difference}."


def _difference_words(design: ExperimentDesign, m: ArmDifference) -> str:
    if not 0 < m.candidate_units < m.units:
        users = f"{counted(m.units, 'user')} {verb(m.units, 'has', 'have')} a value for {design.measure}"
        return f"{users}, {m.candidate_units:,} of them the candidate's, too few to compare"
    users = f"{counted(m.candidate_units, 'user')} and {counted(m.units - m.candidate_units, 'user')}"
    difference = f"{m.difference:+.4f} [{m.low:+.4f}, {m.high:+.4f}] in {design.measure}"
    return f"{difference} against the champion, above 0 is better ({users})"
