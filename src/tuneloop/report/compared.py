"""Runs side by side on the page of a comparison: the settings in which they differ, and their losses in one chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.report.charts import chart_pair
from tuneloop.report.curves import MOST_RUNS, Curve, overlay_chart, points_of
from tuneloop.report.facts import RunFacts, read_run
from tuneloop.report.settings import differing_settings


def compared_part(evaluation: EvaluationManifest) -> dict[str, Any]:
    """`differ` and `overlay` of the runs that a comparison names (`runs`: system -> folder) and that are still there."""
    runs = _runs(evaluation)
    if len(runs) < 2:
        return {"differ": {}, "overlay": {}}
    curves = [
        Curve(name, points_of(facts.steps, "loss"), points_of(facts.validations, "val_loss"))
        for name, facts in runs.items()
    ]
    drawn = [c for c in curves if c.train or c.val]
    return {
        "differ": _differ(runs),
        "overlay": {"chart": chart_pair(overlay_chart, drawn), "left_out": [c.name for c in drawn[MOST_RUNS:]]}
        if len(drawn) > 1
        else {},
    }


def settings_apart(evaluation: EvaluationManifest) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run) where the runs that a comparison names differ; empty for fewer than two runs."""
    rows: list[tuple[str, list[str]]] = _differ(_runs(evaluation)).get("rows", [])
    return rows


def _runs(evaluation: EvaluationManifest) -> dict[str, RunFacts]:
    return {name: found for name, folder in evaluation.runs.items() if (found := _read(folder))}


def _differ(runs: Mapping[str, RunFacts]) -> dict[str, Any]:
    configs = [facts.config for facts in runs.values()]
    return {"names": list(runs), "rows": differing_settings(configs)} if len(runs) > 1 and all(configs) else {}


def _read(folder: str) -> RunFacts | None:
    try:
        return read_run(folder)
    except UserError:  # moved or deleted since
        return None
