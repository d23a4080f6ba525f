"""Experiments: what one could show, what was registered before it, and what it decided."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tuneloop.core.files import Config
from tuneloop.core.flag import flag
from tuneloop.records.record import Number, Part, Record

Outcome = Literal["promote", "roll back", "continue", "futility"]


Missing = Literal["random", "one-way", "any"]
MISSING: dict[str, str] = {
    "random": "both arms, and good and bad answers alike, are rated at the same rates",
    "one-way": "the candidate changes whether answers are rated in one direction: more often, or less often",
    "any": "nothing: unrated answers of the candidate may all be bad, and those of the champion all be good",
}


USUAL_SAMPLE = 0.4  # of users, where nothing is assumed of missing votes
LOSSES = ("dislikes", "unhappy", "later", "slices")  # guardrails on a loss of a value from 0 to 1


def sample_of(missing: Missing, sample: float | None) -> float:
    """The share of users whose answers are checked, by what is assumed of missing votes where none is given."""
    return sample if sample is not None else USUAL_SAMPLE if missing == "any" else 0.0


class PlannedPower(Part):
    """What becomes of experiments with some true effect.

    Args:
        effect: the true difference of the rates.
        days, units: how far the experiments have come; `units` are rated ones.
        promoted, rolled_back, futile: shares of the simulated experiments that have so ended by then; the candidate is
            taken away by the last two.
    """

    effect: float
    days: int
    units: int
    promoted: float
    rolled_back: float
    futile: float


class RampHarm(Part):
    """What a ramp costs and gains.

    Args:
        ramp: shares in percent, as `ab start --ramp` takes them.
        days_50: until half of the candidates with the effect are promoted; None: not within the simulated time.
        harmed: users who meet a candidate that is twice the effect worse until it is taken away, median.
    """

    ramp: str
    days_50: int | None
    harmed: int


class ExperimentPlan(Record):
    """What an experiment with this traffic can show, by simulation of its decisions.

    Args:
        requests_per_day, requests_per_user, users, correlation, rated, base, effect, share, hold_days,
            maturation_hours, missing, harm, alpha: as they were given.
        ramp: in percent; the one that was picked where `harm` was given.
        units_per_day: new users with a value a day at the start, and `candidate_units_per_day` of the candidate at the
            first share.
        units_50, days_50, units_80, days_80: when half and 80 % of the experiments with the effect have been promoted,
            looked at every `look_every_days`; None: not within `days_simulated`.
        false_promotion: share of experiments without any effect that are promoted in `days_simulated`.
        power: by effect and time.
        ramps: what other ramps cost and gain.
        sample: share of users whose answers are checked.
        simulations, seed: of the table.
        summary: in words.
    """

    title: ClassVar[str] = "an experiment's plan"
    file: ClassVar[str] = "ab-plan.json"
    again: ClassVar[str] = "run `tuneloop ab plan` again"

    requests_per_day: float
    requests_per_user: float
    users: int
    correlation: float
    rated: float
    base: float
    effect: float
    ramp: str
    share: float
    hold_days: float
    maturation_hours: float
    missing: Missing
    harm: int
    alpha: float
    units_per_day: float
    candidate_units_per_day: float
    units_50: int | None
    days_50: int | None
    units_80: int | None
    days_80: int | None
    false_promotion: Number
    days_simulated: int
    look_every_days: int
    power: list[PlannedPower]
    ramps: list[RampHarm]
    sample: float
    simulations: int
    seed: int
    summary: list[str]


class Guardrail(Part):
    """What must not get worse, judged with one bound, at once.

    Args:
        name: a share of requests: `invalid` (errors, answers that were cut); a geometric mean: `latency`, `cost`,
            `length`; a mean of values from 0 to 1: `dislikes` (votes of any kind on a user's first day), `unhappy`
            (whether any of a user's three or more is good, compared among users with as many), and the measure in the
            worst of the `slices` by key and length of the prompt, and `later`, when a user's window is over. All are
            means of users, however many requests they send.
        tolerance: how many times the champion's share or geometric mean is tolerated; of values from 0 to 1 the loss.
    """

    name: Literal["invalid", "dislikes", "unhappy", "latency", "cost", "length", "slices", "later"]
    tolerance: float = Field(gt=0)


class ExperimentDesign(Record):
    """What was registered before an experiment began. Its hash is in every decision.

    Args:
        name: of the experiment.
        model: the served name; requests for others don't count.
        candidate, champion: what answers in either arm.
        measure: kind of feedback that decides; `lower_is_better` where little of it is good.
        effect: smallest gain worth a promotion, in the unit of the measure (0 to 1).
        base: the measure's expected value under the champion.
        alpha: chance of a wrong promotion, and of a wrong roll-back for whatever reason.
        ramp: shares of new users that meet the candidate, one step after another; 1 is the promotion itself.
        hold_days: that a step lasts at least.
        maturation_hours: from a user's first request on; what comes later does not count, in neither arm.
        least_units: users with a value in each arm before a step of the ramp.
        least_days: before which nothing is promoted: full days on which users met the candidate, and whose windows are
            over. From 7 on the gain must also hold on the average of the days of the week.
        most_days: after which it ends for futility.
        shadow: whether it begins with copies of requests that the candidate answers unseen; so many as `shadow_votes`
            must come first, judged or not.
        guardrails: what must not get worse.
        missing: what is assumed of requests without a value before a promotion by votes; see `MISSING`.
        sample: share of users, drawn by a hash, whose requests are checked, and `sample_kind` the kind of feedback that
            says so. Where it is above 0, checks have nine tenths of alpha for a promotion; for the rest nothing is
            assumed of missing votes.
        earlier_days: before a user's draw, of which requests and votes sharpen what is expected of it; 0: none.
        salt: of the users' hashes.
    """

    title: ClassVar[str] = "an experiment's registration"
    file: ClassVar[str] = "experiment.json"
    again: ClassVar[str] = "start the experiment again under another name: a registration is never changed"

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    model: str
    candidate: str
    champion: str
    measure: str = "thumbs"
    lower_is_better: bool = False
    effect: float = Field(0.05, gt=0, lt=1)
    base: float = Field(0.6, gt=0, lt=1)
    alpha: float = Field(0.05, ge=1e-6, le=0.5)
    ramp: list[float] = [0.1, 0.25, 0.5, 1.0]
    hold_days: float = Field(3.0, ge=0)
    maturation_hours: float = Field(72.0, gt=0)
    least_units: int = Field(30, ge=10)
    least_days: float = Field(0.0, ge=0)
    most_days: float = Field(365.0, gt=0)
    shadow: bool = True
    shadow_votes: int = Field(100, ge=30)
    guardrails: list[Guardrail] = [
        Guardrail(name="invalid", tolerance=1.5), Guardrail(name="dislikes", tolerance=0.01),
        Guardrail(name="latency", tolerance=1.5), Guardrail(name="cost", tolerance=1.5),
        Guardrail(name="length", tolerance=2.0), Guardrail(name="unhappy", tolerance=0.001),
        Guardrail(name="slices", tolerance=0.05), Guardrail(name="later", tolerance=0.01),
    ]  # fmt: skip
    missing: Missing = "any"
    sample: float = Field(0.0, ge=0, le=1)
    sample_kind: str = "checked"
    earlier_days: float = Field(0.0, ge=0, le=366)
    salt: str

    @model_validator(mode="after")
    def _ramp_rises(self) -> ExperimentDesign:
        if not self.ramp or not all(0 < share <= 1 for share in self.ramp) or sorted(set(self.ramp)) != self.ramp:
            raise ValueError("the steps of a ramp rise, from above 0 to at most 100 %")
        if self.ramp[0] == 1:
            raise ValueError("a ramp that begins at 100 % leaves no champion to compare with")
        return self


class ArmDifference(Part):
    """The measure in both arms. `low` and `high` bound the difference, and may be read at any time: each is ever wrong
    with a chance of at most alpha.

    Args:
        units: users with a value; `candidate_units` of them the candidate's.
        candidate, champion: plain means.
        difference: candidate minus champion, weighted by the precision of their shares; better is above 0.
    """

    units: int
    candidate_units: int
    candidate: Number
    champion: Number
    difference: Number
    low: Number
    high: Number


class GuardrailFinding(Part):
    """A guardrail's state.

    Args:
        name, tolerance: as registered.
        candidate, champion: means of users: a share of requests, a geometric mean, or a value from 0 to 1.
        strength: evidence as a multiple of what is needed: it trips at 1.
        tripped: whether the candidate is worse than tolerated.
        held: whether it seems to be, so that nothing is promoted yet.
        where: the slice that is worst.
    """

    name: str
    tolerance: float
    candidate: Number
    champion: Number
    strength: float
    tripped: bool
    held: bool = False
    where: str = ""


class Strengths(Part):
    """Evidence by bets, each as a multiple of what is needed: a claim is proven at 1.

    Args:
        better, worse, no_gain: the candidate is better among users with a value; worse among them, or by checks; not
            better by the registered effect, in the same way.
        promotion: the candidate is better, by the checks of the random `sample`, or by `votes`, whatever the missing
            ones are, as far as the registration assumes.
        rates: requests are rated at other rates in one arm than in the other, which contradicts `random`.
        whole_weeks: it is better on the average of the days of the week, each counting the same.
        shadow_worse: its answers in shadow mode are worse.
        switched: more than 1 % of those who came again met the other arm without a new draw.
        checked_units: users of the random sample that have been checked.
    """

    better: float
    worse: float
    no_gain: float
    promotion: float
    votes: float
    sample: float
    rates: float
    whole_weeks: float = 0.0
    shadow_worse: float = 0.0
    switched: float = 0.0
    checked_units: int = 0


class Evidence(Part):
    """All that a decision is made from.

    Args:
        days: since the start; `step_days` since the last step of the ramp, `live_days` since users meet the candidate.
        share: of new users that meet the candidate now; 0 in shadow mode.
        users, candidate_users: that have met either arm; one who is drawn again counts again.
        dropped: requests that name neither user nor conversation. They don't count.
        measure: of both arms.
        guardrails: each with its state.
        ratio_strength: evidence that users don't fall into the arms as drawn; 1 trips. `unlikely`: it reaches alpha.
        estimate: of the difference, by checks where there are any, else by votes.
        suspected: votes of users' first day are lower by more than a standard error; the ramp waits.
        requests: of a user within the window, the candidate's and the champion's: shown, and never a harm.
        shadow_copies: of requests that the candidate has answered unseen, or failed to answer.
        shadow_votes, shadow_mean: judged pairs, and their mean (1: the candidate is better, -1: worse).
        strengths: what is proven.
    """

    days: float
    step_days: float
    share: float
    users: int
    candidate_users: int
    dropped: int
    measure: ArmDifference
    guardrails: list[GuardrailFinding]
    ratio_strength: float
    unlikely: bool
    estimate: Number
    suspected: bool
    strengths: Strengths
    requests: list[Number] = []
    live_days: float = 0.0
    shadow_copies: int = 0
    shadow_votes: int = 0
    shadow_mean: Number = math.nan


class ExperimentVerdict(Part):
    """A decision on an experiment: the data of an event `experiment.decision`.

    Args:
        registration: hash of the design.
        at: the time up to which events were read, ISO 8601 in UTC.
        outcome: promote, roll back, continue or futility.
        reason: a word: `better`, `worse`, `guardrail`, `assignment`, `ratings`, `shadow`, `no gain`, `weeks`,
            `time`, `open`.
        share: that the candidate gets from now on.
        sentence: all of it in one sentence with its numbers.
        evidence: what it was made from.
        seen: place in the store of the last event that it could see. A request has the time at which it came and is
            stored when its answer ends, so others of an earlier time come later; they don't count. None: all that is
            stored counts.
    """

    registration: str
    at: str
    outcome: Outcome
    reason: str
    share: float
    sentence: str
    evidence: Evidence
    seen: int | None = None


class ExperimentPlanOptions(Config):
    """Traffic, ratings, and the effect to be found."""

    PANEL: ClassVar[str] = "Traffic and effect"

    requests_per_day: float = Field(1000.0, gt=0, le=1e9, description="Requests a day, of both arms.")
    requests_per_user: float = Field(1.0, ge=1, le=50, description="Requests of a user within the window, on average.")
    users: int = Field(0, ge=0, description="Users in all, where the same ones come again; 0: always new ones.")
    correlation: float = Field(0.0, ge=0, lt=1, description="How alike a user's answers are in quality.")
    rated: float = Field(0.03, gt=0, le=1, description="Share of the requests that get a rating.")
    base: float = Field(0.6, gt=0, lt=1, description="Share of the ratings that are good today.")
    effect: float = Field(0.05, gt=0, lt=1, description="Smallest rise of that share that is worth a new version.")
    ramp: str = flag("10,25,50,100", "PERCENT,...", "Shares of new users that meet the candidate, step by step.")
    share: float = Field(0.0, ge=0, lt=1, description="A constant share instead of the ramp; 0: the ramp.")
    hold_days: float = Field(3.0, ge=0, description="Days that a step of the ramp lasts at least.")
    maturation_hours: float = Field(72.0, gt=0, description="Hours after a user's first request while feedback counts.")
    missing: Missing = Field("any", description="What is assumed of missing ratings: any (nothing), one-way or random.")
    sample: float | None = Field(
        None, ge=0, le=1, description="Share of users whose answers are checked; 0.4 with --missing any."
    )
    harm: int = Field(0, ge=0, description="Users that may meet a candidate twice the effect worse; picks the ramp.")
    alpha: float = Field(0.05, ge=1e-6, le=0.5, description="Chance of a wrong decision that is accepted.")
    simulations: int = Field(1000, ge=100, le=20_000, description="Simulated experiments.")
    seed: int = Field(0, ge=0, description="Seed of the simulation.")


class ExperimentOptions(Config):
    """What is registered before an experiment begins."""

    PANEL: ClassVar[str] = "Registration"

    model: str = flag("", "MODEL", "Name under which the model is served.")
    candidate: str = flag("@candidate", "TARGET", "What the candidate is: NAME@ALIAS or another target.")
    champion: str = flag("@champion", "TARGET", "What it is compared with.")
    ramp: str = flag("10,25,50,100", "PERCENT,...", "Shares of new users that meet the candidate, step by step.")
    measure: str = flag("thumbs", "KIND", "Kind of feedback that decides.")
    lower_is_better: bool = Field(False, description="Little of the measure is good.")
    effect: float = Field(0.05, gt=0, lt=1, description="Smallest gain that is worth a promotion.")
    base: float = Field(0.6, gt=0, lt=1, description="The measure under the champion, about.")
    alpha: float = Field(0.05, ge=1e-6, le=0.5, description="Chance of a wrong decision that is accepted.")
    hold_days: float = Field(3.0, ge=0, description="Days that a step of the ramp lasts at least.")
    maturation_hours: float = Field(72.0, gt=0, description="Hours after a user's first request while feedback counts.")
    least_days: float = Field(
        7.0, ge=0, description="Full days before a promotion; from 7 on whole weeks must show it."
    )
    most_days: float = Field(365.0, gt=0, description="Days after which the experiment ends.")
    guardrails: str = flag("", "NAME=LIMIT,...", "Limits other than the usual ones, as in latency=1.2,length=off.")
    missing: Missing = Field("any", description="What is assumed of missing ratings: any (nothing), one-way or random.")
    sample: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of users, drawn at random, whose answers are checked; 0.4 with --missing any.",
    )
    sample_kind: str = flag("checked", "KIND", "Kind of feedback that says what a check found.")
    earlier_days: float = Field(30.0, ge=0, le=366, description="Days of earlier votes that say what users usually do.")
    shadow: bool = flag(
        True, "", "Begin with copies of requests, before anyone meets the candidate.", "--shadow/--no-shadow"
    )
    shadow_copies: int = Field(100, ge=30, description="Copies after which shadow mode is over.")
