"""What became of a server's traffic, experiments and retrainings: the numbers of `improve/report.html`."""

from __future__ import annotations

from typing import ClassVar, Literal

from tuneloop.improve.experiment.record import GuardrailFinding
from tuneloop.records.record import Number, Part, Record


class FunnelStep(Part):
    """How far production came on its way to a version: a name, how many, and what that means."""

    name: str
    count: int
    detail: str = ""


class TrafficPeriod(Part):
    """A day or a week of requests.

    Args:
        since: its first day.
        requests, rated: requests, and those of them that people have judged.
        liked: mean of their judgements, 0 bad to 1 good; NaN: none.
        usd: price of the requests.
    """

    since: str
    requests: int
    rated: int
    liked: Number
    usd: float


class TimelineEvent(Part):
    """Something that was decided or noticed.

    Args:
        time: ISO 8601 in UTC.
        kind: of the event in the log.
        title: in a few words, `sentence` with its numbers.
        tone: how it is shown.
    """

    time: str
    kind: str
    title: str
    sentence: str = ""
    tone: Literal["plain", "good", "bad"] = "plain"


class SequencePoint(Part):
    """An experiment at one decision: days since its start, share of new users, the difference and its bounds."""

    days: float
    share: float
    units: int
    difference: Number
    low: Number
    high: Number


class ExperimentLine(Part):
    """An experiment from start to end.

    Args:
        name, candidate, champion, measure, effect, alpha, registration: as registered.
        started: when.
        outcome: promote, roll back, futility, stopped; empty while it continues.
        sentence: the last decision, or why a person stopped it.
        users, candidate_users: that met either arm by then; `shadow_copies` answered unseen, `shadow_votes` of them
            judged.
        points: one for each decision.
        guardrails: as they stood last.
    """

    name: str
    candidate: str
    champion: str
    measure: str
    effect: float
    alpha: float
    registration: str
    started: str
    outcome: str
    sentence: str
    users: int = 0
    candidate_users: int = 0
    shadow_copies: int = 0
    shadow_votes: int = 0
    points: list[SequencePoint] = []
    guardrails: list[GuardrailFinding] = []


class MonitoredWindow(Part):
    """A window of `tuneloop monitor`.

    Args:
        since, until, requests: of the window.
        strengths: detector -> evidence over what an alarm takes (logarithms); from 1 on it is one.
        alarms: names of the detectors with an alarm.
        sentences: of the alarms, each with words and next step.
        quality: estimated share of right answers; NaN: not estimated.
    """

    since: str
    until: str
    requests: int
    strengths: dict[str, float]
    alarms: list[str]
    sentences: list[str]
    quality: Number


class LedgerStep(Part):
    """A step of a cycle: what it took, and what came of it in a few words."""

    step: str
    hours: float
    usd: float
    result: str = ""


class LedgerCycle(Part):
    """A cycle of retraining and what it cost.

    Args:
        number: from 1.
        began, ended: when; the second is empty while it continues.
        reasons: why it began.
        expected_usd, gain_usd: what it was expected to cost and to be worth; NaN: no one had said what an answer is
            worth.
        steps: that were done.
        hours, usd: of all steps.
        outcome, why: how it ended.
    """

    number: int
    began: str
    ended: str
    reasons: list[str]
    expected_usd: Number
    gain_usd: Number
    steps: list[LedgerStep]
    hours: float
    usd: float
    outcome: str
    why: str


class ImprovementReport(Record):
    """All that a server's store says of how it was kept good.

    Args:
        name: of the project, else of the model.
        store: where it was read.
        since, until: first and last request.
        days: length of the periods.
        funnel: from requests to promoted versions.
        periods: traffic over time.
        timeline: all decisions, in order.
        experiments, windows, cycles: each in order.
        requests_usd: price of all requests; `training_usd`, `training_hours` of all cycles.
        notes: what could not be said.
    """

    title: ClassVar[str] = "a report of improvement"
    file: ClassVar[str] = "report.json"
    again: ClassVar[str] = "run `tuneloop improve report` again"

    name: str
    store: str
    since: str
    until: str
    days: float
    funnel: list[FunnelStep]
    periods: list[TrafficPeriod]
    timeline: list[TimelineEvent]
    experiments: list[ExperimentLine]
    windows: list[MonitoredWindow]
    cycles: list[LedgerCycle]
    requests_usd: float
    training_usd: float
    training_hours: float
    notes: list[str] = []
