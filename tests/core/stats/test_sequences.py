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
    widths = [float(s.margin(n, alpha, exact * factor)) for factor in (0.8, 1.0, 1.25)]
    assert widths[1] == min(widths)


def test_units_for_five_points_are_the_published_ones():
    # 10 % of traffic, 60 % liked: the interval of a difference reaches 5 points after about 9,800 rated units.
    deviation = math.sqrt(0.24 / 0.1 + 0.24 / 0.9)
    n = next(n for n in range(9000, 11000) if deviation * s.margin(n, ALPHA, s.best_rho2(n, ALPHA)) <= 0.05)
    assert 9_750 < n < 9_900


def test_the_sequences_are_those_of_ville():
    ville = pytest.importorskip("ville")
    rng = np.random.default_rng(3)
    values = rng.beta(2, 3, 600)
    theirs = ville.AsymptoticCS(alpha=ALPHA, t_opt=500, min_samples=100)
    theirs.update(values)
    means, lows, highs = s.running_bounds(values, ALPHA, s.best_rho2(500, ALPHA), start=100)
    assert means[-1] == pytest.approx(values.mean())
    assert (lows[-1], highs[-1]) == pytest.approx(
        (theirs.lower_[-1], theirs.upper_[-1]), abs=2e-4
    )  # n instead of n - 1
    assert np.isinf(lows[98]) and np.isfinite(lows[99])


def ever_outside(lows, highs, truth):
    return ((lows > truth) | (highs < truth)).any(axis=-1).mean()


def test_the_asymptotic_sequence_is_rarely_ever_wrong_and_the_usual_interval_often_is():
    rng = np.random.default_rng(1)
    values = (rng.random((1500, 3000)) < 0.6).astype(float)
    means, lows, highs = s.running_bounds(values, ALPHA, s.best_rho2(1000, ALPHA), start=50)
    assert ever_outside(lows, highs, 0.6) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 1500)
    n = np.arange(1, 3001)
    half = np.where(n < 50, np.inf, 1.96 * np.sqrt(means * (1 - means) / n))
    assert ever_outside(means - half, means + half, 0.6) > 0.25


def test_one_bound_is_wrong_as_rarely_and_nearer():
    rng = np.random.default_rng(2)
    values = rng.exponential(1.0, (1500, 2000))
    rho2 = s.best_rho2(1000, 2 * ALPHA)
    _, lows, _ = s.running_bounds(values, ALPHA, rho2, start=100, one_sided=True)
    assert (lows > 1.0).any(axis=-1).mean() <= 0.07
    _, two, _ = s.running_bounds(values, ALPHA, s.best_rho2(1000, ALPHA), start=100)
    assert (lows[:, 1000] > two[:, 1000]).all()


def ramp(rng, runs, n, base, effect):
    """Units while the share goes 10, 25, 50 %: arms, outcomes, propensities."""
    share = np.repeat([0.1, 0.25, 0.5], n // 3)
    candidate = rng.random((runs, n)) < share
    liked = rng.random((runs, n)) < base + effect * candidate
    return candidate, liked.astype(float), np.broadcast_to(share, (runs, n))


def test_a_contrast_stays_unbiased_while_the_share_is_ramped_up_and_the_rate_drifts():
    rng = np.random.default_rng(5)
    n = 3000
    base = np.linspace(0.4, 0.8, n)  # the rate rises with time: comparing all of either arm would credit the candidate
    candidate, liked, share = ramp(rng, 800, n, base, 0.0)
    naive = (liked * candidate).sum(-1) / candidate.sum(-1) - (liked * ~candidate).sum(-1) / (~candidate).sum(-1)
    values = s.contrast(candidate, liked, share)
    assert naive.mean() > 0.04
    assert abs(values.mean()) < 0.004
    _, lows, highs = s.running_bounds(values, ALPHA, s.best_rho2(n, ALPHA), start=400)
    assert ever_outside(lows, highs, 0.0) <= 0.05 + 0.02


def test_the_difference_finds_an_effect_and_says_nothing_before_the_start():
    rng = np.random.default_rng(6)
    candidate, liked, share = ramp(rng, 1, 6000, 0.5, 0.15)
    found = s.difference(candidate[0], liked[0], share[0], alpha=ALPHA, planned=6000, start=30)
    assert found.low > 0 and found.low < 0.15 < found.high and found.n == 6000
    early = s.difference(candidate[0, :100], liked[0, :100], share[0, :100], alpha=ALPHA, planned=6000, start=30)
    assert early.low == -math.inf and math.isnan(early.value)


def test_the_ratio_test_is_the_bayes_factor_by_hand():
    # Dirichlet(50, 50) against a fair coin, 3 of one and 1 of the other.
    by_hand = (50 * 51 * 52 * 50) / (100 * 101 * 102 * 103) / 0.5**4
    found = s.ratio_log_e([3, 1], [0.5, 0.5], concentration=100)
    assert math.exp(found) == pytest.approx(by_hand)


def test_the_ratio_test_seldom_errs_and_finds_a_small_bias():
    rng = np.random.default_rng(7)
    n = 4000

    def log_e(rate):
        inside = np.cumsum(rng.random((1000, n)) < rate, axis=-1)
        return s.ratio_log_e(np.stack([inside, np.arange(1, n + 1) - inside], -1), [0.1, 0.9]).max(axis=-1)

    assert (log_e(0.10) >= math.log(1 / ALPHA)).mean() <= 0.05
    assert (log_e(0.14) >= math.log(1 / 0.001)).mean() > 0.95


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
