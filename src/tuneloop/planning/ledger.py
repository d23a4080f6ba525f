"""What was predicted and what came: a line for each finished run, kept next to the model cache, and what it teaches.

Machines differ in ways that no formula knows. The ratio of the actual to the predicted value, in the middle of a
machine's earlier runs with the same model and method, corrects the next prediction there: of time, and of what memory
grows by beyond what is resident already. The ratio of the reached speed to the formulas' corrects the planner's table
for the same machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder
from tuneloop.core.foreign import parse_line
from tuneloop.core.units import counted
from tuneloop.planning.catalogue.gpus import CPU, find_gpu
from tuneloop.planning.job import TrainingSetup
from tuneloop.planning.speed import Speed, speed_of

AGAIN = 3  # disturbed runs in a row from which this is how the machine is
ENOUGH = 2  # earlier runs from which a correction is taken
LAST = 20  # runs that count
LEAST, MOST = 0.5, 2.0  # a larger correction would hide a fault
FORMULAS = 6  # raised with every change of the memory or time model: errors of other formulas teach nothing
RESIDENT = "weights and program (resident)"  # the term that is measured, not predicted


@dataclass(frozen=True)
class Entry:
    """A finished run: numbers as the formulas gave them, before any correction, and as they came."""

    date: str
    machine: str
    model: str
    method: str
    predicted_gib: float
    actual_gib: float
    predicted_minutes: float | None  # None where the run ended early, so that its time says nothing
    actual_minutes: float | None
    resident_gib: float = 0.0
    formulas: int = 1
    speed_ratio: float | None = None  # tokens a second over those of the formulas in `planning/speed.py`
    disturbed: bool = False  # by something else on the machine: it says nothing of time and speed


def ledger_file() -> Path:
    """The ledger's file: `TUNELOOP_LEDGER`, else next to the cached models."""
    return Path(os.environ.get("TUNELOOP_LEDGER") or cache_folder() / "plan-ledger.jsonl")


def read_ledger() -> list[Entry]:
    """All entries, the oldest first; lines that can't be read, as of a write that was cut, are passed over."""
    try:
        lines = ledger_file().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            entries.append(Entry(**parse_line(line)))
    return entries


def record_run(
    plan: Mapping[str, Any],
    actual_gib: float,
    actual_minutes: float | None,
    tokens_per_second: float | None = None,
    *,
    disturbed: bool = False,
) -> None:
    """Add a finished run; a ledger that can't be written is no reason to fail. `disturbed`: the machine was busy with
    something else. Its time and speed teach nothing, unless the last runs like it were disturbed as well: then the
    machine has become slower."""
    kind = (plan["gpu"], plan["model"], plan["method"])
    before = [e.disturbed for e in read_ledger() if (e.machine, e.model, e.method) == kind][-AGAIN:]
    if disturbed and before != [True] * AGAIN:
        actual_minutes = tokens_per_second = None
    raw, memory = plan.get("corrected_by", {}), plan["memory"]
    gib, resident = raw.get("peak_gib", memory["peak_gib"]), memory["terms"].get(RESIDENT, 0.0)
    minutes = raw.get("hours", plan["time"]["hours"]) * 60 if actual_minutes else None
    formulas = plan.get("by_formula", {}).get("tokens_per_second")
    ratio = tokens_per_second / formulas if tokens_per_second and formulas else None
    date = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Entry(date, *kind, gib, actual_gib, minutes, actual_minutes, resident, FORMULAS, ratio, disturbed)
    with contextlib.suppress(OSError):
        ledger_file().parent.mkdir(parents=True, exist_ok=True)
        with ledger_file().open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")


def corrected(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan with what earlier runs of this model and method on this machine teach; unchanged while there are too
    few. `corrected_by` holds the factors, and the peak and hours as the formulas gave them."""
    mine = _alike(plan)[-LAST:]
    memory = _factor([(e.predicted_gib - e.resident_gib, e.actual_gib - e.resident_gib) for e in mine])
    time = _factor([(e.predicted_minutes or 0.0, e.actual_minutes or 0.0) for e in mine])
    if memory == time == 1.0:
        return plan
    correction = (plan["memory"]["peak_gib"] - plan["memory"]["terms"].get(RESIDENT, 0.0)) * (memory - 1)
    peak = plan["memory"]["peak_gib"] + correction
    terms = {**plan["memory"]["terms"], "learned from earlier runs": round(correction, 4)}
    sure = dict(plan.get("certainty") or {})
    sure |= {key: round(sure[key] + correction, 2) for key in ("required_low_gib", "required_high_gib") if key in sure}
    scaled = {key: plan["time"][key] * time for key in ("hours", "low", "high")}
    runs = f"corrected by {len(mine)} earlier runs here (tuneloop plan --history)"
    return {
        **plan,
        "fits": peak < 0.95 * plan["memory"]["capacity_gib"],
        "memory": {**plan["memory"], "peak_gib": round(peak, 3), "terms": terms},
        "certainty": sure or None,
        "time": {**plan["time"], **scaled},
        "cost": {**plan["cost"], **{key: plan["cost"][key] * time for key in ("usd", "low", "high")}},
        "corrected_by": {"memory": memory, "time": time, "peak_gib": plan["memory"]["peak_gib"],
                         "hours": plan["time"]["hours"]},
        "assumptions": [*plan["assumptions"], f"{runs}: growth of memory x {memory:.2f}, time x {time:.2f}"],
    }  # fmt: skip


def usual_speed(plan: Mapping[str, Any]) -> float | None:
    """Tokens a second that such earlier runs had on jobs like this one; None where there are none."""
    mine = [e.speed_ratio for e in _alike(plan) if e.speed_ratio]
    formulas = plan.get("by_formula", {}).get("tokens_per_second")
    return statistics.median(mine[-LAST:]) * formulas if mine and formulas else None


def _alike(plan: Mapping[str, Any]) -> list[Entry]:
    """Runs of the plan's model and method on its machine, predicted by today's formulas."""
    kind = (plan["gpu"], plan["model"], plan["method"], FORMULAS)
    return [e for e in read_ledger() if (e.machine, e.model, e.method, e.formulas) == kind]


def _factor(pairs: Sequence[tuple[float, float]]) -> float:
    ratios = [actual / predicted for predicted, actual in pairs if predicted > 0 and actual > 0]
    if len(ratios) < ENOUGH:
        return 1.0
    return min(max(math.exp(statistics.median(map(math.log, ratios))), LEAST), MOST)


def learned_speed(job: TrainingSetup, ledger: Sequence[Entry]) -> tuple[Speed, str]:
    """The job's speed, corrected by runs on the same machine: of its model and method, else of its method, else of any;
    and in words which runs these are, or nothing."""

    def is_here(machine: str) -> bool:
        if job.gpu.is_cpu or machine.startswith(CPU):
            return machine == job.gpu.name
        with contextlib.suppress(UserError):
            return find_gpu(machine).key == job.gpu.key
        return False

    speed = speed_of(job)
    here = [e for e in ledger if e.speed_ratio and e.formulas == FORMULAS and is_here(e.machine)]
    alike = [e for e in here if e.method == job.method]
    mine = ([e for e in alike if e.model == job.model] or alike or here)[-LAST:]
    if not mine:
        return speed, ""
    ratio, runs = statistics.median(e.speed_ratio for e in mine if e.speed_ratio), counted(len(mine), "run")
    text = f"speed of {runs} on {job.gpu.name}: x {ratio:.2f} what formulas say (tuneloop plan --history)"
    return replace(speed, tokens_per_second=speed.tokens_per_second * ratio, share=speed.share * ratio), text


def history() -> dict[str, Any]:
    """The entries and the errors of today's formulas, as `tuneloop plan --history --json` prints them."""
    ledger = read_ledger()
    today = [e for e in ledger if e.formulas == FORMULAS]
    memory = [e.predicted_gib / e.actual_gib - 1 for e in today if e.actual_gib > 0]
    time = [e.predicted_minutes / e.actual_minutes - 1 for e in today if e.predicted_minutes and e.actual_minutes]
    runs = [asdict(e) for e in ledger]
    return {"version": 1, "file": str(ledger_file()), "runs": runs, "memory": _errors(memory), "time": _errors(time)}


def _errors(errors: Sequence[float]) -> dict[str, Any]:
    if not errors:
        return {"runs": 0, "median_error": None, "worst_error": None}
    worst = max(errors, key=abs)
    return {"runs": len(errors), "median_error": statistics.median(map(abs, errors)), "worst_error": worst}
