"""Retraining as a state machine: when a cycle begins, which step is next, how it ends: from facts and events alone.

A cycle is a list of steps, each a command. The event log has what is done, so a controller that was killed continues
there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, field_validator

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.core.units import counted, exactly
from tuneloop.records.server import Decision

START, STEP, APPROVE, END = "improve.start", "improve.step", "improve.approve", "improve.end"
DECLINE = "improve.decline"  # there was a reason, and it was not worth it or too expensive
PRIOR_CYCLES = 2  # what is thought before any cycle counts as much as so many cycles
Step = Literal[
    "collect",
    "train",
    "warm_start",
    "choose",
    "evaluate",
    "gate",
    "export",
    "register",
    "experiment",
    "decide",
    "promote",
]
# Each step's command. Names in braces are those of the project, and `cycle` (a folder), `experiment` (a name).
COMMANDS: dict[str, list[str]] = {
    "collect": ["collect", "{store}", "-o", "{cycle}/collected", "--model", "{model}"],
    "train": ["run", "{recipe}", "output_dir={cycle}/run"],  # on the collected rows
    "warm_start": ["run", "{recipe}", "output_dir={cycle}/warm", "train.init={champion}"],  # from the run in use
    "choose": ["compare", "{cycle}/run", "{cycle}/warm", "-o", "{cycle}/starts"],
    "evaluate": ["evaluate", "{champion}", "--dataset", "{run}/dataset", "-o", "{cycle}/champion"],
    "gate": ["gate", "{run}", "--against", "{cycle}/champion", "--suite", "{suite}"],
    "export": ["export", "{run}", "-o", "{cycle}/artifact"],
    "register": ["models", "register", "{cycle}/artifact", "--name", "{model}", "--run", "{run}"],
    "experiment": ["ab", "start", "{experiment}", "--store", "{store}", "--model", "{model}"],
    "decide": ["ab", "check", "{experiment}", "--store", "{store}"],
    "promote": ["models", "promote", "{model}", "--why", "experiment {experiment}"],
}  # fmt: skip
ORDER = tuple(COMMANDS)
STARTS = ("warm_start", "choose")  # only where the project asks for them
# What the answer "no" of a step means; "not yet" is exit status 3.
NO = {"gate": "refused by the gate", "decide": "rolled back", "promote": "refused by the gate"}
NOT_YET = {"gate": "refused by the gate"}  # others wait
NOTHING_NEW = "nothing new"  # how a cycle ends whose collection has no row to train on


class Triggers(Config):
    """When a cycle begins; any of them is enough."""

    every_days: float = Field(91.0, gt=0, description="days since the last cycle, or since the first request")
    corrections: int = Field(200, ge=1, description="new corrections and labels")
    alarms: int = Field(
        1, ge=1, description="windows of `tuneloop monitor` with an alarm that needs labels or training"
    )
    least_feedback: int = Field(50, ge=1, description="requests with feedback without which no cycle begins")


class Budget(Config):
    """What all cycles that begin in a quarter of the calendar may take."""

    usd: float | None = Field(None, ge=0, description="dollars; default: no limit")
    hours: float | None = Field(None, ge=0, description="hours of the machine; default: no limit")


# Project keys of long descriptions.
FIXED = "share of the bad answers that a retraining on many corrections is thought to fix"
REFERENCE = "prepared data set that is compared with; `champion`: that of the run in use; empty: nothing is monitored"
WARM_START = "whether each cycle also trains from the run in use, and takes that one where it measures better"


class Value(Config):
    """What a better model is worth."""

    usd_per_answer: float = Field(
        0.0, ge=0, description="dollars that a good answer is worth more than a bad one; 0: any reason"
    )
    fixed: float = Field(0.3, ge=0, le=1, description=f"{FIXED}, before one has shown it")
    half: int = Field(50, ge=1, description="new corrections and labels with which it fixes half of that")


class Watching(Config):
    """Windows that `tuneloop monitor` compares, one after the other."""

    reference: str = Field("", description=REFERENCE)
    window: str = Field("7d", description="length of a window, as in 7d or 12h")
    false_alarms: float = Field(1.0, gt=0, le=50, description="windows of a year that may raise an alarm without cause")


class ProjectConfig(Config):
    """What is kept good, and how."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="of the project")
    store: str = Field("serve", description="the server's folder")
    model: str = Field(description="name in the registry, under which it is served")
    recipe: str = Field(description="recipe of a training")
    champion: str = Field(
        "", description="run in use, which the gate compares with; after a promotion the promoted one"
    )
    suite: str = Field("", description="what the gate demands; empty: no gate")
    warm_start: bool = Field(False, description=f"{WARM_START} than from the base")
    shadow: bool = Field(True, description="whether experiments begin in shadow mode: no one sees its answers")
    judge: str = Field("", description="model that compares shadow answers; empty: failures, equality, people's words")
    triggers: Triggers = Triggers()
    monitor: Watching = Watching()
    usd_per_hour: float = Field(0.0, ge=0, description="price of an hour of the machine that trains")
    budget: Budget = Budget()
    value: Value = Value()
    approve: list[Step] = Field(default_factory=list, description="steps that a person must approve first")
    steps: dict[Step, list[str]] = Field(default_factory=dict, description="commands in place of the usual ones")

    @field_validator("steps")
    @classmethod
    def _words(cls, steps: dict[Step, list[str]]) -> dict[Step, list[str]]:
        if any(not command for command in steps.values()):
            raise ValueError("steps: a command has at least one word, as in [run, recipe.yaml]")
        return steps


@dataclass(frozen=True)
class Facts:
    """The facts from which it is decided whether a cycle begins."""

    days: float  # since the last cycle ended, or since the first request
    feedback: int  # requests with feedback, of all time, counted up to as many as a cycle needs
    corrections: int  # new ones since then, and `alarms`: windows with one
    alarms: int
    requests_per_day: float = 0.0  # of these days
    bad: float = math.nan  # share of the judged answers of these days that are bad; NaN: none was judged
    spent_usd: float = 0.0  # spent_usd, spent_hours: of the cycles that began in this quarter
    spent_hours: float = 0.0
    expected_usd: float = math.nan  # expected_usd, expected_hours: of a cycle, by the planner; NaN: it was not queried
    expected_hours: float = math.nan
    fixed_shares: tuple[float, ...] = ()  # of earlier cycles: the share of bad answers that each fixed; 0: not promoted


@dataclass(frozen=True)
class Choice:
    """Whether a cycle begins."""

    begins: bool  # whether it does
    reasons: tuple[str, ...]  # why it should; empty: nothing requires it
    why: str = ""  # what speaks against it, or for it, with its numbers; empty: neither value nor budget is set
    gain_usd: float = math.nan  # expected until the next one; NaN: it is not known what an answer is worth


@dataclass(frozen=True)
class Cycle:
    """A cycle as its events tell it."""

    number: int  # from 1
    project: ProjectConfig  # as it was when the cycle began
    reasons: tuple[str, ...]  # why it began
    done: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # results of its steps
    approved: frozenset[str] = frozenset()  # steps that a person has approved
    outcome: str = ""  # outcome, why: how it ended; empty while it continues
    why: str = ""
    began: str = ""  # began, ended: when
    ended: str = ""
    bad: float = math.nan  # share of bad answers before it; NaN: not known
    corrections: int = 0  # new ones that it had
    hours: float = 0.0  # hours, usd: that its steps have taken
    usd: float = 0.0

    @property
    def fixed_share(self) -> float:
        """The share of bad answers that it would fix with many corrections, by its experiment; 0: not promoted."""
        gain = self.done.get("decide", {}).get("difference")
        if self.outcome != "promoted" or gain is None or not self.bad > 0 or not self.corrections:
            return 0.0
        return min(1.0, max(0.0, float(gain)) / self.bad / learned(self.corrections, self.project.value))

    @property
    def experiment(self) -> str:
        return f"{self.project.name}-{self.number}"

    @property
    def steps(self) -> list[str]:
        """Its steps; the champion is evaluated, and the gate applied, only where something is demanded."""
        left = (() if self.project.suite else ("evaluate", "gate")) + (() if self.project.warm_start else STARTS)
        return [step for step in ORDER if step not in left]

    @property
    def run(self) -> str:
        """Name of the folder of its run: from the base, or from the run in use where that was chosen."""
        return str(self.done.get("choose", {}).get("chosen") or "run")

    @property
    def next_step(self) -> str:
        return next((step for step in self.steps if step not in self.done), "")

    @property
    def waits_for_approval(self) -> bool:
        return self.next_step in self.project.approve and self.next_step not in self.approved


def reasons_to_begin(triggers: Triggers, facts: Facts) -> list[str]:
    """Why a cycle begins now; empty: it does not."""
    if facts.feedback < triggers.least_feedback:
        return []  # nothing to learn from
    reasons = []
    if facts.days >= triggers.every_days:
        reasons.append(f"{counted(facts.days, 'day')} since the last cycle, at most {triggers.every_days:g}")
    if facts.corrections >= triggers.corrections:
        reasons.append(f"{facts.corrections:,} new corrections and labels, {triggers.corrections:,} are enough")
    if facts.alarms >= triggers.alarms:
        reasons.append(f"{counted(facts.alarms, 'window')} with an alarm")
    return reasons


def number(value: object) -> float:
    """A number, or NaN in the place of anything else."""
    return float(value) if isinstance(value, int | float) else math.nan


def facts_from(data: Mapping[str, Any]) -> Facts:
    """Facts as the log has them."""
    facts: dict[str, Any] = {name: math.nan if value is None else value for name, value in data.items()}
    return Facts(**{**facts, "fixed_shares": tuple(facts.get("fixed_shares", ()))})


def needs_a_plan(project: ProjectConfig) -> bool:
    """Whether the planner has to say what a cycle takes before one begins."""
    return bool(project.value.usd_per_answer or project.budget.usd is not None or project.budget.hours is not None)


def choose(project: ProjectConfig, facts: Facts) -> Choice:
    """Whether a cycle begins: there is a reason, the quarter's budget bears it, and it is worth more than it costs.

    The gain is counted over as much time as has passed since the last cycle, at most `triggers.every_days`: a cycle
    begins when waiting has cost as much as it does, which is never much worse than to have known when (ski rental;
    Karlin et al. 1988, "Competitive snoopy caching"). It is the dollars of a good answer, times requests, times the
    share of bad answers, times the share of them that a retraining fixes. That share grows with the new corrections n
    as n / (n + `value.half`), towards the mean of what earlier cycles showed and of `value.fixed`, which counts as two
    cycles.
    """
    reasons = tuple(reasons_to_begin(project.triggers, facts))
    if not reasons:
        return Choice(False, ())
    against = _over_budget(project, facts)
    if against or not project.value.usd_per_answer:
        return Choice(not against, reasons, against)
    most = (PRIOR_CYCLES * project.value.fixed + sum(facts.fixed_shares)) / (PRIOR_CYCLES + len(facts.fixed_shares))
    fixed_share = most * learned(facts.corrections, project.value)
    days, bad, cost = min(facts.days, project.triggers.every_days), facts.bad, facts.expected_usd
    if math.isnan(bad) or math.isnan(cost):
        unknown = "no answer was judged" if math.isnan(bad) else "the planner could not say what it costs"
        return Choice(False, reasons, f"what it is worth is not known: {unknown}")
    price = project.value.usd_per_answer
    gain = price * facts.requests_per_day * days * bad * fixed_share
    requests = f"{counted(facts.requests_per_day, 'request')} a day for {exactly(days, 'day')}"
    source = (
        f"by {counted(facts.corrections, 'new correction')}, from {counted(len(facts.fixed_shares), 'earlier cycle')}"
    )
    reason = (
        f"expected gain ${gain:,.2f}: {requests}, {bad:.1%} bad answers, {fixed_share:.1%} of them fixed ({source}), "
    )
    reason += f"${price:g} each; expected cost ${cost:,.2f}"
    return Choice(gain > cost, reasons, reason, gain)


def learned(corrections: int, value: Value) -> float:
    """How much of what a retraining could fix it fixes with so many new corrections: 0 to 1."""
    return corrections / (corrections + value.half)


def _over_budget(project: ProjectConfig, facts: Facts) -> str:
    for limit, spent, expected, form in (
        (project.budget.usd, facts.spent_usd, facts.expected_usd, "${:,.2f}"),
        (project.budget.hours, facts.spent_hours, facts.expected_hours, "{:,.2f} hours"),
    ):
        if limit is None:
            continue
        if math.isnan(expected):
            return "there is a budget, and the planner could not say what a cycle takes"
        if spent + expected > limit:
            values = (form.format(value) for value in (limit, spent, expected))
            return "the budget of this quarter is {}, {} is spent and a cycle takes {}".format(*values)
    return ""


def cycles_of(events: Iterable[Decision]) -> list[Cycle]:
    """The cycles of a project, from its events in order."""
    cycles: list[Cycle] = []
    for event in events:
        data = event.data
        if event.kind == START:
            project = ProjectConfig.model_validate(data["project"])
            bad, corrections = data["facts"].get("bad"), int(data["facts"].get("corrections", 0))
            cycle = Cycle(int(data["cycle"]), project, tuple(data["reasons"]), began=event.time)
            cycles.append(replace(cycle, bad=math.nan if bad is None else float(bad), corrections=corrections))
        elif cycles and not cycles[-1].outcome:
            last = cycles[-1]
            last = replace(last, hours=last.hours + data.get("hours", 0.0), usd=last.usd + data.get("usd", 0.0))
            if event.kind == STEP:
                last = replace(last, done={**last.done, data["step"]: data["result"]})
            elif event.kind == APPROVE:
                last = replace(last, approved=last.approved | {data["step"]})
            elif event.kind == END:
                last = replace(last, outcome=data["outcome"], why=data["why"], ended=event.time)
            cycles[-1] = last
    return cycles


def champion_of(project: ProjectConfig, cycles: Iterable[Cycle], folder: str) -> str:
    """The run in use: that of the last promoted cycle in their `folder`, else the project's."""
    promoted = [cycle for cycle in cycles if cycle.outcome == "promoted"]
    return f"{folder}/{promoted[-1].number}/{promoted[-1].run}" if promoted else project.champion


def command_of(cycle: Cycle, step: str, *, folder: str, champion: str) -> list[str]:
    """The words of a step's command. `folder` is that of all cycles, `champion` the run in use.

    Raises UserError: a name in braces that there is not.
    """
    names = {
        **{name: str(getattr(cycle.project, name)) for name in ("name", "store", "model", "recipe", "suite")},
        "champion": champion, "cycle": f"{folder}/{cycle.number}", "experiment": cycle.experiment,
        "run": f"{folder}/{cycle.number}/{cycle.run}",
    }  # fmt: skip
    arguments = cycle.project.steps.get(step, COMMANDS[step])  # type: ignore[call-overload]
    if step == "promote" and not (cycle.project.suite or "promote" in cycle.project.steps):
        arguments = [*arguments, "--force", "the project has no suite; experiment {experiment} decided"]
    try:
        return [str(word).format(**names) for word in arguments]
    except (KeyError, IndexError, ValueError) as error:
        message, step_list = f"Unknown name in braces: {error}", f"names: {', '.join(names)}"
        raise UserError(message, where=f"steps.{step}", next_step=step_list) from None


def _nothing_new(project: ProjectConfig, result: Mapping[str, Any]) -> str:
    """Why there is nothing to train on among what was collected; empty: there is."""
    counts = result.get("counts")
    read = ("sft", "preference", "kto") if "train" in project.steps else ("sft",)  # the usual command imitates
    if not isinstance(counts, Mapping) or any(counts.get(name) for name in read):
        return ""
    dropped = result.get("dropped") or {}
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())
    reason = f"no new row to train on came of {counted(int(result.get('with_feedback') or 0), 'request')} with feedback"
    return f"{reason}; left out: {left_out}" if left_out else reason


def better_start(verdicts: Mapping[str, str]) -> str:
    """Which of both runs is used: that from the run in use only where one metric shows it to be better, and none worse.

    `verdicts`: metric -> `better`, `worse` or `not enough evidence`, of the run from the champion against the other.
    Returns `warm` or `run`.
    """
    return "warm" if "better" in verdicts.values() and "worse" not in verdicts.values() else "run"


def after(project: ProjectConfig, step: str, status: int, result: Mapping[str, Any]) -> tuple[str, str, str]:
    """What follows from a step's exit status.

    `status`: 0 yes, 1 no, 3 not enough evidence. Returns `done`, `wait`, `end` or `failed`; for the end its outcome,
    and why.
    """
    if step == "collect" and status == 0 and (reason := _nothing_new(project, result)):
        return "end", NOTHING_NEW, reason
    reason = str(result.get("sentence") or result.get("status") or f"{step}: exit status {status}")
    if status == 0:
        return ("end", "promoted", reason) if step == "promote" else ("done", "", reason)
    if status == 1 and step in NO:
        return "end", "futility" if result.get("outcome") == "futility" else NO[step], reason
    if status == 3:
        return ("end", NOT_YET[step], reason) if step in NOT_YET else ("wait", "", reason)
    return "failed", "", reason
