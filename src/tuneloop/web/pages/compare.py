"""Two to eight runs: their curves over each other, settings that differ, metrics, and paired differences."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from starlette.requests import Request

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.evaluation import load_evaluation, paired_with_first
from tuneloop.evaluation.metrics import gain_interval, signed
from tuneloop.records.evaluation import Estimate
from tuneloop.report import differing_settings, read_run
from tuneloop.report.charts import Curve, chart_pair, overlay_chart, points_of
from tuneloop.web.runs import asked_steps, curves, holder, run_line
from tuneloop.web.sources import Sources
from tuneloop.web.steer import RunCommand, start
from tuneloop.web.suites import suites_of

MOST = 8


def show(request: Request, sources: Sources) -> dict[str, Any]:
    """What the page shows at once; the paired differences take longer and come later, or by `paired=yes`."""
    keys = list(dict.fromkeys(request.query_params.getlist("run")))
    if not 2 <= len(keys) <= MOST:
        step = "choose two to eight in the list of runs"
        raise UserError(f"{len(keys)} runs can't be compared here", next_step=step)
    places = [sources.find("run", key) for key in keys]
    lines = [run_line(sources, found) for found in places]
    names = _names([line.place for line in lines])
    losses, configs, (first, last) = [], [], asked_steps(request.query_params)
    for name, found in zip(names, places, strict=True):
        steps, validations = curves(sources, found).between(first, last)
        losses.append(Curve(name, points_of(steps, "loss"), points_of(validations, "val_loss")))
        configs.append(read_run(found.path).config)
    shown = list(dict.fromkeys(name for line in lines for name in ([line.primary] if line.primary else [])))
    shown += [name for name in dict.fromkeys(n for line in lines for n in line.metrics) if name not in shown]
    evaluated = [line for line in lines if line.metrics]
    page = {
        "lines": lines, "names": names, "metrics": shown,
        "chart": chart_pair(partial(overlay_chart, values=True, first=first), losses),
        "differ": differing_settings(configs) if all(configs) and sources.texts else [],
        "evaluated": len(evaluated), "pairs": None, "problem": "", "gate": "",
    }  # fmt: skip
    idle = all(holder(found.path) is None for found in places)  # a run's last files come after its metrics
    if idle and len(evaluated) == len(keys) == 2 and not sources.read_only and (suites := suites_of(sources)):
        page |= {"suites": list(suites), "gate": gate_command(sources, keys, next(iter(suites))).line}
    return page | (live(request, sources) if request.query_params.get("paired") == "yes" else {})


def _names(places: list[str]) -> list[str]:
    """The last part of each place, where that tells them apart."""
    short = [path.rpartition("/")[2] for path in places]
    return short if len(set(short)) == len(short) else places


def live(request: Request, sources: Sources) -> dict[str, Any]:
    """The paired differences of each run with the first one, on the rows that all were evaluated on."""
    found = [sources.find("run", key) for key in dict.fromkeys(request.query_params.getlist("run"))]
    lines = [line for match in found if (line := run_line(sources, match)).metrics]
    names = dict(zip([str(line.path) for line in lines], _names([line.place for line in lines]), strict=True))

    def compared(_: object) -> dict[str, Any]:
        try:
            evaluations, comparisons = paired_with_first({name: load_evaluation(name) for name in names})
        except UserError as error:
            return {"pairs": [], "problem": error.what}
        main = next(iter(evaluations.values())).primary
        first = sorted(comparisons, key=lambda pair: pair.metric != main)
        return {"pairs": [_line(pair, names) for pair in first], "problem": ""}

    stamp = tuple((match.key, match.changed) for match in found)
    return sources.index.facts("paired", found[0], stamp, compared)


def gate_command(sources: Sources, keys: list[str], suite: str) -> RunCommand:
    """The command that says whether the second of two runs may replace the first. Raises UserError: no such suite."""
    file = suites_of(sources).get(suite)
    if file is None or len(keys) != 2:
        raise UserError("There is no such suite, or not two runs", where=suite[:80], next_step="load the page again")
    first, second = (sources.find("run", key).path for key in keys)
    folder = sources.index.folders[0].resolve()
    paths = [os.path.relpath(path, folder) for path in (second, first, file.resolve())]
    return RunCommand(("gate", paths[0], "--against", paths[1], "--suite", paths[2]), folder, second)


def act(request: Request, sources: Sources, form: dict[str, str]) -> str:
    """Apply a suite to the second run, in the background; returns the address of its page."""
    keys = list(dict.fromkeys(request.query_params.getlist("run")))
    start(sources, gate_command(sources, keys, form.get("suite", "")), "gate")
    return sources.url("run", key=keys[1], said="The suite is applied: its verdict comes on this page.")


def _line(pair: Any, names: dict[str, str]) -> dict[str, str]:
    gain = Estimate(pair.delta, pair.low, pair.high)
    return {
        "a": names[pair.a], "b": names[pair.b], "metric": pair.metric, "gain": signed(pair.delta, pair.metric),
        "bounds": gain_interval(gain, pair.metric), "p": w.p_value(w.number(pair.p)), "verdict": pair.verdict,
    }  # fmt: skip
