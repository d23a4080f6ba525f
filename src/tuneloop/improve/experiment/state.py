"""An experiment's registration, and its state as the events of the log give it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.improve.experiment.plan import LEAST_UNITS, ramp_of, refuse_unreachable
from tuneloop.improve.experiment.record import (
    ExperimentDesign,
    ExperimentOptions,
    ExperimentVerdict,
    Guardrail,
    sample_of,
)
from tuneloop.improve.experiment.statistics import time_of
from tuneloop.improve.experiment.tally import Stage
from tuneloop.records.feedback import COMMENTS, KIND
from tuneloop.records.record import read_record
from tuneloop.records.server import Decision, ServerState
from tuneloop.serving.store import Database, insert, opened, read_decisions, store_folder, store_name

START, DECISION, STOP = "experiment.start", "experiment.decision", "experiment.stop"
EVENTS = "kind LIKE 'experiment.%'"  # of all experiments
ENDS = ("promote", "roll back", "futility")
NO_MEASURE = COMMENTS | {"correction"}  # kinds without a value, or with one only


@dataclass(frozen=True)
class ExperimentState:
    """What is known of an experiment."""

    design: ExperimentDesign  # what was registered, and the hash of that
    registration: str
    started: str  # when; `since` when the share was last set
    since: str
    share: float  # of new users that meet the candidate
    verdicts: tuple[ExperimentVerdict, ...] = ()  # all decisions, in order
    ended: str = ""  # how it ended: promote, roll back, futility or stopped; empty while it continues
    stopped: str = ""  # when a person ended it, and `why` as that person said; empty where no one did
    why: str = ""

    @property
    def in_shadow_mode(self) -> bool:
        """Whether the candidate answers copies only, which no one sees."""
        return self.design.shadow and not self.share and not self.ended

    def stage(self, at: datetime) -> Stage:
        live = next((v.at for v in self.verdicts if v.share), at.isoformat()) if self.design.shadow else self.started
        starts = (self.started, self.since, live)
        days = [max(0.0, (at - time_of(then)).total_seconds() / 86_400) for then in starts]
        return Stage(days[0], days[1], self.share, days[2])


def experiments_of(events: Iterable[Decision]) -> dict[str, ExperimentState]:
    """All experiments by their names, from the events of the log in order."""
    states: dict[str, ExperimentState] = {}
    for event in events:
        if event.kind == START and event.subject not in states:
            design = ExperimentDesign.model_validate(event.data["design"])
            share = 0.0 if design.shadow else design.ramp[0]
            hashed = event.data["registration"]
            states[event.subject] = ExperimentState(design, hashed, event.time, event.time, share)
        elif event.kind in (DECISION, STOP) and event.subject in states and not states[event.subject].ended:
            states[event.subject] = _after(states[event.subject], event)
    return states


def read_experiments(location: Path | str) -> dict[str, ExperimentState]:
    """All experiments of a store. Raises UserError: there is no store."""
    with opened(location) as store:
        return experiments_of(read_decisions(store, where=EVENTS))


def find(experiments: Mapping[str, ExperimentState], name: str, location: Path | str) -> ExperimentState:
    """An experiment by its name.

    `name`: may be empty where there is only one that runs. Raises UserError: there is none of that name, or none or
    several run.
    """
    running = [other for other, state in experiments.items() if not state.ended]
    name_or_only = name or (running[0] if len(running) == 1 else "")
    if name_or_only in experiments:
        return experiments[name_or_only]
    names = ", ".join(experiments) or "none; `tuneloop ab start NAME` begins one"
    message = f"There is no experiment {name!r}" if name else f"{len(running) or 'No'} experiments run"
    raise UserError(message, where=store_name(location), next_step=f"experiments: {names}")


def left_out(location: Path | str, name: str) -> str | None:
    """Why the store's server serves no candidate of an experiment: empty where it does, None where it says nothing."""
    state = store_folder(location) / ServerState.file
    return read_record(ServerState, state).candidates.get(name) if state.is_file() else None


def _after(state: ExperimentState, event: Decision) -> ExperimentState:
    if event.kind == STOP:
        return replace(state, ended="stopped", share=0.0, stopped=event.time, why=str(event.data.get("why") or ""))
    verdict = ExperimentVerdict.model_validate(event.data)
    since = verdict.at if verdict.share != state.share else state.since
    ended, verdicts = verdict.outcome if verdict.outcome in ENDS else "", (*state.verdicts, verdict)
    return replace(state, verdicts=verdicts, share=verdict.share, since=since, ended=ended)


def add_event(
    store: Database, kind: str, subject: str, data: Mapping[str, Any], *, key: str | None = None, at: str = ""
) -> Decision | None:
    """Add an event to the log of decisions, at a time or now; None where one with this key is there already."""
    event = Decision(id=uuid7(), time=at or utc_now(), kind=kind, subject=subject, data=dict(data), key=key)
    return event if insert(store, [event]) else None


def design_of(name: str, options: ExperimentOptions, salt: str) -> ExperimentDesign:
    """The registration that options make.

    `salt`: of the users' hashes. Raises UserError: no model is named, a value can't be, or the base leaves no
    room for the gain.
    """
    if not options.model:
        step = "--model NAME, the name under which both are served"
        raise UserError("No model is named", where="--model", next_step=step)
    ramp = ramp_of(options.ramp)
    refuse_unreachable(options.base, options.effect, lower_is_better=options.lower_is_better)
    for name_of, kind in (("--measure", options.measure), ("--sample-kind", options.sample_kind)):
        if kind in NO_MEASURE or not KIND.fullmatch(kind):
            step = "thumbs, rating, edited, or a name of your own whose values are true, false or 0 to 1"
            raise UserError(f"Feedback {kind!r:.60} never says how good an answer is", where=name_of, next_step=step)
    fields = options.model_dump(exclude={"ramp", "shadow_copies"})
    fields["guardrails"] = guardrails_of(options.guardrails)
    for arm in ("candidate", "champion"):
        fields[arm] = f"{options.model}{fields[arm]}" if fields[arm].startswith("@") else fields[arm]
    fields |= {"name": name, "ramp": ramp, "salt": salt, "sample": sample_of(options.missing, options.sample)}
    fields["least_units"] = LEAST_UNITS
    try:
        return ExperimentDesign(shadow_votes=options.shadow_copies, **fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        message = f"Can't register this: {key}{first['msg'].removeprefix('Value error, ')}"
        raise UserError(message, where=f"ab start {name:.40}", next_step="tuneloop ab start --help") from None


def guardrails_of(text: str) -> list[Guardrail]:
    """The usual guardrails with other limits, as in `latency=1.2,length=off`. Raises UserError: it can't be read."""
    rails = {rail.name: rail for rail in ExperimentDesign.model_fields["guardrails"].default}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, limit = part.partition("=")
        try:
            tolerance = 0.0 if limit == "off" else float(limit)
        except ValueError:
            tolerance = math.nan
        if name not in rails or not (limit == "off" or 0 < tolerance < math.inf):
            step = f"NAME=LIMIT with a number or off; names: {', '.join(rails)}"
            raise UserError(f"Not a guardrail: {part!r:.60}", where="--guardrails", next_step=step)
        rails[name] = rails[name].model_copy(update={"tolerance": tolerance})
    return [rail for rail in rails.values() if rail.tolerance]
