"""Is one group of rows different from another? Exact tests by permutation, for vectors, numbers and categories.

Without a difference every division of all rows into groups of these sizes is as likely as the real one. So the share of
divisions with a larger statistic is a p-value at any size of the groups, and no distribution is assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.lazy import Array, np
from tuneloop.core.stats.intervals import auroc

BATCH = 200
ENOUGH = 20  # divisions with a larger statistic after which more of them would not change the answer
DIMENSIONS = 32

Statistic = Callable[[Any], Array]  # membership in the second group (divisions, rows) -> one value a division


@dataclass(frozen=True)
class GroupDifference:
    """How two groups of rows differ."""

    p: float  # p-value
    size: float  # of the difference
    foreign: Array  # for each row of the second group how much it differs from the first


def permutation_p(statistic: Statistic, before: int, now: int, *, level: float, seed: int) -> float:
    """The p-value of the real division, in which the last rows are the second group.

    Divisions are drawn until 20 have a larger statistic, or until a p-value below `level` is certain to a fifth of
    itself. Source: Besag & Clifford 1991, "Sequential Monte Carlo p-values".

    `statistic`: larger where the groups differ more; `before`, `now`: rows of the first and the second group; `level`:
    below which it will be called a difference.
    """
    n = before + now
    real = np.zeros((1, n), dtype=np.float32)
    real[0, before:] = 1
    value = float(statistic(real)[0])
    rng = np.random.default_rng(seed)
    most = max(BATCH, math.ceil(ENOUGH / level))
    divisions = larger = 0
    while divisions < most and larger < ENOUGH:
        second = np.argpartition(rng.random((BATCH, n), dtype=np.float32), now, axis=1)[:, :now]
        member = np.zeros((BATCH, n), dtype=np.float32)
        np.put_along_axis(member, second, 1.0, axis=1)
        larger += int((statistic(member) >= value * (1 - 1e-6)).sum())
        divisions += BATCH
    return (larger + 1) / (divisions + 1)


def vectors_differ(before: Array, now: Array, *, level: float, seed: int = 0) -> GroupDifference:
    """Whether vectors differ: Fisher's linear discriminant between the groups (Hotelling's T2), on principal axes.

    Its size is the chance that the discriminant puts a row of the second group above one of the first, 0.5 to 1.

    `before`, `now`: (rows, dimensions); `level`, `seed`: see `permutation_p`.
    """
    pooled = np.concatenate([before, now]).astype(np.float64)
    pooled -= pooled.mean(axis=0)
    axes = max(1, min(DIMENSIONS, pooled.shape[1], len(pooled) // 10))
    left, scales, _ = np.linalg.svd(pooled, full_matrices=False)
    rank = int((scales[:axes] > 1e-9 * max(scales[0], 1e-12)).sum())
    white = (left[:, :rank] * math.sqrt(len(pooled))).astype(np.float32)  # uncorrelated, of variance 1
    n, m = len(before), len(now)

    def statistic(member: Any) -> Array:
        sums = member @ white
        return np.asarray(((sums * (1 / m + 1 / n)) ** 2).sum(axis=1))  # all sums to 0

    p = permutation_p(statistic, n, m, level=level, seed=seed)
    direction = white[n:].mean(axis=0) - white[:n].mean(axis=0)
    scores = white @ direction
    return GroupDifference(p, auroc(scores[n:], scores[:n]), np.asarray(scores[n:], dtype=np.float64))


def numbers_differ(
    before: Array, now: Array, *, level: float, seed: int = 0, upper_tail: bool = False
) -> GroupDifference:
    """Whether numbers are distributed otherwise: largest distance of the distribution functions (Smirnov), 0 to 1.

    `before`, `now`: one number a row; `level`, `seed`: see `permutation_p`; `upper_tail`: look for a few rows with
    large numbers: only for more of them, above the median, each distance over its standard error (Anderson & Darling
    1952), so that the far end counts as much as the middle.
    """
    pooled = np.concatenate([before, now]).astype(np.float64)
    order = np.argsort(pooled, kind="stable")
    ordered = pooled[order]
    ends = np.append(ordered[1:] != ordered[:-1], True)  # equal numbers step together
    n, m = len(before), len(now)
    places = np.flatnonzero(ends) + 1
    share = places / (n + m)
    tail = (share >= 0.5) & (n + m - places >= 5)  # at least five rows beyond
    weights = np.where(tail, 1 / np.sqrt(np.maximum(share * (1 - share), 1e-12)), 0.0)

    def statistic(member: Any) -> Array:
        inside = np.cumsum(member[:, order], axis=1)[:, ends]
        distance = (places - inside) / n - inside / m  # above 0: more of the first group lies below
        if not upper_tail:
            return np.asarray(np.abs(distance).max(axis=1))
        return np.asarray((distance * weights).max(axis=1))

    real = np.concatenate([np.zeros(n), np.ones(m)])[None]
    p = permutation_p(statistic, n, m, level=level, seed=seed)
    excess = np.asarray(now, dtype=np.float64) - np.median(before)
    return GroupDifference(p, float(statistic(real)[0]), excess if upper_tail else np.abs(excess))


def categories_differ(before: Sequence[str], now: Sequence[str], *, level: float, seed: int = 0) -> GroupDifference:
    """Whether categories have other shares: Pearson's chi-squared; its size is the total variation distance, 0 to 1.

    `before`, `now`: one category a row; `level`, `seed`: see `permutation_p`.
    """
    names, codes = np.unique(np.array([*before, *now], dtype=object).astype(str), return_inverse=True)
    table = np.zeros((len(codes), len(names)), dtype=np.float32)
    table[np.arange(len(codes)), codes] = 1
    n, m = len(before), len(now)
    totals = table.sum(axis=0)
    expected = totals * m / (n + m)

    def statistic(member: Any) -> Array:
        return np.asarray((((member @ table) - expected) ** 2 / totals).sum(axis=1))

    p = permutation_p(statistic, n, m, level=level, seed=seed)
    shift = table[n:].mean(axis=0) - table[:n].mean(axis=0)
    return GroupDifference(p, float(np.abs(shift).sum() / 2), shift[codes[n:]].astype(np.float64))
