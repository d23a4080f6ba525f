"""Runs beside each other on the page of a comparison: the settings in which they differ, and their losses in one chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneloop.report.charts import chart_pair
from tuneloop.report.curves import MOST_RUNS, Curve, overlay_chart, points_of
from tuneloop.report.facts import RunFacts, read_run, section
from tuneloop.report.settings import differing_settings
from tuneloop.types import UserError


def compared_part(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """`differ` and `overlay` of the runs that a comparison names (`runs`: contender -> folder) and that are still there."""
    runs = {str(name): found for name, folder in section(evaluation.get("runs")).items() if (found := _read(folder))}
    if len(runs) < 2:
        return {"differ": {}, "overlay": {}}
    curves = [
        Curve(name, points_of(facts.steps, "loss"), points_of(facts.validations, "val_loss"))
        for name, facts in runs.items()
    ]
    drawn = [c for c in curves if c.train or c.val]
    configs = [facts.config for facts in runs.values()]
    return {
        "differ": {"names": list(runs), "rows": differing_settings(configs)} if all(configs) else {},
        "overlay": {"chart": chart_pair(overlay_chart, drawn), "left_out": [c.name for c in drawn[MOST_RUNS:]]}
        if len(drawn) > 1
        else {},
    }


def _read(folder: object) -> RunFacts | None:
    try:
        return read_run(Path(str(folder)))
    except UserError:  # moved or deleted since
        return None
