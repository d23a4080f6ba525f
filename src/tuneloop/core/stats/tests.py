"""How sure a number is, as far as plain numbers tell: intervals of shares, exact tests, corrections for several tests.

Nothing here needs numpy; `core/stats/intervals.py` has the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # 80 % power
ALPHA = 0.05
NOT_ENOUGH: Final = "not enough evidence"
# How a verdict is written between two names.
THAN: Final = {"better": "better than", "worse": "worse than", NOT_ENOUGH: "not shown to differ from"}


def verdict(low: float, high: float, p: float) -> str:
    """`better` (a difference above 0), `worse`, or `not enough evidence`: the test and the interval must both say so.

    They may come from different methods (an exact test with an approximate interval), and where they disagree nothing
    is claimed.
    """
    if p < ALPHA and low > 0:
        return "better"
    if p < ALPHA and high < 0:
        return "worse"
    return NOT_ENOUGH


def by_interval(low: float, high: float) -> str:
    """The verdict of an interval alone, where no test goes with it, or where it reaches 0 if the test finds nothing."""
    return verdict(low, high, 0.0)


def p_words(p: float) -> str:
    """`p < 0.001`, `p = 0.034`; with as many decimals as tell on which side of 0.05 it is."""
    if math.isnan(p):
        return "no p-value"
    if p < 0.001:
        return "p < 0.001"
    decimals = next(d for d in range(3, 18) if (round(p, d) < ALPHA) == (p < ALPHA))
    return f"p = {p:.{decimals}f}"


def wilson_interval(right: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share, which doesn't collapse when all are right (Wilson 1927; Brown et al. 2001)."""
    if n == 0:
        return math.nan, math.nan
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if right == 0 else centre - half
    high = 1.0 if right == n else centre + half
    return low, high


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several: the chance of one false finding among all stays below the level.

    NaN (no test) stays NaN and doesn't count. Source: Holm 1979, "A simple sequentially rejective multiple test
    procedure".
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def holm_levels(p_values: Sequence[float]) -> list[float]:
    """The level of each hypothesis by Holm's procedure: 5 % over the hypotheses that are not ahead of it."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    levels = [ALPHA] * len(p_values)
    for rank, (_, i) in enumerate(order):
        levels[i] = ALPHA / (len(order) - rank)
    return levels


def detectable(low: float, high: float) -> float:
    """The smallest difference that rows like these would have shown with 80 % power at the 5 % level (two-sided).

    Read off the interval of the difference: (1.96 + 0.84) standard errors. NaN without an interval.
    """
    return (Z95 + Z80) * (high - low) / (2 * Z95)


def cohens_h(a: float, b: float) -> float:
    """Effect size of two shares: the difference of their arcsines; 0.2 is small, 0.5 medium, 0.8 large.

    Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", ch. 6.
    """
    return 2 * math.asin(math.sqrt(b)) - 2 * math.asin(math.sqrt(a))


def standardised(delta: float, low: float, high: float, n: int) -> float:
    """Effect size of a paired difference in standard deviations of a row (Cohen's d for pairs), from its interval.

    NaN without an interval of some width. For means it is mean difference over its standard deviation; corpus metrics
    get the same scale.
    """
    error = (high - low) / (2 * Z95)
    return delta / (error * math.sqrt(n)) if error > 0 else math.nan
