"""The mean of bounded numbers from few rows: bounds that hold where rare large values have not been seen yet.

A bootstrap, a t-test and Wald's interval know only the spread that they saw: 20 rows without a loss have none, and a
loss in one row of twenty stays out of sight. Gaffke's bound adds one row at the worst value that a row could have and
weighs all rows by a flat Dirichlet distribution: the lower bound at level a is the quantile a of the weighted mean. For
values of two kinds it is the bound of Clopper & Pearson; against 0 on rows that are better, worse or equal it is the
exact McNemar test; n equal rows give the rule of three; on many rows it is the usual normal interval. That its error
stays below the level for every bounded distribution is proven for two-valued rows and for n = 1 and 2, and holds in
every simulation published; `benchmarks/paired.py` prints ours.

Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable";
Learned-Miller & Thomas 2020, "A new confidence interval for the mean of a bounded random variable".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from tuneloop.core.lazy import Array, np
from tuneloop.core.stats.tests import ALPHA


def bounded_interval(values: Sequence[float] | Array, reach: float, level: float = ALPHA) -> tuple[float, float]:
    """Interval of the mean at confidence 1 - `level`, each side at half of it.

    Args:
        values: one a row, from `-reach` to `reach`, such as differences of scores; NaN rows don't count.
        reach: the largest size that a value could have.
    """
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[~np.isnan(rows)]
    if not len(rows):
        return math.nan, math.nan
    return _lower(rows, -reach, level / 2), -_lower(-rows, -reach, level / 2)


def cluster_values(values: Array, clusters: Sequence[int]) -> tuple[Array, float]:
    """Sums of clusters, scaled so that their mean is that of the rows, and how many times a row's reach theirs is."""
    counted = ~np.isnan(values)
    _, groups = np.unique(np.asarray(clusters)[counted], return_inverse=True)
    if not len(groups):
        return values, 1.0
    scale = len(np.unique(groups)) / len(groups)
    sums: Array = np.bincount(groups, weights=values[counted]).astype(np.float64)
    return sums * scale, float(np.bincount(groups).max()) * scale


def _lower(rows: Array, worst: float, level: float) -> float:
    distinct, numbers = np.unique(np.append(rows, worst), return_counts=True)
    return _quantile(distinct.tobytes(), numbers.astype(np.float64).tobytes(), worst, level)


@lru_cache(maxsize=256)  # an evaluation asks four times: several metrics have the same rows, and each is read twice
def _quantile(values: bytes, numbers: bytes, worst: float, level: float) -> float:
    distinct, counts = np.frombuffer(values), np.frombuffer(numbers)
    low, high = worst, float(distinct[-1])
    if low >= high:
        return worst
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(distinct, counts, middle) < level else (low, middle)
    return low


def _below(distinct: Array, counts: Array, value: float) -> float:
    """The chance that the mean of rows with Dirichlet weights is below a value, by the saddlepoint approximation of
    Lugannani & Rice 1980: the weights are gamma variables over their sum, so that it is the chance of a sum below 0."""
    gaps = distinct - value
    left, right = 1 / float(gaps.min()), 1 / float(gaps.max())  # where the generating function exists
    s = min(max(0.0, left), right)
    for _ in range(80):  # Newton's steps on a rising function, or the middle where one leads out: six as a rule
        shares = gaps / (1 - s * gaps)
        slope = float(counts @ shares)
        left, right = (s, right) if slope < 0 else (left, s)
        step = slope / float(counts @ (shares * shares))
        if abs(step) <= 1e-13 * abs(s):
            break
        s = s - step if left < s - step < right else (left + right) / 2
    log_mgf = -float((counts * np.log1p(-s * gaps)).sum())
    w = math.copysign(math.sqrt(max(-2 * log_mgf, 0.0)), s)
    u = s * math.sqrt(float((counts * (gaps / (1 - s * gaps)) ** 2).sum()))
    if abs(w) < 1e-4 or abs(u) < 1e-4:
        return 0.5
    tail = 0.5 * math.erfc(-w / math.sqrt(2)) + math.exp(-w * w / 2) / math.sqrt(2 * math.pi) * (1 / w - 1 / u)
    return min(max(tail, 0.0), 1.0)
