"""Confidence sequences: published values, another library, and coverage under peeking by simulation."""

import math

import numpy as np
import pytest
from scipy.special import lambertw

from tuneloop.core.stats import sequences as s

ALPHA = 0.05


@pytest.mark.parametrize("n", [10, 500, 20_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.2])
def test_the_best_mixture_is_the_published_closed_form(n, alpha):
    # Waudby-Smith et al. 2024, exact optimum: rho^2 = (-W_{-1}(-alpha^2 / e) - 1) / n
    exact = (-lambertw(-(alpha**2) * math.exp(-1), -1).real - 1) / n
    assert s.best_rho2(n, alpha) == pytest.approx(exact, rel=1e-9)


def ramp(rng, runs, n, base, effect):
    """Units while the share goes 10, 25, 50 %: arms, outcomes, propensities."""
    share = np.repeat([0.1, 0.25, 0.5], n // 3)
    candidate = rng.random((runs, n)) < share
    liked = rng.random((runs, n)) < base + effect * candidate
    return candidate, liked.astype(float), np.broadcast_to(share, (runs, n))


def test_an_excess_of_rare_events_is_found_and_a_tolerated_share_seldom_is():
    rng = np.random.default_rng(8)

    def log_e(rate):
        inside = np.cumsum(rng.random((2000, 200)) < rate, axis=-1)
        return s.excess_log_e(inside, np.arange(1, 201) - inside, 0.2).max(axis=-1)

    assert (log_e(0.2) >= math.log(1 / ALPHA)).mean() <= 0.05
    assert (log_e(0.1) >= math.log(1 / ALPHA)).mean() <= 0.01
    assert (log_e(0.4) >= math.log(1 / ALPHA)).mean() > 0.95


def test_an_excess_is_the_integral_by_hand():
    # 1 inside, 0 outside, share 1/2: the integral of q over (1/2, 1), times 2, over 1/2.
    assert math.exp(s.excess_log_e(1, 0, 0.5)) == pytest.approx((0.5 - 0.125) * 2 / 0.5)
