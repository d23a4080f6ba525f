"""Evaluations of other tools, compared: read, aligned, tested, written as `eval.json` and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import load_dataset
from tuneloop.data.load_eval_file import read_whole
from tuneloop.evaluation.evaluate import sample_rows
from tuneloop.evaluation.foreign.align import Power, Refereeing, as_scored, of_ours, power_of, with_absent
from tuneloop.evaluation.foreign.read import is_foreign, read_foreign
from tuneloop.evaluation.foreign.record import ForeignEvaluation
from tuneloop.evaluation.foreign.tasks import TaskRows
from tuneloop.pipeline.answers import generous_limit
from tuneloop.pipeline.compare import ComparedEvaluations
from tuneloop.recipe import name_of
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.evaluation import Subject, split_place
from tuneloop.registry import evaluation_place
from tuneloop.report.html import write_page


def read_all(places: Sequence[str]) -> list[ForeignEvaluation]:
    """The evaluations at these places, ours among them; a file of several systems alone gives all of them.

    Raises:
        UserError: one can't be read, is named twice, or holds several systems of which none is named.
    """
    evaluations: list[ForeignEvaluation] = []
    for place in places:
        each = read_foreign(place) if is_foreign(place) else [_ours(place)]
        if len(each) > 1 and len(places) > 1:
            step = f"name one: {', '.join(f'{place}:{e.system}' for e in each[:4])}"
            raise UserError(f"The file holds {len(each)} systems", where=place, next_step=step)
        if len(each) > 1:
            each = [ForeignEvaluation(**{**vars(e), "place": e.system}) for e in each]
        evaluations += [ForeignEvaluation(**{**vars(e), "place": place}) for e in each] if len(each) == 1 else each
    for e in evaluations:
        system = f" of {e.system}" if e.system and e.system != e.place else ""
        epochs = f", up to {e.epochs} epochs each" if e.epochs > 1 else ""
        say(f"read      {e.place}: {e.tool}{system}, {counted(len(e.items), 'item')}{epochs}")
    if len({e.place for e in evaluations}) < len(evaluations):
        raise UserError("The same evaluation is named twice", where=places[0], next_step="tuneloop compare A B")
    return evaluations


def _ours(place: str) -> ForeignEvaluation:
    from tuneloop.evaluation.results import load_evaluation

    folder, system = split_place(evaluation_place(place))
    return of_ours(place, load_evaluation(folder, system or None))


def compare_foreign(
    evaluations: Sequence[ForeignEvaluation], out: str = "", how: Refereeing = Refereeing()
) -> ComparedEvaluations:
    """Compare evaluations, some of other tools, with the first; write `eval.json`, `samples.jsonl` and the page.

    Args:
        out: folder; default: `evals/compare-...`.

    Raises:
        UserError: too little is shared; see `as_scored`.
    """
    from tuneloop.evaluation.compare import adjusted, compare
    from tuneloop.evaluation.results import ComparedWith, write_evaluation

    scored = as_scored(evaluations, how)
    first, *others = scored
    pairs = [c for other in others for c in compare(first, scored[first], other, scored[other])]
    pairs = [with_absent(pair, evaluations) for pair in pairs]
    comparisons, last = adjusted(pairs, scored[first]), others[-1]
    for note in scored[last].notes:
        say(f"note: {note}")
    places = [e.place for e in evaluations]
    folder = Path(out) if out else Path("evals") / ("compare-" + "-".join(map(name_of, places)))[:120]
    with lock_folder(folder):
        model = next((e.system for e in evaluations if e.place == last), "") or last
        subject = Subject(model, evaluations[0].tool, "items", last, content_hash([places, vars(how)]))
        rest = ComparedWith({n: e for n, e in scored.items() if n != last}, comparisons, by_slice=True)
        write_evaluation(folder, scored[last], subject, rest)
        write_page(folder)
    return ComparedEvaluations(folder, scored, comparisons)


def power_alone(evaluation: ForeignEvaluation, how: Refereeing = Refereeing()) -> Power:
    """What one evaluation could show of a second system on its items, before that one is run."""
    return power_of(as_scored([evaluation], how)[evaluation.place])


def task_rows(place: str, split: str, model: str, url: str) -> TaskRows:
    """The rows of a prepared data set's split, or of a file, for a task of another tool; a limit for answers as
    `evaluate` sets it for an endpoint. Personal data of a file is replaced. Raises UserError: no such rows."""
    if (Path(place) / MANIFEST).is_file() or Path(place).name == MANIFEST:
        dataset = load_dataset(place)
        rows = list({"train": dataset.train, "val": dataset.val, "test": dataset.test}.get(split, []))
        labels, name = dataset.manifest.labels if dataset.task == "classification" else None, dataset.manifest.name
    else:
        whole = read_whole(place, PrepareConfig(), redact=True)
        rows, name = whole.rows, name_of(place)
        labels = sorted({str(row.label) for row in rows}) if whole.task == "classification" else None
    rows = sample_rows(rows, None, seed=0)
    return TaskRows(name, rows, labels, generous_limit(rows) if rows else 0, model, url)
