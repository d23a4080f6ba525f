"""`tuneloop gate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen

if TYPE_CHECKING:
    from tuneloop.types import Answer, Row

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

    wanted = load_suite(suite)
    with screen(quiet) as shown:
        sides = read_side(candidate), read_side(against)
        folder = sides[0].folder
        ask = None if no_model or sides[0].baseline else _answers_of(folder, shown)
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


def _answers_of(run: Path, shown: Any) -> Any:
    """A function that asks the run's model, loaded when it is first called; None where there is no model."""
    if not (run / "run.json").is_file():
        return None
    from tuneloop.pipeline import Job, attach_trained, load_run_recipe

    job = Job(load_run_recipe(run, []), run, shown.progress, shown.say)

    def ask(rows: Sequence[Row]) -> list[Answer]:
        from tuneloop.contenders import ask as ask_model
        from tuneloop.data.dataset import load_dataset

        own = run / "dataset"
        dataset = load_dataset(own if own.is_dir() else job.recipe.data.sources[0])
        known = {row.id: row for row in dataset.test}
        attach_trained(job)
        # A new prompt is asked under the instruction that all rows share.
        shared = {row.messages[0]["content"] for row in dataset.test if row.messages[0]["role"] == "system"}
        instruction = shared.pop() if len(shared) == 1 else ""
        whole = [known.get(row.id) or _under(row, instruction) for row in rows]
        answers: list[Answer] = ask_model(job.model, dataset, whole, job.recipe.evaluate, task="must pass")[""].answers
        return answers

    return ask


def _under(row: Row, instruction: str) -> Row:
    """The row with a system turn, unless it has one."""
    from dataclasses import replace

    if not instruction or row.messages[0]["role"] == "system":
        return row
    return replace(row, messages=[{"role": "system", "content": instruction}, *row.messages])
