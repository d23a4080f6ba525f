"""The last lines of the demo: what came of it, what it cost, how to ask the model, what to do next."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.units import counted
from tuneloop.pipeline.demo import FOLDER
from tuneloop.records.evaluation import Estimate, EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest, TimeChoices
from tuneloop.report.facts import verdict_line
from tuneloop.report.terminal import print_closing

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
MOST_LINES = 12
_RIGHT = ".exact_match"  # share of rows in which a field is right


def print_demo(run: Path, console: Console) -> None:
    """The report of a run, then the few lines that matter."""
    print_closing(run, console)
    console.print()
    for line in closing_lines(run):
        console.print(line, soft_wrap=True)


def closing_lines(run: Path) -> list[str]:
    """At most `MOST_LINES` lines on a finished demo."""
    evaluation, manifest = read_record(EvaluationManifest, run), read_record(RunManifest, run)
    choices = run / TimeChoices.file
    whole = read_record(TimeChoices, run).took_minutes if choices.is_file() else None
    place = shlex.quote(str(run))
    rest = [
        *field_lines(evaluation),
        _cost_line(manifest, whole),
        f"Report    {run / 'report.html'}",
        f"Ask it    tuneloop predict {place} {FOLDER}/new.jsonl --out cards.jsonl",
        "Your own  tuneloop init FILE.jsonl, then tuneloop run recipe.yaml",
    ]
    verdict = textwrap.wrap(verdict_line(evaluation), WIDTH) or ["Nothing was evaluated."]
    return [*textwrap_to(verdict, MOST_LINES - len(rest)), *rest]


def textwrap_to(lines: list[str], most: int) -> list[str]:
    """The first lines, the last of them with an ellipsis where there are more."""
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: WIDTH - 1]}…"]


def field_lines(evaluation: EvaluationManifest) -> list[str]:
    """How often each field is right, and in which a cheap alternative has more of them right; at most two lines."""
    tuned = _shares(evaluation.metrics)
    if not tuned:
        return []
    line = f"Fields right on {counted(evaluation.n, 'test row')}: "
    line += ", ".join(f"{field} {100 * share:.0f} %" for field, share in tuned.items())
    ahead = []
    for field, share in tuned.items():
        others = {name: _shares(metrics).get(field, 0.0) for name, metrics in evaluation.baselines.items()}
        name = max(others, key=others.__getitem__, default="")
        if name and others[name] > share:
            ahead.append(f"{field} ({name}: {100 * others[name]:.0f} %)")
    words = f"A cheap alternative has more right in {', '.join(ahead)}." if ahead else "No alternative is ahead in any."
    return [line, words]


def _shares(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    return {name.removesuffix(_RIGHT): m.value for name, m in metrics.items() if name.endswith(_RIGHT)}


def _cost_line(run: RunManifest, whole: float | None) -> str:
    total = f"{whole:.1f} minutes in all, " if whole else ""
    usd = f"${run.usd:.3f}" if run.usd else "nothing"
    return f"Cost      {total}{run.seconds / 60:.1f} of training, which cost {usd}"
