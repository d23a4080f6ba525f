"""A cascade: a small model answers first, and a larger one is asked where the small one is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuneloop.combine.route.frontier import gap_recovered, gap_with_interval, mean_interval, singles
from tuneloop.core.stats.intervals import shown_interval
from tuneloop.records.merge import Share
from tuneloop.records.router import CascadePoint, CascadeRecord

if TYPE_CHECKING:
    from tuneloop.combine.route.router import Array

THRESHOLDS = 60  # that are tried, as quantiles of the confidences
RESAMPLES, SEED = 500, 0


@dataclass(frozen=True)
class CascadeRows:
    """Rows that both models have answered.

    Args:
        confidence: of the small model in its answer, (rows).
        quality: what the answers are worth, 0 to 1, (rows, 2): the small model's, the large one's.
        costs: of an answer of each.
    """

    confidence: Array
    quality: Array
    costs: tuple[float, float]

    def __len__(self) -> int:
        return len(self.confidence)

    def part(self, which: Array) -> CascadeRows:
        """Some of the rows."""
        return CascadeRows(self.confidence[which], self.quality[which], self.costs)

    def asked_large(self, threshold: float) -> Array:
        """Which rows go on to the large model: those with a confidence below the threshold."""
        found: Array = self.confidence < threshold
        return found

    def worth(self, threshold: float) -> Array:
        """What the cascade's answers are worth, (rows)."""
        return np.where(self.asked_large(threshold), self.quality[:, 1], self.quality[:, 0])

    def cost(self, threshold: float) -> float:
        """Mean cost of an answer: the small model's always, the large one's where it is asked as well."""
        return float(self.costs[0] + self.costs[1] * self.asked_large(threshold).mean())


def thresholds_of(rows: CascadeRows) -> list[float]:
    """Thresholds to try: from one that asks the large model never to one that asks it always."""
    inner = np.unique(np.quantile(rows.confidence, np.linspace(0, 1, THRESHOLDS)))
    return [float(value) for value in (*inner, np.nextafter(inner[-1], np.inf))]


def choose_threshold(rows: CascadeRows, most: float = 0.0) -> float:
    """The threshold with the best mean outcome on rows; of equals the cheapest.

    Args:
        most: the most that an answer may cost in the mean; 0: no limit.
    """
    tried = [t for t in thresholds_of(rows) if not most or rows.cost(t) <= most + 1e-12]
    return max(tried, key=lambda t: (round(float(rows.worth(t).mean()), 9), -rows.cost(t)))


def judged_cascade(rows: CascadeRows, threshold: float, names: tuple[str, str], metric: str) -> CascadeRecord:
    """What a cascade does on rows that did not choose its threshold, next to each model alone and the best choice for each row."""
    worth, costs = rows.worth(threshold), np.array(rows.costs)
    low, high = mean_interval(worth)
    grid = thresholds_of(rows)
    points = [
        CascadePoint(threshold=t, cost=rows.cost(t), quality=float(rows.worth(t).mean())) for t in (-np.inf, *grid)
    ]
    return CascadeRecord(
        small=names[0], large=names[1], costs=rows.costs, threshold=threshold, metric=metric, n=len(rows),
        quality=Share(value=float(worth.mean()), low=low, high=high), cost=rows.cost(threshold),
        asked_large=float(rows.asked_large(threshold).mean()), singles=singles(rows.quality, costs, names),
        frontier=[point for i, point in enumerate(points) if not i or point.cost != points[i - 1].cost],
        gap_recovered=_gap(rows, grid), over_large=_over_large(rows, worth),
    )  # fmt: skip


def _gap(rows: CascadeRows, grid: list[float]) -> Share | None:
    """The share of the gap between the two models that the cascade recovers, see `gap_recovered`; None where there is none."""
    costs = np.array(rows.costs)
    asked = np.stack([rows.asked_large(t) for t in grid])  # (thresholds, rows)
    worth = np.where(asked, rows.quality[:, 1], rows.quality[:, 0])

    def of(which: Array) -> float | None:
        cost = costs[0] + costs[1] * asked[:, which].mean(1)
        return gap_recovered(cost, worth[:, which].mean(1), costs, rows.quality[which].mean(0))

    return gap_with_interval(of, len(rows))


def _over_large(rows: CascadeRows, worth: Array) -> Share:
    """The cascade's mean outcome less the large model's, with its paired interval."""
    delta = worth - rows.quality[:, 1]
    rng = np.random.default_rng(SEED)
    draws = delta[rng.integers(0, len(delta), (RESAMPLES, len(delta)))].mean(1)
    low, high = shown_interval(float(delta.mean()), draws, int((delta != 0).sum()))
    return Share(value=float(delta.mean()), low=low, high=high)
