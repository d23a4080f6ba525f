"""`tuneloop gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from tuneloop.cli.answers import EXITS
from tuneloop.cli.console import Result
from tuneloop.cli.parameters import argument, screen
from tuneloop.core.flag import flag, switch

FIRST_SUITE = "suite.yaml"
SIGNS = {"pass": "pass", "fail": "FAIL", "inconclusive": "?   "}


def command(
    candidate: str = argument("CANDIDATE", "The run or evaluation to release; with --init a run or data set.", ""),
    against: str = flag("", "BASE", "The run or evaluation in use; FOLDER:NAME is a baseline in it.", "-a"),
    suite: str = flag("", "FILE", "What must hold: a YAML file. With --init, where it is written.", "-s"),
    margin: float = flag(0.0, "POINTS", "In place of a suite: not worse by more than so many points.", least=0),
    init: bool = switch("Write a first suite, made from a run or prepared data set, for you to edit."),
    out: str = flag("", "FOLDER", "Folder for gate.json; default: the candidate's.", "-o"),
    no_model: bool = switch("Ask the model nothing: judge by the stored answers alone."),
) -> Result:
    """Decide whether a candidate may replace the model in use.

    By a suite of demands, or by a margin: that the metric which decides is not worse by more than so many points (100
    points: the best value) must be shown, and no other headline metric and no slice of the rows may refute it.

    Exit status 0: pass; 1: fail; 3: not enough evidence.
    """
    if init:
        return _init(candidate, against, suite or FIRST_SUITE)
    for value, option in ((candidate, "CANDIDATE"), (against, "--against BASE"), (suite, "--suite FILE")):
        if not value and not (margin and option.startswith("--suite")):
            hint = "; `tuneloop gate --init RUN` writes a first suite" if option.startswith("--suite") else ""
            raise typer.BadParameter(f"{option} is missing{hint}")
    if margin and suite:
        raise typer.BadParameter("--suite or --margin: a suite has its own margins")
    from tuneloop.evaluation.gate import apply_suite, load_suite
    from tuneloop.pipeline import answers_of
    from tuneloop.registry import evaluation_place

    demands = margin or load_suite(suite)
    with screen("applying the suite"):
        result, path = apply_suite(
            evaluation_place(candidate),
            evaluation_place(against),
            demands,
            out=out,
            model_of=lambda folder: None if no_model else answers_of(folder),
            columns_of=_columns,
        )
    lines = [f"{SIGNS[check.status]}  {check.message}" for check in result.checks]
    lines.append(f"gate: {result.status}" + (f"  ({path})" if path else ""))
    return Result({**result.to_json(), "path": str(path) if path else None}, lines, EXITS[result.status])


def _init(target: str, against: str, suite: str) -> Result:
    from tuneloop.evaluation.gate import write_first_suite

    if not target or against:
        raise typer.BadParameter("--init takes one run or data set, and no --against")
    path = write_first_suite(target, suite)
    lines = [
        f"suite     {path}: read it, put in the rows that matter most",
        f"next      tuneloop gate NEW_RUN --against {target} --suite {path}",
    ]
    return Result({"path": str(path)}, lines)


def _columns(run: Path) -> dict[str, dict[str, Any]]:
    from tuneloop.data import load_dataset

    if not (run / "dataset" / "dataset.json").is_file():
        return {}
    dataset = load_dataset(run / "dataset")
    return {row.id: row.meta for split in (dataset.test, dataset.val) for row in split}
