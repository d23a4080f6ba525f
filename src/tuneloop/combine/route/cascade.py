"""`tuneloop route cascade`: a small model answers first, and a larger one where the small one is unsure.

The confidence that decides is chosen on one half of the rows of two evaluations, and judged on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneloop.combine.route.router import gap_recovered, gap_with_interval, mean_interval, singles
from tuneloop.core.errors import UserError
from tuneloop.core.stats.intervals import shown_interval
from tuneloop.core.stats.tests import THAN, by_interval
from tuneloop.core.units import counted
from tuneloop.records.evaluation import EvaluationManifest, Sample
from tuneloop.records.merge import Share
from tuneloop.records.record import read_lines, read_record, write_record
from tuneloop.records.router import CascadePoint, CascadeRecord

if TYPE_CHECKING:
    from tuneloop.combine.route.router import Array

THRESHOLDS = 60  # that are tried, as quantiles of the confidences
RESAMPLES, SEED = 500, 0


@dataclass(frozen=True)
class CascadeRows:
    """Rows that both models have answered."""

    confidence: Array  # of the small model in its answer, (rows)
    quality: Array  # what the answers are worth, 0 to 1, (rows, 2): the small model's, the large one's
    costs: tuple[float, float]  # of an answer of each

    def __len__(self) -> int:
        return len(self.confidence)

    def part(self, which: Array) -> CascadeRows:
        """Some of the rows."""
        return CascadeRows(self.confidence[which], self.quality[which], self.costs)

    def below(self, threshold: float) -> Array:
        """Which rows the large model answers: those with a confidence below the threshold."""
        return np.asarray(self.confidence < threshold)

    def worth(self, threshold: float) -> Array:
        """What the cascade's answers are worth, (rows)."""
        return np.where(self.below(threshold), self.quality[:, 1], self.quality[:, 0])

    def cost(self, threshold: float) -> float:
        """Mean cost of an answer: the small model's always, the large one's where it answers too."""
        return float(self.costs[0] + self.costs[1] * self.below(threshold).mean())


def thresholds_of(rows: CascadeRows) -> list[float]:
    """Thresholds to try: from one that never uses the large model to one that always does."""
    inner = np.unique(np.quantile(rows.confidence, np.linspace(0, 1, THRESHOLDS)))
    return [float(value) for value in (*inner, np.nextafter(inner[-1], np.inf))]


def choose_threshold(rows: CascadeRows, most: float = 0.0) -> float:
    """The threshold with the best mean outcome on rows; of equals the cheapest.

    Args:
        most: largest mean cost of an answer; 0: no limit.
    """
    thresholds = [t for t in thresholds_of(rows) if not most or rows.cost(t) <= most + 1e-12]
    return max(thresholds, key=lambda t: (round(float(rows.worth(t).mean()), 9), -rows.cost(t)))


def judged_cascade(rows: CascadeRows, threshold: float, names: tuple[str, str], metric: str) -> CascadeRecord:
    """What a cascade does on rows that did not choose its threshold, next to each model and each row's best choice."""
    worth, costs = rows.worth(threshold), np.array(rows.costs)
    low, high = mean_interval(worth)
    delta = worth - rows.quality[:, 1]
    rng = np.random.default_rng(SEED)
    draws = delta[rng.integers(0, len(delta), (RESAMPLES, len(delta)))].mean(1)
    least, most = shown_interval(float(delta.mean()), draws, int((delta != 0).sum()))
    grid = thresholds_of(rows)
    points: list[CascadePoint] = []
    for t in (-np.inf, *grid):
        if not points or rows.cost(t) != points[-1].cost:
            points.append(CascadePoint(threshold=t, cost=rows.cost(t), quality=float(rows.worth(t).mean())))
    fields: dict[str, Any] = {
        "small": names[0], "large": names[1], "costs": rows.costs, "threshold": threshold, "metric": metric,
        "n": len(rows), "cost": rows.cost(threshold), "asked_large": float(rows.below(threshold).mean()),
        "singles": singles(rows.quality, costs, names), "frontier": points, "gap_recovered": _gap(rows, grid),
        "quality": Share(value=float(worth.mean()), low=low, high=high),
        "over_large": Share(value=float(delta.mean()), low=least, high=most),
    }  # fmt: skip
    return CascadeRecord(**fields)


def _gap(rows: CascadeRows, grid: list[float]) -> Share | None:
    """The share of the gap between the models that the cascade recovers, see `gap_recovered`; None: there is none."""
    costs = np.array(rows.costs)
    unsure = np.stack([rows.below(t) for t in grid])  # (thresholds, rows)
    worth = np.where(unsure, rows.quality[:, 1], rows.quality[:, 0])

    def of(which: Array) -> float | None:
        cost = costs[0] + costs[1] * unsure[:, which].mean(1)
        return gap_recovered(cost, worth[:, which].mean(1), costs, rows.quality[which].mean(0))

    return gap_with_interval(of, len(rows))


FEWEST = 20  # rows of each half


def cascade_of(small: str, large: str, costs: tuple[float, float], out: Path, max_cost: float = 0.0) -> CascadeRecord:
    """Choose and judge a cascade, and write `cascade.json`.

    `small`, `large`: folders of evaluations of the same rows. `costs`: of an answer of each. `max_cost`: most mean cost
    of an answer; 0: no limit. Raises UserError: no evaluation there, hardly a row in both, no confidence, an impossible
    cost.
    """
    if costs[0] < 0 or costs[1] <= costs[0]:
        message = f"The large model must cost more than the small one: {costs[0]:g} and {costs[1]:g}"
        step = "a small model that costs as much never comes first; give --cost SMALL,LARGE"
        raise UserError(message, where="--cost", next_step=step)
    if 0 < max_cost < costs[0]:
        message = f"No answer costs as little as {max_cost:g}: the small model's costs {costs[0]:g}"
        raise UserError(message, where="--max-cost", next_step="raise it")
    metric = read_record(EvaluationManifest, Path(small)).primary
    first, second = _samples(small), _samples(large)
    shared = sorted(first.keys() & second.keys())
    if any(first[i].reference != second[i].reference for i in shared) or len(shared) < 2 * FEWEST:
        message = f"The evaluations share {counted(len(shared), 'row')}, and {2 * FEWEST} or more are needed"
        step = "evaluate both models on the same split: tuneloop evaluate MODEL --dataset DATASET"
        raise UserError(message, where=f"{small}, {large}", next_step=step)
    unknown = sum(first[i].confidence is None for i in shared)
    if unknown:
        message = f"Of {unknown} of {counted(len(shared), 'answer')} the small model's confidence is not known"
        step = "it is known of labels that are scored; evaluate with evaluate.answer=choice"
        raise UserError(message, where=small, next_step=step)
    confidence = np.array([first[i].confidence for i in shared], dtype=np.float64)
    quality = np.array([[worth_of(samples[i], metric) for samples in (first, second)] for i in shared])
    rows = CascadeRows(confidence, quality, costs)
    chooses = np.array([hashlib.sha256(i.encode()).digest()[0] % 2 == 0 for i in shared])
    if min(chooses.sum(), (~chooses).sum()) < FEWEST:
        raise UserError("Too few rows for two halves", where=small, next_step="evaluate more rows")
    threshold = choose_threshold(rows.part(chooses), max_cost)
    record = judged_cascade(rows.part(~chooses), threshold, (small, large), metric)
    write_record(out, record)
    return record


def worth_of(sample: Sample, metric: str) -> float:
    """What an answer is worth, 0 to 1: whether the label is right, else the row's score by the metric that decides.

    Raises UserError: the metric has no score for a row.
    """
    if sample.label is not None:
        return float(sample.predicted_label == sample.label)
    value = (sample.scores or {}).get(metric)
    if value is None:
        raise UserError(f"{metric} has no score for a row", where=sample.id, next_step="evaluate by another metric")
    return min(max(float(value), 0.0), 1.0)


def _samples(folder: str) -> dict[str, Sample]:
    file = Path(folder) / "samples.jsonl"
    if not file.is_file():
        raise UserError("There is no evaluation here", where=folder, next_step=f"tuneloop evaluate {folder}")
    return {sample.id: sample for sample in read_lines(Sample, file, "evaluate again")}


def cascade_sentences(record: CascadeRecord) -> Sequence[str]:
    """What the cascade does."""
    quality, over, gap = record.quality, record.over_large, record.gap_recovered
    rows = f"{record.asked_large:.0%} of {counted(record.n, 'row')}"
    value = f"{quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}]"
    last = "The large model is not shown to be better than the small one on these rows: there may be nothing to gain"
    if gap:
        share = f"{gap.value:.3f} [{gap.low:.3f}, {gap.high:.3f}]"
        last = f"gap between the two recovered, mean over costs: {share} (a coin: below 0.5)"
    return [
        f"Below a confidence of {record.threshold:.3f} the large model answers: {rows}",
        f"{record.metric} {value} at a mean cost of {record.cost:g}",
        *(f"  {single.name:<40} {single.quality:.3f}  cost {single.cost:g}" for single in record.singles),
        f"It is {THAN[by_interval(over.low, over.high)]} the large model alone: {over.in_words()}",
        last,
    ]
