"""One experiment: its confidence sequence, arms, guardrails, decisions as they were made; decide now, stop, replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import clock
from tuneloop.improve.experiment import ExperimentState, find, left_out, read_experiments, time_of
from tuneloop.improve.report import ENDS, experiment_line, experiment_part
from tuneloop.serving.store import Database, opened, store_name
from tuneloop.web.commands import CommandReading, command_line, reading, run_words, workplace
from tuneloop.web.sources import Sources
from tuneloop.web.stores import ShownStore, actions_on, note_action, shown_store

STEPS = {"decide": "check", "stop": "stop"}  # of the page -> verb of `tuneloop ab`


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    name = request.path_params["name"]
    facts = _state(shown, name)
    state: ExperimentState = facts["state"]
    with opened(shown.place) as store:
        traffic = traffic_of(store, state)
    looked_at = request.query_params
    replay = read_plan = None
    if looked_at.get("replay"):
        replay = _reading(sources, shown, ["ab", "replay", name, "--store", shown.word], len(state.verdicts))
    if looked_at.get("plan") or sources.files is not None:
        read_plan = _reading(sources, shown, plan_words(state, *traffic), 0)
    return {
        **facts, "replay": replay, "plan": read_plan, "traffic": traffic,
        "busy": "Every decision is made again from the log." if replay and replay.busy
        else "Experiments with this traffic are simulated." if read_plan and read_plan.busy else "",
        "commands": {
            step: command_line(["ab", verb, name, "--store", store_name(shown.place)]) for step, verb in STEPS.items()
        },
    }  # fmt: skip


def live(request: Request, sources: Sources) -> dict[str, Any]:
    """What changes while the page is open: the sequence, the arms, the decisions."""
    return _state(shown_store(request, sources), request.path_params["name"])


def _state(shown: ShownStore, name: str) -> dict[str, Any]:
    state = find(read_experiments(shown.place), name, shown.name)
    with opened(shown.place) as store:
        done = actions_on(store, name)
    return {
        "store": shown, "state": state, "design": state.design, "part": experiment_part(experiment_line(state)),
        "verdicts": state.verdicts[::-1], "ends": ENDS, "done": done,
        "last": state.verdicts[-1].evidence if state.verdicts else None,
        "left_out": "" if state.ended else left_out(shown.place, name) or "",
    }  # fmt: skip


def _reading(sources: Sources, shown: ShownStore, arguments: Sequence[str], stamp: object) -> CommandReading:
    return reading(arguments, workplace(sources, shown.folder), stamp, wait=60.0 if sources.files is not None else 0.05)


def traffic_of(store: Database, state: ExperimentState) -> tuple[float, float]:
    """Requests a day of an experiment's model since its start, and the share of users who gave a value at the last
    decision, by the store's sums; with two digits, since a simulation is kept as long as its words are the same."""
    query = "SELECT COALESCE(SUM(requests), 0) FROM costs WHERE model = ? AND day >= ?"
    (number,) = store.execute(query, [state.design.model, state.started[:10]]).fetchone()
    end = time_of(state.verdicts[-1].at).timestamp() if state.ended and state.verdicts else clock()
    days = max((end - time_of(state.started).timestamp()) / 86_400, 1 / 24)
    last = state.verdicts[-1].evidence if state.verdicts else None
    rated = last.measure.units / last.users if last and last.users and last.measure.units else 0.03
    return float(f"{max(1.0, number / days):.2g}"), float(f"{min(max(rated, 0.001), 1.0):.2g}")


def plan_words(state: ExperimentState, per_day: float, rated: float) -> list[str]:
    """The words of `tuneloop ab plan` for an experiment like this with its traffic."""
    names = ("base", "effect", "hold_days", "maturation_hours", "missing", "alpha")
    values = {"requests_per_day": per_day, "rated": rated, **{name: getattr(state.design, name) for name in names}}
    values |= {"ramp": ",".join(f"{100 * share:g}" for share in state.design.ramp), "simulations": 200}
    options = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["ab", "plan", *options]


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Decide now, or end the experiment: the champion then answers all."""
    shown, name, step = shown_store(request, sources), request.path_params["name"], form.get("step", "")
    if step not in STEPS:
        raise UserError("There is no such step", where=step[:40], next_step=", ".join(STEPS))
    state = find(read_experiments(shown.place), name, shown.name)
    if form.get("seen", "") != str(len(state.verdicts)) or state.ended:
        now = ENDS.get(state.ended, state.ended) if state.ended else state.verdicts[-1].outcome
        message = f"{name} was decided upon meanwhile: {now}"
        step = "go back, load the page again, and see whether you still want it"
        raise UserError(message, where=shown.name, next_step=step)
    arguments = ["ab", STEPS[step], name, "--store", shown.word]
    if STEPS[step] == "stop":
        arguments += [
            "--why",
            " ".join(filter(None, (form.get("why", "").strip(), sources.who and f"({sources.who})"))),
        ]
    _, record = run_words(arguments, workplace(sources, shown.folder))
    line = command_line([store_name(shown.place) if word == shown.word else word for word in arguments])
    note_action(shown.place, sources, name, line)
    said = str(record.get("sentence") or f"{name}: the champion answers all users")
    return sources.url("experiment", name=name, store=shown.key, said=said[:300])
