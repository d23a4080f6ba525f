"""`tuneloop gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen

SIGNS = {"pass": "pass", "fail": "FAIL", "inconclusive": "?   "}


def command(
    candidate: str = typer.Argument(..., help="The run or evaluation that wants to be released.", metavar="CANDIDATE"),
    against: str = typer.Option(
        ..., "--against", "-a", help="The run or evaluation in use; FOLDER:NAME is a baseline in it.", metavar="BASE"
    ),
    suite: str = typer.Option(..., "--suite", "-s", help="What must hold: a YAML file.", metavar="FILE"),
    out: str = typer.Option("", "--out", "-o", help="Folder for gate.json; default: the candidate's."),
    no_model: bool = typer.Option(False, "--no-model", help="Ask nothing anew: judge by the stored answers alone."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """May the candidate replace the base? Exit status 0: pass; 1: fail; 3: not enough evidence."""
    from tuneloop.evaluate.gate import EXIT, read_side, run_gate, write_gate
    from tuneloop.evaluate.suite import load_suite
    from tuneloop.pipeline.evaluate import answers_of

    wanted = load_suite(suite)
    with screen(quiet) as shown:
        sides = read_side(candidate), read_side(against)
        folder = sides[0].folder
        ask = None if no_model or sides[0].baseline else answers_of(folder, progress=shown.progress, say=shown.say)
        outcome = run_gate(wanted, *sides, ask=ask, fields=_columns(folder))
    # What is said of a baseline in a folder is not said of the run that the folder belongs to.
    place = Path(out) if out else None if sides[0].baseline else folder
    path = write_gate(place, outcome) if place else None
    if as_json:
        print_json({**outcome, "path": str(path) if path else None})
    else:
        for check in outcome["checks"]:
            print(f"{SIGNS[check.status]}  {check.message}")
        print(f"gate: {outcome['status']}" + (f"  ({path})" if path else ""))
    raise typer.Exit(EXIT[outcome["status"]])


def _columns(run: Path) -> dict[str, dict[str, Any]]:
    """Row id -> columns of the run's data set, for slices."""
    from tuneloop.data.dataset import load_dataset

    if not (run / "dataset" / "dataset.json").is_file():
        return {}
    dataset = load_dataset(run / "dataset")
    return {row.id: row.meta for split in (dataset.test, dataset.val) for row in split}
