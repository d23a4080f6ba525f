"""The last lines of the demo: what came of it, what it cost, how to ask the model, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.units import counted
from tuneloop.pipeline.demo.files import FOLDER
from tuneloop.records.evaluation import Estimate, EvaluationManifest
from tuneloop.records.record import read_record
from tuneloop.report import print_closing

if TYPE_CHECKING:
    from rich.console import Console

_RIGHT = ".exact_match"  # share of rows in which a field is right


def print_demo(run: Path, console: Console, verbose: bool = False) -> None:
    """How the demo ended, then how to ask its model and what to do with one's own data."""
    print_closing(run, console, verbose)
    lines = [
        *field_lines(read_record(EvaluationManifest, run)),
        f"Ask it    tuneloop predict {shlex.quote(str(run))} {FOLDER}/new.jsonl --out cards.jsonl",
        "Your own  tuneloop init FILE.jsonl, then tuneloop run recipe.yaml",
    ]
    console.print()
    for line in lines:
        console.print(line, soft_wrap=True)


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
    text = f"A cheap alternative has more right in {', '.join(ahead)}." if ahead else "No alternative is ahead in any."
    return [line, text]


def _shares(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    return {name.removesuffix(_RIGHT): m.value for name, m in metrics.items() if name.endswith(_RIGHT)}
