"""Experiments: all of a store, and a form that starts one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from markupsafe import Markup
from starlette.requests import Request

from tuneloop.core.errors import UserError
from tuneloop.core.ids import clock, utc
from tuneloop.improve.experiment import left_out, read_experiments
from tuneloop.improve.report import ENDS, TONES, ExperimentLine, experiment_line
from tuneloop.report.charts import gain_chart
from tuneloop.serving.store import opened, store_name
from tuneloop.web.commands import command_line, run_words, workplace
from tuneloop.web.search import choices
from tuneloop.web.sources import Need, Sources
from tuneloop.web.stores import note_action, required, shown_store, store_key

SETTINGS = ("model", "candidate", "effect", "base", "ramp", "hold_days", "maturation_hours")  # of the form


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows."""
    shown = shown_store(request, sources)
    states = read_experiments(shown.place)
    with opened(shown.place) as store:
        served = choices(store)["model"]
    lines = [experiment_line(state) for state in states.values()][::-1]
    lines.sort(key=lambda line: bool(line.outcome))  # what still runs comes first
    return {
        "gains": {line.name: _gain(line) for line in lines},
        "store": shown,
        "lines": lines,
        "ends": ENDS,
        "tones": TONES,
        "models": served,
        "states": states,
    }


def _gain(line: ExperimentLine) -> Markup:
    """The difference as it stood last, with its bounds, and what is worth a promotion."""
    point = line.points[-1] if line.points else None
    if point is None or (picture := gain_chart(point.difference, point.low, point.high, line.effect)) == "":
        return Markup("")
    points = f"{100 * point.difference:+.1f} points" if line.effect <= 1 else f"{point.difference:+.3g}"
    return picture + Markup(' <b class="figure">{}</b>').format(points)


def needs(sources: Sources) -> list[Need]:
    """Experiments that ended in the last week, and those whose candidate the server can't serve."""
    wanted = []
    week = utc(clock() - 7 * 86_400)
    for store in sources.stores:
        with suppress(UserError):
            for name, state in read_experiments(store).items():
                address = sources.url("experiment", name=name, store=store_key(store))
                if state.ended in ENDS and state.verdicts and state.verdicts[-1].at >= week:
                    stopped = state.ended == "stopped"  # its last sentence is that it continues
                    wanted.append(Need(name, ENDS["stopped"] if stopped else state.verdicts[-1].sentence, address))
                elif not state.ended and (reason := left_out(store, name)):
                    wanted.append(Need(f"{name}: the candidate is not served", reason, address, "bad"))
    return wanted


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Start an experiment, as `tuneloop ab start` does: refused where another one with this model runs."""
    shown = shown_store(request, sources)
    name = required(form, "name", "The name")
    arguments = ["ab", "start", name, "--store", shown.word]
    for key in SETTINGS:
        if value := form.get(key, "").strip():
            arguments += [f"--{key.replace('_', '-')}", value]
    if not form.get("shadow"):
        arguments.append("--no-shadow")
    run_words(arguments, workplace(sources, shown.folder))
    shown_words = [store_name(shown.place) if word == shown.word else word for word in arguments]
    note_action(shown.place, sources, name, command_line(shown_words))
    return sources.url("experiment", name=name, store=shown.key, said=f"{name} has begun")
