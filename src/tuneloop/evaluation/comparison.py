"""Evaluations of the same rows, each compared with the first one, and all of it written as an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.evaluate import ScoredAnswers, decided_by, on_shared_rows
from tuneloop.evaluation.leaderboard import leaderboard_of
from tuneloop.evaluation.metrics.declared import lower_is_better
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.records.evaluation import Comparison, EvaluationManifest, Subject, split_place
from tuneloop.records.record import read_record


def compare_folders(
    places: Mapping[str, str],
    out: Path,
    *,
    judge: Callable[[Mapping[str, ScoredAnswers]], Mapping[str, Any]] | None = None,
    page: Callable[[Path], object],
) -> None:
    """Compare evaluations of the same rows, paired, with the first; write `eval.json`, `samples.jsonl` and the page.

    Args:
        places: name -> its folder with `eval.json`, or `FOLDER:NAME`.
        judge: further parts of `eval.json` from the evaluations.
        page: writes the page of a folder.

    Raises:
        UserError: fewer than 20 rows are shared, or an evaluation can't be read.
    """
    at = {name: split_place(source) for name, source in places.items()}
    loaded = {name: load_evaluation(folder, system or None) for name, (folder, system) in at.items()}
    manifests = {location: read_record(EvaluationManifest, folder) for location, (folder, _) in at.items()}
    for name, (_, system) in at.items():  # what was found out when the answers came is not in the answers
        notes = loaded[name].notes
        notes[:0] = [note for note in notes_of(manifests[name], system) if note not in notes]
    loaded, comparisons = paired_with_first(loaded)
    constant, behind = _constant_ahead(loaded, manifests, at)
    comparisons = adjusted([*comparisons, *behind], next(iter(loaded.values()))) if behind else comparisons
    names = {location: at[location][1] or manifests[location].name for location in places}
    costs = {
        location: _cost_share(cost.to_json(), loaded[location].n / manifests[location].n)
        for location in places
        if (cost := manifests[location].costs.get(names[location])) is not None
    }
    runs = {
        key: str(run.resolve()) for key, (run, name) in at.items() if not name and (run / "metrics.jsonl").is_file()
    }
    last, manifest = next(reversed(manifests.items()))
    with lock_folder(out):
        tuned = [location for location in places if names[location] == "tuned"]
        entries = leaderboard_of({**loaded, **constant}, costs, tuned=tuned, comparisons=comparisons)
        more = {"costs": costs, "leaderboard": entries, "runs": runs}
        subject = Subject(manifest.model, manifest.dataset, manifest.split, last, content_hash(list(places)))
        systems = {**{n: e for n, e in loaded.items() if n != last}, **constant}
        rest = ComparedWith(systems, comparisons, by_slice=True)
        write_evaluation(out, loaded[last], subject, rest, more | (dict(judge(loaded)) if judge else {}))
        page(out)


def paired_with_first(systems: Mapping[str, ScoredAnswers]) -> tuple[dict[str, ScoredAnswers], list[Comparison]]:
    """Evaluations on the rows that all of them share, and each other one compared with the first, adjusted together.

    Raises:
        UserError: fewer than 20 rows are shared.
    """
    loaded = dict(systems)
    if (shared := on_shared_rows(loaded)) is not None:
        rows = counted(next(iter(shared.values())).n, "row")
        counts = ", ".join(f"{name}: {evaluation.n:,}" for name, evaluation in loaded.items())
        note = f"Compared on the {rows} that all of them answered ({counts})."
        say(note)
        loaded = {name: replace(e, notes=[note, *loaded[name].notes]) for name, e in shared.items()}
    first, *others = loaded
    loaded = decided_by(loaded[first].primary, loaded)
    pairs = [c for other in others for c in compare(first, loaded[first], other, loaded[other])]
    return loaded, adjusted(pairs, loaded[first])


def notes_of(manifest: EvaluationManifest, system: str = "") -> list[str]:
    """What an evaluation notes of one of its systems; empty: of the one that it is about."""
    if system and system != manifest.name:
        begin = f"{system}: "
        return [note.removeprefix(begin) for note in manifest.notes if note.startswith(begin)]
    others = tuple(f"{name}: " for name in manifest.baselines)
    return [note for note in manifest.notes if not note.startswith(others)]


def _constant_ahead(
    loaded: Mapping[str, ScoredAnswers], manifests: Mapping[str, EvaluationManifest], at: Mapping[str, tuple[Path, str]]
) -> tuple[dict[str, ScoredAnswers], list[Comparison]]:
    """The constant answer that was chosen from the training rows, where it is ahead of a system that is compared with
    the first, and these comparisons: the better one of two systems may still be of no use."""
    holder = next((name for name, manifest in manifests.items() if MAJORITY in manifest.baselines), None)
    if holder is None or any(MAJORITY in (manifests[key].name, name) for key, (_, name) in at.items()):
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
