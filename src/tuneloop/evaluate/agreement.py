"""What people's votes say together: do they agree, and who is preferred, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.significance import Z95
from tuneloop.records.evaluation import Estimate

RESAMPLES = 1000
# A system that won every vote has no finite strength; this much of a normal prior gives it one. It moves
# strengths from more than a handful of votes by less than 0.01.
RIDGE = 1e-3

Level = Literal["nominal", "ordinal", "interval"]


# --- agreement ---------------------------------------------------------------------------------


def krippendorff_alpha(units: Sequence[Sequence[Hashable]], level: Level = "nominal") -> float:
    """How far raters agree beyond chance: 1 is perfect, 0 is chance, below 0 is systematic disagreement.

    Own code because the package for it is under the GPL.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".

    Args:
        units: the values that each item was given, one for each rater who rated it; any number of raters.
        level: `nominal` for kinds; `ordinal` and `interval` for numbers.

    Returns:
        NaN where it is not defined: no item has two ratings, or all ratings are the same value.
    """
    pairable = [list(unit) for unit in units if len(unit) >= 2]
    values = sorted({value for unit in pairable for value in unit}, key=lambda v: (str(type(v)), v))
    if len(values) < 2:
        return math.nan
    place = {value: i for i, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))
    for unit in pairable:
        counts = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    distance = _distances(values, totals, level)
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def _distances(values: Sequence[Any], totals: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared differences between values, shape (values, values)."""
    k = len(values)
    if level == "nominal":
        return 1.0 - np.eye(k)
    at = np.array(values, dtype=float)
    if level == "ordinal":  # a value stands at the middle of its ranks
        at = np.cumsum(totals) - totals / 2
    difference: NDArray[np.float64] = (at[:, None] - at[None, :]) ** 2
    return difference


def alpha_with_interval(units: Sequence[Sequence[Hashable]], level: Level = "nominal", *, seed: int = 0) -> Estimate:
    """`krippendorff_alpha` with a 95 % percentile bootstrap interval over items."""
    value = krippendorff_alpha(units, level)
    pairable = [unit for unit in units if len(unit) >= 2]
    if math.isnan(value) or len(pairable) < 3:
        return Estimate(value, math.nan, math.nan)
    draws = _resampled(len(pairable), lambda drawn: krippendorff_alpha([pairable[i] for i in drawn], level), seed)
    return Estimate(value, *_percentiles(draws))


def _resampled(n: int, function: Callable[[NDArray[np.int64]], Any], seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.array([function(rng.integers(0, n, n)) for _ in range(RESAMPLES)], dtype=float)


def _percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


# --- ranking -----------------------------------------------------------------------------------


def bradley_terry(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths (K,), mean 0, as log odds, whose differences give the chance that one system beats another.

    Source: Bradley & Terry 1952; ties count as half a win for each side. Newton's method on the log likelihood, with
    a ridge of `RIDGE`. `wins` (K, K): how often, or with what weight, row i won against column j.
    """
    k = len(wins)
    games = wins + wins.T
    strength = np.zeros(k)
    for _ in range(100):
        chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        gradient = wins.sum(axis=1) - (games * chance).sum(axis=1) - RIDGE * strength
        information = games * chance * (1 - chance)
        hessian = np.diag(information.sum(axis=1) + RIDGE) - information
        step = np.linalg.solve(hessian, gradient)
        strength += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    centred: NDArray[np.float64] = strength - strength.mean()
    return centred


@dataclass(frozen=True)
class Duel:
    """One reviewed item: the places of its two systems, the shares of the votes (first won, second won, neither) and its rows.

    The shares sum to 1; `weight` is how many rows of the test set the item stands for.
    """

    pair: tuple[int, int]
    shares: tuple[float, float, float]
    weight: float


def ranking(names: Sequence[str], duels: Sequence[Duel], *, seed: int = 0) -> dict[str, Estimate]:
    """Bradley-Terry strengths with 95 % percentile bootstrap intervals over items, the strongest first.

    The likelihood counts an item once, however many reviewers voted on it; its weight says for how many rows it stands.
    """
    if not duels:
        return {}
    scale = sum(duel.weight for duel in duels) / len(duels)
    cells = np.zeros((len(duels), len(names), len(names)))
    for cell, duel in zip(cells, duels, strict=True):
        (a, b), (first, second, neither) = duel.pair, duel.shares
        cell[a, b] = (first + neither / 2) * duel.weight / scale
        cell[b, a] = (second + neither / 2) * duel.weight / scale
    strengths = bradley_terry(cells.sum(axis=0))
    draws = _resampled(len(duels), lambda drawn: bradley_terry(cells[drawn].sum(axis=0)), seed)
    bounds = [_percentiles(draws[:, i]) if len(duels) > 2 else (math.nan, math.nan) for i in range(len(names))]
    order = sorted(range(len(names)), key=lambda i: -strengths[i])
    return {names[i]: Estimate(float(strengths[i]), *bounds[i]) for i in order}


# --- estimates from a stratified sample --------------------------------------------------------


def stratified_mean(scores: Mapping[str, Sequence[float]], sizes: Mapping[str, int]) -> Estimate:
    """The mean of a 0 to 1 score over a whole test set, from samples of its groups, with its 95 % interval.

    Each reviewed row stands for (rows of its group) / (reviewed rows of its group) rows, the inverse of the chance
    that it was drawn. The interval is computed with two made-up rows in each group, a 0 and a 1: a group whose few
    votes all say the same is not taken as certain. Simulated coverage with 40 rows of each of two groups: 97 %.

    Source: Cochran 1977, "Sampling Techniques", ch. 5; the made-up rows as in Agresti & Coull 1998. No correction
    for a finite population: the claim is about rows like these, not these alone.

    Args:
        scores: group -> scores of its reviewed rows.
        sizes: group -> its rows in the test set. Groups without a reviewed row are left out, and the estimate then
            speaks of the others alone.
    """
    known = {group: np.array(values, dtype=float) for group, values in scores.items() if len(values)}
    total = sum(sizes[group] for group in known)
    if not known or not total:
        return Estimate(math.nan, math.nan, math.nan)
    shares = {group: sizes[group] / total for group in known}
    value = sum(shares[group] * float(values.mean()) for group, values in known.items())
    padded = {group: np.append(values, [0.0, 1.0]) for group, values in known.items()}
    centre = sum(shares[group] * float(values.mean()) for group, values in padded.items())
    half = Z95 * math.sqrt(sum(shares[group] ** 2 * float(np.var(v)) / len(v) for group, v in padded.items()))
    return Estimate(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))
