"""Evaluations of different rows, brought to those that all of them hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.units import counted
from tuneloop.evaluate.evaluate import Evaluation, evaluate

FEWEST = 20  # shared rows that are worth a comparison


def on_shared_rows(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation] | None:
    """All evaluations, by place, on the rows that every one of them holds; None where they hold the same rows.

    Raises:
        UserError: fewer than 20 rows are shared.
    """
    ids = {place: {row.id for row in evaluation.rows} for place, evaluation in evaluations.items()}
    shared = set.intersection(*ids.values())
    if all(own == shared for own in ids.values()):
        return None
    if len(shared) < FEWEST:
        first, other = next((a, b) for a in ids for b in ids if ids[a] != ids[b])
        raise UserError(
            f"{first} and {other} were evaluated on different rows ({len(ids[first]):,} and {len(ids[other]):,}, "
            f"{len(shared):,} shared; at least {FEWEST} are needed)",
            where=f"{first}/samples.jsonl, {other}/samples.jsonl",
            next_step="evaluate both on the same rows: tuneloop evaluate RUN --data FILE, or --dataset DATASET --split test",
        )
    return {place: some_rows(evaluation, shared) for place, evaluation in evaluations.items()}


def shared_words(before: Mapping[str, Evaluation], after: Mapping[str, Evaluation]) -> str:
    """ "Compared on the 24 rows that all of them were asked (A: 40, B: 24)." """
    counts = ", ".join(f"{place}: {evaluation.n:,}" for place, evaluation in before.items())
    return f"Compared on the {counted(next(iter(after.values())).n, 'row')} that all of them were asked ({counts})."


def some_rows(all_rows: Evaluation, ids: Collection[str]) -> Evaluation:
    """An evaluation of some of its rows, scored anew by the same settings."""
    kept = [i for i, row in enumerate(all_rows.rows) if row.id in ids]

    def some(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in kept] if values else []

    known = all_rows.measured
    return evaluate(
        some(all_rows.rows),
        some(all_rows.answers),
        task=all_rows.task,
        labels=all_rows.labels,
        config=all_rows.config,
        seed=all_rows.seed,
        measured=replace(
            known,
            further=some(known.further),
            languages=some(known.languages),
            row_scores={name: some(scores) for name, scores in known.row_scores.items()},
            complete=True,  # what needs programs, models or files is not found out again
            perplexity=None,
        ),
    )
