"""How much of an expert's gain over the base another model keeps on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuneloop.core.lazy import Array, np
from tuneloop.core.stats.intervals import rows_apart, shown_interval, sums_by_cluster
from tuneloop.evaluation import ScoredAnswers
from tuneloop.evaluation.metrics import lower_is_better
from tuneloop.records.merge import Share

ENDLESS = 1e9  # a share of no gain


@dataclass(frozen=True)
class Score:
    """A metric of which more is better, with the values of bootstrap resamples: the same rows in each model's."""

    value: float  # of all rows
    draws: Array  # of each resample
    rows: Any = None  # the values of each row (or cluster): they show on how many two models differ

    @staticmethod
    def of(evaluation: ScoredAnswers, metric: str) -> Score:
        """A model's score by a metric; one of which less is better changes its sign."""
        rows = next(family.rows for family in evaluation.statistics if metric in family.values)
        if evaluation.clusters is not None:
            rows = sums_by_cluster(rows, evaluation.clusters)
        sign = -1.0 if lower_is_better(metric) else 1.0
        return Score(sign * evaluation.metrics[metric].value, sign * evaluation.draws[metric], rows)


def difference(expert: Score, merged: Score) -> Share:
    """merged - expert with its paired 95 % interval, which excludes 0 only where so few rows can show it."""
    delta = merged.value - expert.value
    comparable = expert.rows is not None and merged.rows is not None and expert.rows.shape == merged.rows.shape
    apart = rows_apart(expert.rows, merged.rows) if comparable else None
    low, high = shown_interval(delta, merged.draws - expert.draws, apart)
    return Share(value=delta, low=low, high=high)


def ratio(whole: Score, part: Score) -> Share | None:
    """part / whole with its paired 95 % interval; None where less is better, or the whole is nothing. A resample in
    which the whole is nothing counts as a share without bound."""
    if whole.value <= 0:
        return None
    some = whole.draws > 0
    low, high = np.quantile(np.where(some, part.draws / np.where(some, whole.draws, 1.0), ENDLESS), [0.025, 0.975])
    return Share(value=part.value / whole.value, low=float(low), high=float(high))


def kept_share(base: Score, expert: Score, merged: Score) -> Share | None:
    """(merged - base) / (expert - base), with the 95 % interval of paired resamples; None where the expert has no sure
    gain. The gain is sure where the interval of expert - base lies above 0. Then nearly all resamples have a gain;
    those without one count with the share on the side that they point to: without bound."""
    gain = expert.value - base.value
    if not difference(base, expert).low > 0:
        return None
    gains, merged_gains = expert.draws - base.draws, merged.draws - base.draws
    endless = np.sign(merged_gains - gains) * ENDLESS + 1.0
    shares = np.where(gains > 0, merged_gains / np.where(gains > 0, gains, 1.0), endless)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Share(value=(merged.value - base.value) / gain, low=float(low), high=float(high))


def point_share(base: float, expert: float, merged: float) -> float:
    """The share that a search goes by, of few rows and without interval: of the gain, else 1 + the difference."""
    return (merged - base) / (expert - base) if expert > base else 1.0 + merged - expert


def holds(share: Share | None, delta: Share, allowed: float) -> tuple[bool, bool]:
    """Whether a task keeps enough, and whether its interval says so, too. `share`: of the gain that is kept; None:
    there is no sure gain, then the merged model only must not be significantly worse than the expert. `delta`: merged -
    expert. `allowed`: the most of the gain that may be lost, as a share."""
    if share is None:
        return not delta.high < 0, False
    least = 1.0 - allowed
    return share.value >= least, share.low >= least or share.high < least
