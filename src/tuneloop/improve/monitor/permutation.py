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

BATCH = 50
ENOUGH = 4  # divisions with a larger statistic after which more of them would not change the answer
DIMENSIONS = 32
NEAREST = 10  # rows, of which it is counted how many are of the second group; found for `PART` rows at a time
PART = 500

Statistic = Callable[[Any], Array]  # membership in the second group (divisions, rows) -> one value a division


@dataclass(frozen=True)
class GroupDifference:
    """How two groups of rows differ."""

    p: float  # p-value
    excess: float  # of the statistic over that of chance divisions, in their standard deviations
    size: float  # of the difference
    foreign: Array  # for each row of the second group how much it differs from the first


def permutation_p(statistic: Statistic, before: int, now: int, *, level: float, seed: int) -> tuple[float, float]:
    """The p-value of the real division, in which the last rows are the second group, and its excess over the first
    divisions that are drawn; see `GroupDifference`.

    Divisions are drawn until 4 have a larger statistic, or until a p-value below `level` is certain to a half of
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
    divisions, larger, excess = 0, 0, 0.0
    while divisions < most and larger < ENOUGH:
        second = np.argpartition(rng.random((BATCH, n), dtype=np.float32), now, axis=1)[:, :now]
        member = np.zeros((BATCH, n), dtype=np.float32)
        np.put_along_axis(member, second, 1.0, axis=1)
        values = statistic(member)
        if not divisions:
            deviation = float(values.std())
            excess = (value - float(values.mean())) / deviation if deviation else 0.0
        larger += int((values >= value * (1 - 1e-6)).sum())
        divisions += BATCH
    return (larger + 1) / (divisions + 1), excess


def vectors_differ(before: Array, now: Array, *, level: float, seed: int = 0) -> GroupDifference:
    """Whether vectors differ: Fisher's linear discriminant between the groups (Hotelling's T2), on principal axes.

    Its size is the chance that the discriminant puts a row of the second group above one of the first, 0.5 to 1.

    `before`, `now`: (rows, dimensions); `level`, `seed`: see `permutation_p`.
    """
    pooled = np.concatenate([before, now]).astype(np.float64)
    pooled -= pooled.mean(axis=0)
    axes = max(1, min(DIMENSIONS, pooled.shape[1], len(pooled) // 10))
    variances, directions = np.linalg.eigh(pooled.T @ pooled / len(pooled))  # in rising order
    used = [i for i in range(-1, -axes - 1, -1) if variances[i] > 1e-12 * max(variances[-1], 1e-12)]
    white = (pooled @ directions[:, used] / np.sqrt(variances[used])).astype(np.float32)  # uncorrelated, of variance 1
    n, m = len(before), len(now)

    def statistic(member: Any) -> Array:
        sums = member @ white
        return np.asarray(((sums * (1 / m + 1 / n)) ** 2).sum(axis=1))  # all sums to 0

    p, excess = permutation_p(statistic, n, m, level=level, seed=seed)
    direction = white[n:].mean(axis=0) - white[:n].mean(axis=0)
    scores = white @ direction
    return GroupDifference(p, excess, auroc(scores[n:], scores[:n]), np.asarray(scores[n:], dtype=np.float64))


def places_differ(before: Array, now: Array, *, level: float, seed: int = 0) -> GroupDifference:
    """Whether the second group has places of its own, as a new topic has, by the nearest rows of each of its rows.

    The statistic is the sum of squares of how many more of the ten nearest are of the second group than chance gives:
    a few rows in a dense place of their own count, where a mean over all does not see them. After Henze 1988, "A
    multivariate two-sample test based on the number of nearest neighbor type coincidences". Its size is the largest
    share of rows of the second group among the nearest of one of them.

    `before`, `now`: (rows, dimensions) of length 1; `level`, `seed`: see `permutation_p`.
    """
    from scipy.sparse import csr_array

    pooled = np.concatenate([before, now]).astype(np.float32)
    n, near = len(pooled), min(NEAREST, len(pooled) - 1)
    columns = np.empty((n, near), dtype=np.int32)
    for start in range(0, n, PART):
        part = np.arange(start, min(start + PART, n))
        far = -(pooled[part] @ pooled.T)
        far[np.arange(len(part)), part] = np.inf  # a row is no neighbour of itself
        columns[part] = np.argpartition(far, near - 1, axis=1)[:, :near]
    ones, ends = np.ones(n * near, dtype=np.float32), np.arange(0, n * near + 1, near)
    neighbours = csr_array((ones, columns.ravel(), ends), shape=(n, n))

    def surplus(member: Any) -> Array:
        counts = (neighbours @ member.T).T
        return np.asarray(np.maximum(counts - near * len(now) / n, 0) * member)

    real = np.concatenate([np.zeros(len(before)), np.ones(len(now))]).astype(np.float32)[None]
    p, excess = permutation_p(
        lambda member: (surplus(member) ** 2).sum(axis=1), len(before), len(now), level=level, seed=seed
    )
    shares = (neighbours @ real[0])[len(before) :] / near
    return GroupDifference(p, excess, float(shares.max()), np.asarray(shares, dtype=np.float64))


def numbers_differ(before: Array, now: Array, *, level: float, seed: int = 0) -> GroupDifference:
    """Whether numbers are distributed otherwise: largest distance of the distribution functions (Smirnov), 0 to 1.

    `before`, `now`: one number a row; `level`, `seed`: see `permutation_p`.
    """
    pooled = np.concatenate([before, now]).astype(np.float64)
    order = np.argsort(pooled, kind="stable")
    ordered = pooled[order]
    ends = np.append(ordered[1:] != ordered[:-1], True)  # equal numbers step together
    n, m = len(before), len(now)
    places = np.flatnonzero(ends) + 1

    def statistic(member: Any) -> Array:
        inside = np.cumsum(member[:, order], axis=1)[:, ends]
        return np.asarray(np.abs((places - inside) / n - inside / m).max(axis=1))

    real = np.concatenate([np.zeros(n), np.ones(m)])[None]
    p, excess = permutation_p(statistic, n, m, level=level, seed=seed)
    return GroupDifference(
        p, excess, float(statistic(real)[0]), np.abs(np.asarray(now, dtype=np.float64) - np.median(before))
    )


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

    p, excess = permutation_p(statistic, n, m, level=level, seed=seed)
    shift = table[n:].mean(axis=0) - table[:n].mean(axis=0)
    return GroupDifference(p, excess, float(np.abs(shift).sum() / 2), shift[codes[n:]].astype(np.float64))


def mean_rises(before: Array, now: Array, *, level: float, seed: int = 0) -> GroupDifference:
    """Whether the mean of numbers rises; its size is by how much. `before`, `now`, `level`, `seed`: as above."""
    pooled = np.concatenate([before, now]).astype(np.float64)

    def statistic(member: Any) -> Array:
        return np.asarray(member @ pooled / len(now) + 2)  # above 0, for values in [-1, 1]

    p, excess = permutation_p(statistic, len(before), len(now), level=level, seed=seed)
    return GroupDifference(p, excess, float(np.mean(now) - np.mean(before)), np.asarray(now, dtype=np.float64))
