"""Several evaluations of the same rows compared; files of predictions are scored on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.ui import say
from tuneloop.evaluation.config import EvalOptions
from tuneloop.evaluation.evaluate import decided_together, on_shared_rows, shared_words
from tuneloop.pipeline.evaluations import evaluate_target
from tuneloop.pipeline.recipes import name_of
from tuneloop.records.evaluation import Comparison, EvaluationManifest, Subject, split_place
from tuneloop.records.record import read_record
from tuneloop.registry.registered import evaluation_place
from tuneloop.report.html import write_page

if TYPE_CHECKING:
    from tuneloop.evaluation.evaluate import ScoredAnswers


@dataclass(frozen=True)
class Compared:
    """Evaluations of the same rows, compared.

    Args:
        folder: with `eval.json`.
        evaluations: by the names that they were given with; the others are compared with the first one.
        comparisons: of the first (a) with each other one (b), adjusted together.
    """

    folder: Path
    evaluations: dict[str, ScoredAnswers]
    comparisons: list[Comparison]


def load_systems(places: Sequence[str], folders: Mapping[str, str] | None = None) -> dict[str, ScoredAnswers]:
    """Evaluations by place; `FOLDER:NAME` picks a baseline inside one.

    Args:
        places: folders with `eval.json`.
        folders: where a place's evaluation is, if not there.

    Raises:
        UserError: fewer than two, one named twice, or one that is not there.
    """
    from tuneloop.evaluation.results import load_evaluation

    if len(places) < 2:
        raise UserError("Two evaluations are needed", next_step="tuneloop compare A B")
    loaded: dict[str, ScoredAnswers] = {}
    for place in places:
        folder, system = split_place((folders or {}).get(place) or evaluation_place(place))
        loaded[place] = load_evaluation(folder, system or None)
    if len(loaded) < len(places):
        raise UserError("The same evaluation is named twice", where=places[0], next_step="tuneloop compare A B")
    return loaded


def _per_row(cost: Mapping[str, Any], share: float) -> dict[str, Any]:
    """What a share of the rows cost; what training cost stays."""
    return {
        key: value * share if isinstance(value, int | float) and not key.startswith("training") else value
        for key, value in cost.items()
    }


def evaluate_files(places: Sequence[str], against: EvalOptions) -> dict[str, str]:
    """Score those places that are files of predictions, each in a folder of its own.

    Args:
        against: the rows: `dataset` and `split`, or `data`.

    Returns:
        File -> folder with its `eval.json`.
    """
    folders: dict[str, str] = {}
    for place in places:
        path = Path(place)
        if not path.is_file() or path.name == "eval.json":
            continue
        if not against.dataset and not against.data:
            raise UserError(
                "This is a file of predictions: against which references?",
                where=place,
                next_step="give --references FILE, or --dataset FOLDER",
            )
        name = path.stem if sum(Path(other).stem == path.stem for other in places) == 1 else name_of(place)
        folders[place] = str(
            evaluate_target("", against.model_copy(update={"predictions": place, "name": name})).folder
        )
    return folders


def notes_of(manifest: EvaluationManifest, system: str = "") -> list[str]:
    """What an evaluation notes of one of its systems; empty: of its own one."""
    if system and system != manifest.name:
        begin = f"{system}: "
        return [note.removeprefix(begin) for note in manifest.notes if note.startswith(begin)]
    others = tuple(f"{name}: " for name in manifest.baselines)
    return [note for note in manifest.notes if not note.startswith(others)]


def compare_evaluations(
    places: Sequence[str],
    out: str = "",
    *,
    judge: Callable[[Mapping[str, ScoredAnswers]], Mapping[str, Any]] | None = None,
    folders: Mapping[str, str] | None = None,
) -> Compared:
    """Compare evaluations of the same rows, paired, against the first, and write `eval.json`, `samples.jsonl` and the page.

    Args:
        places: folders with `eval.json`, or `FOLDER:NAME`.
        out: folder; default: `evals/compare-...`.
        judge: further parts of `eval.json` from the evaluations.
        folders: where a place's evaluation is, if not there (`evaluate_files`).

    Raises:
        UserError: fewer than 20 rows are shared, or an evaluation can't be read.
    """
    from tuneloop.evaluation.compare import adjusted, compare
    from tuneloop.evaluation.leaderboard import leaderboard
    from tuneloop.evaluation.results import ComparedWith, write_evaluation

    loaded = load_systems(places, folders)
    at = {place: split_place((folders or {}).get(place) or evaluation_place(place)) for place in places}
    manifests = {place: read_record(EvaluationManifest, folder) for place, (folder, _) in at.items()}
    for place, (_, system) in at.items():  # what was found out when the answers came is not in the answers
        own = loaded[place].notes
        own[:0] = [note for note in notes_of(manifests[place], system) if note not in own]
    if (shared := on_shared_rows(loaded)) is not None:
        words = shared_words(loaded, shared)
        say(words)
        loaded = {place: replace(e, notes=[words, *loaded[place].notes]) for place, e in shared.items()}
    loaded = decided_together(loaded)
    first, *others = places
    pairs = [c for other in others for c in compare(first, loaded[first], other, loaded[other])]
    comparisons = adjusted(pairs, loaded[first])
    names = {place: at[place][1] or manifests[place].name for place in places}
    costs = {
        place: _per_row(cost.to_json(), loaded[place].n / manifests[place].n)
        for place in places
        if (cost := manifests[place].costs.get(names[place])) is not None
    }
    tuned = [place for place in places if names[place] == "tuned"]
    folder = Path(out) if out else Path("evals") / ("compare-" + "-".join(name_of(place) for place in places))[:120]
    runs = {
        place: str(folder.resolve())
        for place, (folder, name) in at.items()
        if not name and not (folders or {}).get(place) and (folder / "metrics.jsonl").is_file()
    }
    last, manifest = others[-1], manifests[others[-1]]
    with lock_folder(folder):
        entries = leaderboard(loaded, costs, tuned=tuned, comparisons=comparisons)
        more = {"costs": costs, "leaderboard": entries, "runs": runs}
        subject = Subject(manifest.model, manifest.dataset, manifest.split, last, content_hash(list(places)))
        rest = ComparedWith({n: e for n, e in loaded.items() if n != last}, comparisons)
        write_evaluation(folder, loaded[last], subject, rest, more | (dict(judge(loaded)) if judge else {}))
        write_page(folder)
    return Compared(folder, loaded, comparisons)
