"""Retraining as a state machine: when a cycle begins, which step is next, and how it ends. Decisions only, from facts and events.

A cycle is a list of steps, each a command. What it has done stands in the event log, so a controller that was killed
goes on with the step that has no event yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, field_validator

from tuneloop.core.errors import UserError
from tuneloop.core.files import Config
from tuneloop.records.decision import Decision

START, STEP, APPROVE, END = "improve.start", "improve.step", "improve.approve", "improve.end"
Step = Literal["collect", "train", "gate", "export", "register", "experiment", "decide", "promote"]
# Each step's command. Names in braces are those of the project, and `cycle` (a folder), `experiment` (a name).
COMMANDS: dict[str, list[str]] = {
    "collect": ["collect", "{store}", "-o", "{cycle}/collected"],
    "train": ["run", "{recipe}", "data.sources={cycle}/collected/sft.jsonl", "output_dir={cycle}/run"],
    "gate": ["gate", "{cycle}/run", "--against", "{champion}", "--suite", "{suite}"],
    "export": ["export", "{cycle}/run", "-o", "{cycle}/artifact"],
    "register": ["register", "{cycle}/artifact", "--name", "{model}", "--run", "{cycle}/run"],
    "experiment": ["ab", "start", "{experiment}", "--store", "{store}", "--model", "{model}"],
    "decide": ["ab", "check", "{experiment}", "--store", "{store}"],
    "promote": ["promote", "{model}", "--why", "experiment {experiment}"],
}
ORDER = tuple(COMMANDS)
# What the answer "no" of a step means; "not yet" is exit status 3.
NO = {"gate": "refused by the gate", "decide": "rolled back", "promote": "refused by the gate"}
NOT_YET = {"gate": "refused by the gate"}  # others wait


class Triggers(Config):
    """When a cycle begins; any of them is enough."""

    every_days: float = Field(91.0, gt=0, description="days since the last cycle, or since the first request")
    corrections: int = Field(200, ge=1, description="new corrections and labels")
    alarms: int = Field(
        1, ge=1, description="windows of `tuneloop monitor` with an alarm that asks for labels or training"
    )
    least_feedback: int = Field(50, ge=1, description="requests with feedback without which no cycle begins")


class ProjectConfig(Config):
    """What is kept good, and how."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="of the project")
    store: str = Field("serve", description="the server's folder")
    model: str = Field(description="name in the registry, under which it is served")
    recipe: str = Field(description="recipe of a training")
    champion: str = Field(
        "", description="run in use, with which the gate compares; after a promotion the promoted one"
    )
    suite: str = Field("", description="what the gate demands; empty: no gate")
    triggers: Triggers = Triggers()
    approve: list[Step] = Field(default_factory=list, description="steps that a person must approve first")
    steps: dict[Step, list[str]] = Field(default_factory=dict, description="commands in place of the usual ones")

    @field_validator("steps")
    @classmethod
    def _words(cls, steps: dict[Step, list[str]]) -> dict[Step, list[str]]:
        if any(not words for words in steps.values()):
            raise ValueError("steps: a command has at least one word, as in [run, recipe.yaml]")
        return steps


@dataclass(frozen=True)
class Facts:
    """What triggers are decided from.

    Args:
        days: since the last cycle ended, or since the first request.
        feedback: requests with feedback, of all time.
        corrections: new ones since then, and `alarms`: windows with one.
    """

    days: float
    feedback: int
    corrections: int
    alarms: int


@dataclass(frozen=True)
class Cycle:
    """A cycle as its events tell it.

    Args:
        number: from 1.
        project: as it was when the cycle began.
        reasons: why it began.
        done: results of its steps.
        approved: steps that a person has approved.
        outcome, why: how it ended; empty while it goes on.
        ended: when.
    """

    number: int
    project: ProjectConfig
    reasons: tuple[str, ...]
    done: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    approved: frozenset[str] = frozenset()
    outcome: str = ""
    why: str = ""
    ended: str = ""

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return f"{self.project.name}-{self.number}"

    @property
    def steps(self) -> list[str]:
        """Its steps; the gate only where something is demanded."""
        return [step for step in ORDER if step != "gate" or self.project.suite]

    @property
    def next_step(self) -> str:
        """The step that is to be done; empty where all are."""
        return next((step for step in self.steps if step not in self.done), "")

    @property
    def waits_for_approval(self) -> bool:
        """Whether a person must say yes first."""
        return self.next_step in self.project.approve and self.next_step not in self.approved


def reasons_to_begin(triggers: Triggers, facts: Facts) -> list[str]:
    """Why a cycle begins now; empty: it does not.

    Args:
        triggers: of the project.
        facts: as they are.
    """
    if facts.feedback < triggers.least_feedback:
        return []  # nothing to learn from
    found = []
    if facts.days >= triggers.every_days:
        found.append(f"{facts.days:.0f} days since the last cycle, at most {triggers.every_days:g}")
    if facts.corrections >= triggers.corrections:
        found.append(f"{facts.corrections:,} new corrections and labels, {triggers.corrections:,} are enough")
    if facts.alarms >= triggers.alarms:
        found.append(f"{facts.alarms:,} windows with an alarm")
    return found


def cycles_of(events: Iterable[Decision]) -> list[Cycle]:
    """The cycles of a project, from its events in order."""
    cycles: list[Cycle] = []
    for event in events:
        data = event.data
        if event.kind == START:
            project = ProjectConfig.model_validate(data["project"])
            cycles.append(Cycle(int(data["cycle"]), project, tuple(data["reasons"])))
        elif cycles and not cycles[-1].outcome:
            last = cycles[-1]
            if event.kind == STEP:
                last = replace(last, done={**last.done, data["step"]: data["result"]})
            elif event.kind == APPROVE:
                last = replace(last, approved=last.approved | {data["step"]})
            elif event.kind == END:
                last = replace(last, outcome=data["outcome"], why=data["why"], ended=event.time)
            cycles[-1] = last
    return cycles


def champion_of(project: ProjectConfig, cycles: Iterable[Cycle], folder: str) -> str:
    """The run in use: that of the last promoted cycle, else the project's.

    Args:
        folder: of the cycles.
    """
    promoted = [cycle for cycle in cycles if cycle.outcome == "promoted"]
    return f"{folder}/{promoted[-1].number}/run" if promoted else project.champion


def command_of(cycle: Cycle, step: str, *, folder: str, champion: str) -> list[str]:
    """The words of a step's command.

    Args:
        cycle: that goes on.
        step: of it.
        folder: of all cycles.
        champion: the run in use.

    Raises:
        UserError: a name in braces that there is not.
    """
    known = {
        **{name: str(getattr(cycle.project, name)) for name in ("name", "store", "model", "recipe", "suite")},
        "champion": champion, "cycle": f"{folder}/{cycle.number}", "experiment": cycle.experiment,
    }  # fmt: skip
    words = cycle.project.steps.get(step, COMMANDS[step])  # type: ignore[call-overload]
    try:
        return [str(word).format(**known) for word in words]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"Unknown name in braces: {error}", where=f"steps.{step}", next_step=f"names: {', '.join(known)}"
        ) from None


def after(step: str, status: int, result: Mapping[str, Any]) -> tuple[str, str, str]:
    """What follows from a step's exit status.

    Args:
        step: that was done.
        status: 0 yes, 1 no, 3 not enough evidence.
        result: what it printed.

    Returns:
        `done`, `wait` or `end`; for the end its outcome, and why.
    """
    why = str(result.get("sentence") or result.get("status") or f"{step}: exit status {status}")
    if status == 0:
        return ("end", "promoted", why) if step == "promote" else ("done", "", why)
    if status == 1 and step in NO:
        return "end", "futility" if result.get("outcome") == "futility" else NO[step], why
    if status == 3:
        return ("end", NOT_YET[step], why) if step in NOT_YET else ("wait", "", why)
    return "failed", "", why
