"""Several evaluations of the same rows compared, those of other tools too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data import PrepareConfig, load_dataset, read_whole
from tuneloop.evaluation import ScoredAnswers, compare_folders, sample_rows
from tuneloop.evaluation.foreign import Power, Refereeing, TaskRows, compare_tools, is_foreign, power_alone, read_all
from tuneloop.recipe import name_of
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.rows import generous_limit
from tuneloop.registry import evaluation_place
from tuneloop.report import write_page


def compare_evaluations(
    places: Sequence[str],
    out: str = "",
    *,
    judge: Callable[[Mapping[str, ScoredAnswers]], Mapping[str, Any]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> Path:
    """Compare evaluations of the same rows, paired, with the first; write `eval.json`, `samples.jsonl` and the page.

    Args:
        places: folders with `eval.json`, or `FOLDER:NAME`.
        out: folder, which is returned; default: `evals/compare-...`.
        judge: further parts of `eval.json` from the evaluations.
        folders: where a place's evaluation is, if not there (`evaluate_files`).

    Raises:
        UserError: fewer than 20 rows are shared, or an evaluation can't be read.
    """
    if len(places) < 2:
        raise UserError("Two evaluations are needed", next_step="tuneloop compare A B")
    _refuse_repeated(places)
    folder = _folder_of(places, out)
    at = {path: (folders or {}).get(path) or evaluation_place(path) for path in places}
    compare_folders(at, folder, judge=judge, page=write_page)
    return folder


def compare_foreign(places: Sequence[str], out: str = "", how: Refereeing = Refereeing()) -> Path | Power:
    """Compare evaluations, some of other tools, with the first, and write them as `compare_evaluations` does; of one
    alone: what it could show of a second system on its items.

    Raises:
        UserError: one can't be read, or too little is shared.
    """
    _refuse_repeated(places)
    evaluations = read_all({path: path if is_foreign(path) else evaluation_place(path) for path in places})
    if len(evaluations) == 1:
        return power_alone(evaluations[0], how)
    systems = [evaluation.place for evaluation in evaluations]
    _refuse_repeated(systems)
    folder = _folder_of(systems, out)
    compare_tools(evaluations, folder, how, page=write_page)
    return folder


def _refuse_repeated(places: Sequence[str]) -> None:
    if len(set(places)) < len(places):
        raise UserError("The same evaluation is named twice", where=places[0], next_step="tuneloop compare A B")


def _folder_of(places: Sequence[str], out: str) -> Path:
    return Path(out) if out else Path("evals") / ("compare-" + "-".join(map(name_of, places)))[:120]


def task_rows(path: str, split: str, model: str, url: str) -> TaskRows:
    """The rows of a prepared data set's split, or of a file, for a task of another tool; a limit for answers as
    `evaluate` sets it for an endpoint. Personal data of a file is replaced. Raises UserError: no such rows."""
    if (Path(path) / MANIFEST).is_file() or Path(path).name == MANIFEST:
        dataset = load_dataset(path)
        rows = list({"train": dataset.train, "val": dataset.val, "test": dataset.test}.get(split, []))
        labels, name = dataset.manifest.labels if dataset.task == "classification" else None, dataset.manifest.name
    else:
        whole = read_whole(path, PrepareConfig(), redact=True)
        rows, name = whole.rows, name_of(path)
        labels = sorted({str(row.label) for row in rows}) if whole.task == "classification" else None
    rows = sample_rows(rows, None, seed=0)
    return TaskRows(name, rows, labels, generous_limit(rows) if rows else 0, model, url)
