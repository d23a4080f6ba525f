"""Several evaluations of the same rows compared, those of other tools too; and a first suite for the gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder, write_text
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.data.config import PrepareConfig
from tuneloop.data.dataset import load_dataset
from tuneloop.data.load_eval_file import read_whole
from tuneloop.evaluation.constants import MAJORITY
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_by, on_shared_rows, sample_rows, shared_words
from tuneloop.evaluation.foreign.align import Power, Refereeing, as_scored, of_ours, power_of, with_absent
from tuneloop.evaluation.foreign.read import is_foreign, read_foreign
from tuneloop.evaluation.foreign.record import ForeignEvaluation
from tuneloop.evaluation.foreign.tasks import TaskRows
from tuneloop.evaluation.metrics import lower_is_better
from tuneloop.evaluation.suite import SuiteSource, first_suite, load_suite
from tuneloop.pipeline.answers import generous_limit
from tuneloop.recipe import name_of
from tuneloop.records.dataset import MANIFEST
from tuneloop.records.evaluation import Comparison, EvaluationManifest, Subject, split_place
from tuneloop.records.record import read_record
from tuneloop.registry import evaluation_place
from tuneloop.report.html import write_page


@dataclass(frozen=True)
class ComparedEvaluations:
    """Evaluations of the same rows, compared."""

    folder: Path  # with `eval.json`
    evaluations: dict[str, ScoredAnswers]  # by their names; the others are compared with the first one
    comparisons: list[Comparison]  # of the first (a) with each other one (b), adjusted together


def load_systems(places: Sequence[str], folders: Mapping[str, str] | None = None) -> dict[str, ScoredAnswers]:
    """Evaluations by place: a folder with `eval.json` (or its folder in `folders`); `FOLDER:NAME` is a baseline in it.

    Raises:
        UserError: fewer than two, one named twice, or one that is not there.
    """
    from tuneloop.evaluation.results import load_evaluation

    if len(places) < 2:
        raise UserError("Two evaluations are needed", next_step="tuneloop compare A B")
    at = {place: split_place((folders or {}).get(place) or evaluation_place(place)) for place in places}
    loaded = {place: load_evaluation(folder, system or None) for place, (folder, system) in at.items()}
    if len(loaded) < len(places):
        raise UserError("The same evaluation is named twice", where=places[0], next_step="tuneloop compare A B")
    return loaded


def notes_of(manifest: EvaluationManifest, system: str = "") -> list[str]:
    """What an evaluation notes of one of its systems; empty: of the one that it is about."""
    if system and system != manifest.name:
        begin = f"{system}: "
        return [note.removeprefix(begin) for note in manifest.notes if note.startswith(begin)]
    others = tuple(f"{name}: " for name in manifest.baselines)
    return [note for note in manifest.notes if not note.startswith(others)]


def paired_with_first(systems: Mapping[str, ScoredAnswers]) -> tuple[dict[str, ScoredAnswers], list[Comparison]]:
    """Evaluations on the rows that all of them share, and each other one compared with the first, adjusted together.

    Raises:
        UserError: fewer than 20 rows are shared.
    """
    from tuneloop.evaluation.compare import adjusted, compare

    loaded = dict(systems)
    if (shared := on_shared_rows(loaded)) is not None:
        words = shared_words(loaded, shared)
        say(words)
        loaded = {place: replace(e, notes=[words, *loaded[place].notes]) for place, e in shared.items()}
    first, *others = loaded
    loaded = decided_by(loaded[first].primary, loaded)
    pairs = [c for other in others for c in compare(first, loaded[first], other, loaded[other])]
    return loaded, adjusted(pairs, loaded[first])


def compare_evaluations(
    places: Sequence[str],
    out: str = "",
    *,
    judge: Callable[[Mapping[str, ScoredAnswers]], Mapping[str, Any]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> ComparedEvaluations:
    """Compare evaluations of the same rows, paired, with the first; write `eval.json`, `samples.jsonl` and the page.

    Args:
        places: folders with `eval.json`, or `FOLDER:NAME`.
        out: folder; default: `evals/compare-...`.
        judge: further parts of `eval.json` from the evaluations.
        folders: where a place's evaluation is, if not there (`evaluate_files`).

    Raises:
        UserError: fewer than 20 rows are shared, or an evaluation can't be read.
    """
    from tuneloop.evaluation.compare import adjusted
    from tuneloop.evaluation.leaderboard import leaderboard
    from tuneloop.evaluation.results import ComparedWith, write_evaluation

    loaded, folders = load_systems(places, folders), folders or {}
    at = {place: split_place(folders.get(place) or evaluation_place(place)) for place in places}
    manifests = {place: read_record(EvaluationManifest, folder) for place, (folder, _) in at.items()}
    for place, (_, system) in at.items():  # what was found out when the answers came is not in the answers
        notes = loaded[place].notes
        notes[:0] = [note for note in notes_of(manifests[place], system) if note not in notes]
    loaded, comparisons = paired_with_first(loaded)
    others = places[1:]
    constant, behind = _constant_ahead(loaded, manifests, at)
    comparisons = adjusted([*comparisons, *behind], loaded[places[0]]) if behind else comparisons
    names = {place: at[place][1] or manifests[place].name for place in places}
    costs = {
        place: _cost_share(cost.to_json(), loaded[place].n / manifests[place].n)
        for place in places
        if (cost := manifests[place].costs.get(names[place])) is not None
    }
    folder = Path(out) if out else Path("evals") / ("compare-" + "-".join(name_of(place) for place in places))[:120]
    runs = {
        place: str(run.resolve())
        for place, (run, name) in at.items()
        if not name and not folders.get(place) and (run / "metrics.jsonl").is_file()
    }
    last, manifest = others[-1], manifests[others[-1]]
    with lock_folder(folder):
        tuned = [place for place in places if names[place] == "tuned"]
        entries = leaderboard({**loaded, **constant}, costs, tuned=tuned, comparisons=comparisons)
        more = {"costs": costs, "leaderboard": entries, "runs": runs}
        subject = Subject(manifest.model, manifest.dataset, manifest.split, last, content_hash(list(places)))
        systems = {**{n: e for n, e in loaded.items() if n != last}, **constant}
        rest = ComparedWith(systems, comparisons, by_slice=True)
        write_evaluation(folder, loaded[last], subject, rest, more | (dict(judge(loaded)) if judge else {}))
        write_page(folder)
    return ComparedEvaluations(folder, loaded, comparisons)


def _constant_ahead(
    loaded: Mapping[str, ScoredAnswers], manifests: Mapping[str, EvaluationManifest], at: Mapping[str, tuple[Path, str]]
) -> tuple[dict[str, ScoredAnswers], list[Comparison]]:
    """The constant answer that was chosen from the training rows, where it is ahead of a system that is compared with
    the first, and these comparisons: the better one of two systems may still be of no use."""
    from tuneloop.evaluation.compare import compare
    from tuneloop.evaluation.results import load_evaluation

    holder = next((place for place, manifest in manifests.items() if MAJORITY in manifest.baselines), None)
    if holder is None or any(MAJORITY in (manifests[place].name, name) for place, (_, name) in at.items()):
        return {}, []
    first, *others = loaded
    metric = loaded[first].primary
    stored = {first: loaded[first], MAJORITY: load_evaluation(at[holder][0], MAJORITY)}
    constant = decided_by(metric, on_shared_rows(stored) or stored)[MAJORITY]
    if constant.n < loaded[first].n or metric not in constant.metrics:
        return {}, []
    sign, value = -1 if lower_is_better(metric) else 1, constant.metrics[metric].value
    behind = [name for name in others if sign * (loaded[name].metrics[metric].value - value) < 0]
    pairs = [pair for name in behind for pair in compare(MAJORITY, constant, name, loaded[name])]
    return ({MAJORITY: constant}, pairs) if pairs else ({}, [])


def _cost_share(cost: Mapping[str, Any], share: float) -> dict[str, Any]:
    """What a share of the rows cost; what training cost stays."""
    fixed = {key for key, value in cost.items() if not isinstance(value, int | float) or key.startswith("training")}
    return {key: value if key in fixed else value * share for key, value in cost.items()}


def write_first_suite(target: str, out: str) -> Path:
    """Write a commented suite from an evaluation (of a run, or its folder), or from a data set's test rows.

    Raises:
        UserError: the target is none of these, it has no test rows, or the file `out` is there.
    """
    path, folder = Path(out), Path(target)
    if path.exists():
        raise UserError("That suite is there already", where=out, next_step="name another file with --suite FILE")
    if folder.name in ("eval.json", "dataset.json") and folder.is_file():
        folder = folder.parent
    write_text(path, first_suite(_suite_source(folder, target)))
    load_suite(path)  # what is written here must be taken by the gate
    return path


def _suite_source(folder: Path, target: str) -> SuiteSource:
    from tuneloop.evaluation.results import load_evaluation

    name, origin = folder.resolve().name, f"tuneloop gate --init {target}"
    if (folder / "eval.json").is_file():
        manifest, evaluation = read_record(EvaluationManifest, folder), load_evaluation(folder)
        cost = manifest.costs.get(manifest.name)
        forgetting = manifest.forgetting.score.value if manifest.forgetting else math.nan
        return SuiteSource(
            name=name,
            rows=evaluation.rows,
            task=evaluation.task,
            fields=evaluation.config.fields,
            evaluation=evaluation,
            forgetting=None if math.isnan(forgetting) else forgetting,
            timed=bool(cost and cost.seconds) and manifest.endpoint is None,  # no ratio to another machine
            origin=origin,
        )
    if (folder / "dataset.json").is_file():
        dataset = load_dataset(folder)
        return SuiteSource(name, [row for row in dataset.test if row.has_reference], dataset.task, origin=origin)
    if (folder / "run.json").is_file():
        step = f"tuneloop evaluate {target}"
        raise UserError("This run has not been evaluated yet", where=target, next_step=step)
    what = "A suite is made from a run, an evaluation or a prepared data set"
    raise UserError(what, where=target, next_step="name a folder with eval.json or dataset.json")


# --- evaluations of other tools -----------------------------------------------------------------------


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
