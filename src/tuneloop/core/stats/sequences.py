"""Always-valid inference, however often one looks: confidence sequences, contrasts of two arms, ratio tests.

The chance that the true value is *ever* outside of a confidence sequence is at most alpha. Waudby-Smith et al. 2024,
"Time-uniform central limit theory ..."; Lindon & Malek 2022, "Anytime-valid inference for multinomial count data".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneloop.core.lazy import Array, NDArray, np

LEAST_LOG_E = 1e4  # below -LEAST_LOG_E, evidence is the same: none


@dataclass(frozen=True)
class Bounds:
    """A value with the lower and upper bound of its confidence sequence after `n` observations."""

    n: int
    value: float
    low: float
    high: float


def best_rho2(n: float, alpha: float) -> float:
    """The mixture variance with which a two-sided sequence of level alpha is narrowest at `n` observations.

    The width is least where x = n rho2 solves x = log(x + 1) - 2 log(alpha), which iteration finds.
    """
    x = -2 * math.log(alpha)
    for _ in range(60):
        x = math.log1p(x) - 2 * math.log(alpha)
    return x / n


def margin(n: Array | float, alpha: float, rho2: float, *, one_sided: bool = False) -> Array:
    """Half the width of a normal-mixture sequence for a mean of observations with standard deviation 1.

    Two-sided sqrt(2 (n rho2 + 1) / (n^2 rho2) log(sqrt(n rho2 + 1) / alpha)); one-sided with
    log(1 + sqrt(n rho2 + 1) / (2 alpha)). Waudby-Smith et al. 2024.

    Args:
        alpha: chance that the true mean is ever outside.
        rho2: variance of the mixture, from `best_rho2`.
        one_sided: only one bound is used, at the whole of alpha.
    """
    n = np.asarray(n, dtype=np.float64)
    grown = n * rho2 + 1
    inside = np.log1p(np.sqrt(grown) / (2 * alpha)) if one_sided else np.log(np.sqrt(grown) / alpha)
    return np.asarray(np.sqrt(2 * grown / (n * n * rho2) * inside))


def running_bounds(
    values: Array, alpha: float, rho2: float, *, start: int = 2, one_sided: bool = False
) -> tuple[Array, Array, Array]:
    """The asymptotic confidence sequence of a mean, after each observation.

    Args:
        values: observations in order along the last axis, whose conditional variances may change from one to the next;
            other axes are separate sequences. Means, lower and upper bounds of this shape are returned.
        alpha, rho2, one_sided: see `margin`.
        start: before that many observations the bounds are infinite; the guarantee is asymptotic in it.
    """
    n = np.arange(1, values.shape[-1] + 1, dtype=np.float64)
    means = np.cumsum(values, axis=-1) / n
    spread = np.sqrt(np.maximum(np.cumsum(values * values, axis=-1) / n - means * means, 0.0))
    half = np.where(n < start, np.inf, spread * margin(n, alpha, rho2, one_sided=one_sided))
    half = np.where(spread > 0, half, np.inf)  # no spread seen yet says nothing
    return means, means - half, means + half


def contrast(candidate: NDArray[np.bool_], outcomes: Array, propensity: Array) -> Array:
    """What each unit says of the mean outcome under the candidate minus the one under the champion.

    Augmented inverse propensity weighting, m1 - m0 + A (y - m1) / p - (1 - A) (y - m0) / (1 - p), where the means m of
    either arm are those of the units before. So each value has the true difference as its expectation given the past,
    and the mean of all stays valid when the share of traffic is changed between units (a ramp). Waudby-Smith et al.
    2024.

    Args:
        candidate: whether a unit was in the candidate's arm, in the order of the units along the last axis.
        propensity: the chance with which it got into the candidate's arm, above 0 and below 1.
    """
    everyone = _means_before(outcomes, np.ones_like(outcomes), 0.0)
    in_arm = candidate.astype(np.float64)
    m1 = _means_before(outcomes, in_arm, everyone)
    m0 = _means_before(outcomes, 1 - in_arm, everyone)
    residual = np.where(candidate, (outcomes - m1) / propensity, -(outcomes - m0) / (1 - propensity))
    return np.asarray(m1 - m0 + residual)


def _means_before(outcomes: Array, counted: Array, first: Array | float) -> Array:
    """The mean of the counted outcomes before each unit, with one more observation of value `first`."""
    sums = np.cumsum(outcomes * counted, axis=-1) - outcomes * counted
    numbers = np.cumsum(counted, axis=-1) - counted
    return np.asarray((sums + first) / (numbers + 1))


def difference(
    candidate: NDArray[np.bool_],
    outcomes: Array,
    propensity: Array,
    *,
    alpha: float,
    planned: int,
    start: int = 2,
    one_sided: bool = False,
) -> Bounds:
    """The difference of the arms after all units, with its always-valid bounds.

    Args:
        candidate, outcomes, propensity: see `contrast`.
        alpha: chance that the true difference is ever outside.
        planned: units at which the interval should be narrowest, set before the first one.
        start: units of either arm before which the bounds are infinite.
        one_sided: only one of the bounds is used, at the whole of alpha.
    """
    n = len(outcomes)
    if min(int(candidate.sum()), n - int(candidate.sum())) < max(1, start):
        return Bounds(n, math.nan, -math.inf, math.inf)
    rho2 = best_rho2(planned, min(2 * alpha, 0.99) if one_sided else alpha)
    means, lows, highs = running_bounds(contrast(candidate, outcomes, propensity), alpha, rho2, one_sided=one_sided)
    return Bounds(n, float(means[-1]), float(lows[-1]), float(highs[-1]))


def ratio_log_e(counts: Array, shares: Array, *, concentration: float = 100.0) -> Array:
    """Evidence that units do not fall into classes with these shares: log of an e-value, read at any time.

    The Bayes factor of a Dirichlet-multinomial, centred on the shares, against the multinomial. The chance that it ever
    reaches 1 / alpha is at most alpha where the shares hold. Those of several stages with different shares add up.
    Lindon & Malek 2022.

    Args:
        counts: units in each class along the last axis.
        shares: of the classes; they sum to 1 and none is 0.
        concentration: how near to the shares the alternative is thought to be, in units.
    """
    from scipy.special import gammaln, xlogy

    counts, prior = np.asarray(counts, dtype=np.float64), concentration * np.asarray(shares, dtype=np.float64)
    n, whole = counts.sum(axis=-1), prior.sum(axis=-1)
    marginal = gammaln(whole) - gammaln(whole + n) + (gammaln(prior + counts) - gammaln(prior)).sum(axis=-1)
    return np.asarray(marginal - xlogy(counts, shares).sum(axis=-1))


def odds_log_e(counts: Array, shares: Array, ratio: float) -> Array:
    """Evidence that units fall into the first of two classes with odds that are `ratio` times what they should be: log
    of an e-value, the likelihood ratio, read at any time.

    Args:
        counts: of units, (..., shares, 2), the first class first.
        shares: of the first class, one after another.
    """
    inside, units = counts[..., 0], counts.sum(axis=-1)
    return np.asarray((inside * math.log(ratio) - units * np.log1p(shares * (ratio - 1))).sum(axis=-1))


def excess_log_e(inside: Array | float, outside: Array | float, share: Array | float) -> Array:
    """Evidence that more than this share of events fall inside: log of an e-value, read at any time.

    The mixture over all larger shares (a uniform prior) against `share`. As the likelihood ratio of each of them grows
    with the events inside, it is valid for every true share up to this one. It suits rare events: where a candidate
    that gets the share p of users may cause r times the champion's rate, its share of the affected users is at most
    p r / (p r + 1 - p).

    Args:
        inside, outside: events so far.
        share: the largest share that is tolerated, above 0 and below 1.
    """
    from scipy.special import betaincc, betaln, xlog1py, xlogy

    inside, outside = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    with np.errstate(divide="ignore"):
        above = np.log(betaincc(1 + inside, 1 + outside, share)) + betaln(1 + inside, 1 + outside)
    log_e = above - np.log1p(-np.asarray(share)) - xlogy(inside, share) - xlog1py(outside, -np.asarray(share))
    return np.asarray(np.maximum(log_e, -LEAST_LOG_E))
