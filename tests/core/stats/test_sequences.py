"""Evidence on counts: its values, and how rarely it errs under peeking, by simulation."""

import math

import numpy as np
import pytest

from tuneloop.core.stats import sequences as s

ALPHA = 0.05


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
