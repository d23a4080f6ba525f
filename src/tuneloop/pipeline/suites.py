"""A first suite for the gate, from a prepared data set or a run."""

from __future__ import annotations

import math
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_text
from tuneloop.evaluation.suite import SuiteSource, first_suite, load_suite
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.record import read_record


def write_first_suite(target: str, out: str) -> Path:
    """Write a commented suite made from a run's evaluation, or from a data set's test rows.

    Args:
        target: a run with `eval.json`, an evaluation's folder, or a prepared data set.
        out: the file, which must not exist.

    Raises:
        UserError: the target is none of these, it has no test rows, or the file is there.
    """
    path, folder = Path(out), Path(target)
    if path.exists():
        raise UserError("That suite is there already", where=out, next_step="name another file with --suite FILE")
    if folder.name in ("eval.json", "dataset.json") and folder.is_file():
        folder = folder.parent
    if (folder / "eval.json").is_file():
        known = _of_evaluation(folder, target)
    elif (folder / "dataset.json").is_file():
        known = _of_dataset(folder, target)
    else:
        begun = (folder / "run.json").is_file()
        raise UserError(
            "This run has not been evaluated yet"
            if begun
            else "A suite is made from a run, an evaluation or a prepared data set",
            where=target,
            next_step=f"tuneloop evaluate {target}" if begun else "name a folder with eval.json or dataset.json",
        )
    write_text(path, first_suite(known))
    load_suite(path)  # what is written here must be taken by the gate
    return path


def _of_evaluation(folder: Path, target: str) -> SuiteSource:
    from tuneloop.evaluation.results import load_evaluation

    manifest, evaluation = read_record(EvaluationManifest, folder), load_evaluation(folder)
    cost = manifest.costs.get(manifest.name)
    lost = manifest.forgetting.score.value if manifest.forgetting else None
    return SuiteSource(
        name=folder.resolve().name,
        rows=evaluation.rows,
        task=evaluation.task,
        fields=evaluation.config.fields,
        evaluation=evaluation,
        forgetting=lost if lost is not None and not math.isnan(lost) else None,
        timed=bool(cost and cost.seconds),
        origin=f"tuneloop gate --init {target}",
    )


def _of_dataset(folder: Path, target: str) -> SuiteSource:
    from tuneloop.data.dataset import load_dataset

    dataset = load_dataset(folder)
    rows = [row for row in dataset.test if row.has_reference]
    return SuiteSource(folder.resolve().name, rows, dataset.task, origin=f"tuneloop gate --init {target}")
