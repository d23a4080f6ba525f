"""Evaluations by other tools, and ours among them: read, compared with the first, and written as any comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, lock_folder
from tuneloop.core.ui import say
from tuneloop.core.units import counted
from tuneloop.evaluation.foreign.align import Power, Refereeing, as_scored, of_ours, power_of, with_absent
from tuneloop.evaluation.foreign.read import is_foreign, read_foreign
from tuneloop.evaluation.foreign.record import ForeignEvaluation
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.results import ComparedWith, load_evaluation, write_evaluation
from tuneloop.records.evaluation import Subject, split_place


def read_all(places: Mapping[str, str]) -> list[ForeignEvaluation]:
    """The evaluations at these places, ours among them; a file of several systems alone gives all of them.

    Args:
        places: name -> its file or folder.

    Raises:
        UserError: one can't be read, or holds several systems of which none is named.
    """
    evaluations: list[ForeignEvaluation] = []
    for name, source in places.items():
        if is_foreign(name):
            systems = read_foreign(name)
        else:
            folder, system = split_place(source)
            systems = [of_ours(name, load_evaluation(folder, system or None))]
        if len(systems) > 1 and len(places) > 1:
            step = f"name one: {', '.join(f'{name}:{e.system}' for e in systems[:4])}"
            raise UserError(f"The file holds {len(systems)} systems", where=name, next_step=step)
        evaluations += [replace(e, place=e.system if len(systems) > 1 else name) for e in systems]
    for e in evaluations:
        system = f" of {e.system}" if e.system and e.system != e.place else ""
        epochs = f", up to {e.epochs} epochs each" if e.epochs > 1 else ""
        say(f"read      {e.place}: {e.tool}{system}, {counted(len(e.items), 'item')}{epochs}")
    return evaluations


def compare_tools(
    evaluations: Sequence[ForeignEvaluation], out: Path, how: Refereeing, page: Callable[[Path], object]
) -> None:
    """Compare evaluations with the first; write `eval.json`, `samples.jsonl` and, by `page`, the page of the folder.

    Raises:
        UserError: too little is shared; see `as_scored`.
    """
    scored = as_scored(evaluations, how)
    first, *others = scored
    pairs = [c for other in others for c in compare(first, scored[first], other, scored[other])]
    comparisons, last = adjusted([with_absent(pair, evaluations) for pair in pairs], scored[first]), others[-1]
    for note in scored[last].notes:
        say(f"note: {note}")
    with lock_folder(out):
        model = next((e.system for e in evaluations if e.place == last), "") or last
        key = content_hash([[e.place for e in evaluations], vars(how)])
        subject = Subject(model, evaluations[0].tool, "items", last, key)
        rest = ComparedWith({n: e for n, e in scored.items() if n != last}, comparisons, by_slice=True)
        write_evaluation(out, scored[last], subject, rest)
        page(out)


def power_alone(evaluation: ForeignEvaluation, how: Refereeing) -> Power:
    """What one evaluation could show of a second system on its items, before that one is run."""
    return replace(power_of(as_scored([evaluation], how)[evaluation.place]), tool=evaluation.tool)
