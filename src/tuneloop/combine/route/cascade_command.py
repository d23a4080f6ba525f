"""`tuneloop route cascade`: from two evaluations on the same rows to the confidence below which the larger model is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuneloop.combine.route.cascade import CascadeRows, choose_threshold, judged_cascade
from tuneloop.core.errors import UserError
from tuneloop.core.stats.tests import THAN, by_interval
from tuneloop.core.units import counted
from tuneloop.records.evaluation import EvaluationManifest, Sample
from tuneloop.records.record import read_lines, read_record, write_record
from tuneloop.records.router import CascadeRecord

SAMPLES = "samples.jsonl"
FEWEST = 20  # rows of each half


def cascade_of(small: str, large: str, costs: tuple[float, float], out: Path, max_cost: float = 0.0) -> CascadeRecord:
    """Choose and judge a cascade, and write `cascade.json`.

    Args:
        small, large: folders of evaluations of the same rows.
        costs: of an answer of each.
        max_cost: most mean cost of an answer; 0: no limit.

    Raises:
        UserError: no evaluation there, hardly a row in both, no confidence, an impossible cost.
    """
    if costs[0] < 0 or costs[1] <= costs[0]:
        raise UserError(
            f"The large model must cost more than the small one: {costs[0]:g} and {costs[1]:g}", where="--cost",
            next_step="a small model that costs as much is never asked first; give --cost SMALL,LARGE",
        )  # fmt: skip
    if 0 < max_cost < costs[0]:
        raise UserError(
            f"No answer costs as little as {max_cost:g}: the small model's costs {costs[0]:g}", where="--max-cost",
            next_step="raise it",
        )  # fmt: skip
    metric = read_record(EvaluationManifest, Path(small)).primary
    first, second = _samples(small), _samples(large)
    shared = sorted(first.keys() & second.keys())
    if any(first[i].reference != second[i].reference for i in shared) or len(shared) < 2 * FEWEST:
        raise UserError(
            f"The evaluations share {counted(len(shared), 'row')}, and {2 * FEWEST} or more are needed", where=f"{small}, {large}",
            next_step="evaluate both models on the same split: tuneloop evaluate MODEL --dataset DATASET",
        )  # fmt: skip
    unknown = sum(first[i].confidence is None for i in shared)
    if unknown:
        raise UserError(
            f"Of {unknown} of {counted(len(shared), 'answer')} the small model's confidence is not known", where=small,
            next_step="it is known of labels that are scored; evaluate with evaluate.answer=choice",
        )  # fmt: skip
    rows = CascadeRows(
        np.array([first[i].confidence for i in shared], dtype=np.float64),
        np.array([[worth_of(each[i], metric) for each in (first, second)] for i in shared]),
        costs,
    )
    chooses = np.array([hashlib.sha256(i.encode()).digest()[0] % 2 == 0 for i in shared])
    if min(chooses.sum(), (~chooses).sum()) < FEWEST:
        raise UserError("Too few rows for two halves", where=small, next_step="evaluate more rows")
    threshold = choose_threshold(rows.part(chooses), max_cost)
    record = judged_cascade(rows.part(~chooses), threshold, (small, large), metric)
    write_record(out, record)
    return record


def worth_of(sample: Sample, metric: str) -> float:
    """What an answer is worth, 0 to 1: whether the label is right, else the row's figure by the metric that decides.

    Raises:
        UserError: the metric has no figure for a row.
    """
    if sample.label is not None:
        return float(sample.predicted_label == sample.label)
    value = (sample.scores or {}).get(metric)
    if value is None:
        raise UserError(f"{metric} has no figure for a row", where=sample.id, next_step="evaluate by another metric")
    return min(max(float(value), 0.0), 1.0)


def _samples(folder: str) -> dict[str, Sample]:
    file = Path(folder) / SAMPLES
    if not file.is_file():
        raise UserError("There is no evaluation here", where=folder, next_step=f"tuneloop evaluate {folder}")
    return {sample.id: sample for sample in read_lines(Sample, file, "evaluate again")}


def sentences(record: CascadeRecord) -> Sequence[str]:
    """What the cascade does."""
    quality, over = record.quality, record.over_large
    said = [
        f"Below a confidence of {record.threshold:.3f} the large model is asked: {record.asked_large:.0%} of {counted(record.n, 'row')}",
        f"{record.metric} {quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}] at a mean cost of {record.cost:g}",
        *(f"  {one.name:<40} {one.quality:.3f}  cost {one.cost:g}" for one in record.singles),
        f"It is {THAN[by_interval(over.low, over.high)]} the large model alone: {over.in_words()}",
    ]
    if gap := record.gap_recovered:
        said.append(
            f"gap between the two recovered, mean over costs: {gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}] (a coin: below 0.5)"
        )
    else:
        said.append(
            "The large model is not shown to be better than the small one on these rows: there may be nothing to gain"
        )
    return said
