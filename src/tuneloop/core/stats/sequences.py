"""Evidence on counts that holds however often one looks.

Lindon & Malek 2022, "Anytime-valid inference for multinomial count data".
"""

from __future__ import annotations

import math

from tuneloop.core.lazy import Array, np

LEAST_LOG_E = 1e4  # below -LEAST_LOG_E, evidence is the same: none


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
