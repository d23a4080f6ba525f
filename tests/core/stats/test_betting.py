"""Bets on two arms: coverage from the first unit on in wild streams, power, and the same result in any portions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.stats import betting as b

ALPHA = 0.05
UP, DOWN = b.ArmClaim(1, ((0.7, 1.0), (0.3, 4.0))), b.ArmClaim(-1, ((0.7, 1.0), (0.3, 4.0)))


def proven(book: b.Book, claim: int) -> float:
    return float((book.log_e(claim) >= math.log(1 / ALPHA)).mean())


def least(runs: int) -> float:
    """What a share of 5 % stays below in all but one of a thousand simulations."""
    return ALPHA + 3.1 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


def shares_of(rng: np.random.Generator, kind: str, n: int) -> np.ndarray:
    steps = {"ramp": [0.02, 0.1, 0.5], "small": [0.02] * 3, "falling": [0.5, 0.25, 0.05], "wild": []}[kind]
    return rng.uniform(0.01, 0.99, n) if kind == "wild" else np.repeat(steps, n // 3)


@pytest.mark.parametrize("share", ["ramp", "small", "falling", "wild"])
@pytest.mark.parametrize("base", [0.02, 0.1, 0.6, 0.95, 0.98])
def test_neither_claim_is_ever_proven_more_often_than_alpha_where_the_arms_are_equal(base, share):
    rng = np.random.default_rng([int(1000 * base), len(share)])
    runs, n = 600, 1500
    p = np.broadcast_to(shares_of(rng, share, n), (runs, n))
    arms, liked = rng.random((runs, n)) < p, (rng.random((runs, n)) < base).astype(float)
    book = b.place_bets(b.open_book([UP, DOWN], runs, guess=0.6), arms, liked, p, 0.05)
    assert proven(book, 0) <= least(runs) and proven(book, 1) <= least(runs)


def drifting(rng: np.random.Generator, runs: int, n: int) -> np.ndarray:
    walk = np.cumsum(rng.normal(0, 0.05, (runs, n)), axis=1)
    return 1 / (1 + np.exp(-walk))


@pytest.mark.parametrize("kind", ["drift", "cycle", "clusters", "fractions"])
def test_the_draw_alone_guarantees_it_whatever_the_outcomes_do(kind):
    rng = np.random.default_rng(3)
    runs, n = 600, 1200
    outcomes = {
        "drift": lambda: rng.random((runs, n)) < drifting(rng, runs, n),
        "cycle": lambda: np.broadcast_to(np.arange(n) % 100 < 50, (runs, n)),
        "clusters": lambda: np.repeat(rng.random((runs, n // 40)) < 0.5, 40, axis=1),
        "fractions": lambda: rng.beta(0.2, 0.4, (runs, n)),
    }[kind]().astype(float)
    p = np.broadcast_to(shares_of(rng, "ramp", n), (runs, n))
    book = b.place_bets(b.open_book([UP, DOWN], runs, guess=0.5), rng.random((runs, n)) < p, outcomes, p, 0.05)
    assert proven(book, 0) <= least(runs) and proven(book, 1) <= least(runs)


def test_a_true_difference_is_proven_and_the_opposite_is_not():
    rng = np.random.default_rng(5)
    runs, n = 200, 6000
    p = np.full((runs, n), 0.5)
    arms = rng.random((runs, n)) < p
    liked = (rng.random((runs, n)) < 0.6 + 0.05 * arms).astype(float)
    book = b.place_bets(b.open_book([UP, DOWN], runs, guess=0.6), arms, liked, p, 0.05)
    assert proven(book, 0) > 0.9 and proven(book, 1) < 0.02
    assert book.difference.mean() == pytest.approx(0.05, abs=0.005)


def test_kinds_of_units_sharpen_the_guesses_and_prove_nothing_of_their_own():
    rng = np.random.default_rng(11)
    runs, n = 200, 1200
    kinds, p = rng.integers(0, 3, (runs, n)), np.full((runs, n), 0.5)
    rate, arms = np.array([0.02, 0.1, 0.8])[kinds], rng.random((runs, n)) < p
    equal = (rng.random((runs, n)) < rate).astype(float)
    better = (rng.random((runs, n)) < rate + 0.06 * arms).astype(float)

    def book(outcomes, known):
        return b.place_bets(b.open_book([UP, DOWN], runs, guess=0.3, kinds=3), arms, outcomes, p, 0.06, known)

    null, plain, whole = book(equal, kinds), book(better, None), book(better, kinds)
    assert proven(null, 0) <= least(runs) and proven(null, 1) <= least(runs)
    assert np.median(whole.log_e(0)) > 1.3 * np.median(plain.log_e(0))
    halves = b.open_book([UP, DOWN], runs, guess=0.3, kinds=3)
    for part in (slice(0, 400), slice(400, n)):
        halves = b.place_bets(halves, arms[:, part], better[:, part], p[:, part], 0.06, kinds[:, part])
    assert halves.log_e(0) == pytest.approx(whole.log_e(0))


def test_amounts_of_any_size_are_cut_off_and_rarely_err():
    rng = np.random.default_rng(7)
    runs, n = 600, 1500
    p = np.full((runs, n), 0.1)
    arms, logs = rng.random((runs, n)) < p, rng.standard_t(1.5, (runs, n)) + 7
    claim = b.ArmClaim(1, ((1.0, 1.0),), null=math.log(1.5))
    equal = b.place_bets(b.open_book([claim], runs, guess=None, reach=2.0), arms, logs, p, 0.25)
    worse = b.place_bets(b.open_book([claim], runs, guess=None, reach=2.0), arms, logs + 1.5 * arms, p, 0.25)
    assert proven(equal, 0) <= least(runs) and proven(worse, 0) > 0.9


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1), st.floats(0.01, 0.99)), min_size=1, max_size=30), st.data())
def test_portions_and_units_without_a_value_change_nothing(units, data):
    arms, outcomes, p = (np.array(column)[None] for column in zip(*units, strict=True))
    whole = b.place_bets(b.open_book([UP, DOWN], guess=0.5), arms.astype(bool), outcomes, p, 0.05)
    cut = data.draw(st.integers(0, len(units)))
    book = b.open_book([UP, DOWN], guess=0.5)
    for part in (slice(0, cut), slice(cut, None)):
        book = b.place_bets(book, arms[:, part].astype(bool), outcomes[:, part], p[:, part], 0.05)
    for claim in (0, 1):
        assert book.log_e(claim)[0] == pytest.approx(whole.log_e(claim)[0], abs=1e-9)
        assert math.isfinite(whole.log_e(claim)[0]) and whole.log_e(claim)[0] >= 0
    gaps = np.concatenate([outcomes, np.full_like(outcomes, np.nan)], axis=1)
    twice = np.concatenate([arms, arms], axis=1).astype(bool), gaps, np.concatenate([p, p], axis=1)
    assert b.place_bets(b.open_book([UP, DOWN], guess=0.5), *twice, 0.05).log_e(0)[0] == pytest.approx(
        whole.log_e(0)[0], abs=1e-9
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.lists(st.floats(0.01, 0.99), min_size=12, max_size=12))
def test_no_unit_has_a_gain_in_expectation_under_equal_arms(outcomes, p):
    """Over both arms of the last unit, each weighted by its chance, wealth is what it was: a martingale."""
    n = len(outcomes)
    past = np.zeros((1, n - 1), dtype=bool), np.array([outcomes[:-1]]), np.array([p[: n - 1]])
    before = b.place_bets(b.open_book([UP, DOWN], guess=0.5), *past, 0.05)
    last = np.array([[outcomes[-1]]]), np.array([[p[n - 1]]])
    for claim in (0, 1):
        after = [
            float(np.exp(b.place_bets(before, np.array([[arm]]), *last, 0.05).log_wealth[claim][0]).sum())
            for arm in (True, False)
        ]
        mean = p[n - 1] * after[0] + (1 - p[n - 1]) * after[1]
        assert mean == pytest.approx(float(np.exp(before.log_wealth[claim][0]).sum()), rel=1e-9)


def test_the_bounds_hold_the_truth_and_agree_with_the_claims():
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(60):
        p = np.full((1, 800), 0.3)
        arms = rng.random((1, 800)) < p
        liked = (rng.random((1, 800)) < 0.5 + 0.2 * arms).astype(float)
        low = b.bound(UP, (arms, liked, p), 0.05, ALPHA, guess=0.5)
        high = b.bound(DOWN, (arms, liked, p), 0.05, ALPHA, guess=0.5)
        book = b.place_bets(b.open_book([UP], guess=0.5), arms, liked, p, 0.05)
        assert (low > 0) == (proven(book, 0) == 1) and low < book.difference[0] < high
        wrong += not low < 0.2 < high
    assert wrong <= 8


def test_values_below_zero_are_proven_even_where_all_are_the_same():
    assert b.negative_mean_log_e([-1.0] * 20) > math.log(1 / ALPHA)
    assert b.negative_mean_log_e([1.0] * 20) < 0
    rng = np.random.default_rng(0)
    ever = [
        max(b.negative_mean_log_e(votes[:k]) for k in range(1, 150, 5))
        for votes in rng.choice([-1.0, 0, 1], (300, 150))
    ]
    assert np.mean(np.array(ever) >= math.log(1 / ALPHA)) <= least(300)


def test_an_excess_of_rare_events_is_found_and_a_tolerated_share_seldom_is():
    rng = np.random.default_rng(8)

    def log_e(rate: float, most: float = 1.0) -> np.ndarray:
        inside, weights = rng.random((2000, 200)) < rate, rng.uniform(most / 2, most, (2000, 200))
        return b.bet_on_rate(b.open_rate_book(2000), inside, weights, np.full((2000, 200), 0.2)).best

    needed = math.log(1 / ALPHA)
    assert (log_e(0.2) >= needed).mean() <= least(2000) and (log_e(0.1) >= needed).mean() <= 0.01
    assert (log_e(0.4) >= needed).mean() > 0.9


def test_an_excess_is_the_likelihood_ratio_by_hand():
    book = b.open_rate_book()
    once = b.bet_on_rate(book, np.array([[True]]), np.array([[1.0]]), np.array([[0.5]]))
    odds = [0.5 * ratio / (0.5 + 0.5 * ratio) / 0.5 for ratio in b.RATIOS]
    assert math.exp(once.best[0]) == pytest.approx(sum(odds) / len(odds))
    assert once.score[0] == 0.5
