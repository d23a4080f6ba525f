import numpy as np
import pytest
from scipy.stats import chi2_contingency, ks_2samp

from tuneloop.improve.monitor import permutation as p


def test_p_values_are_those_of_the_exact_tests():
    rng = np.random.default_rng(0)
    before, now = rng.normal(size=300), rng.normal(0.25, size=80)
    assert p.numbers_differ(before, now, level=1e-3).p == pytest.approx(ks_2samp(before, now).pvalue, rel=0.6, abs=0.02)
    a, b = rng.choice(list("xyz"), 300), rng.choice(list("xyz"), 80, p=[0.45, 0.3, 0.25])
    counts = [[(side == name).sum() for name in "xyz"] for side in (a, b)]
    found = p.categories_differ(list(a), list(b), level=1e-3)
    assert found.p == pytest.approx(chi2_contingency(counts).pvalue, rel=0.5, abs=0.03)


def test_equal_numbers_step_together():
    found = p.numbers_differ(np.array([1.0] * 50 + [2.0] * 50), np.array([1.0] * 25 + [2.0] * 25), level=0.01)
    assert found.size == 0 and found.p > 0.9


@pytest.mark.parametrize("kind", ["vectors", "places", "numbers", "worse", "categories"])
def test_without_a_difference_alarms_are_as_rare_as_the_level_says(kind):
    rng = np.random.default_rng(1)
    alarms = 0
    for trial in range(200):
        if kind == "vectors":
            alarms += (
                p.vectors_differ(rng.normal(size=(150, 12)), rng.normal(size=(40, 12)), level=0.05, seed=trial).p
                <= 0.05
            )
        elif kind == "numbers":
            alarms += (
                p.numbers_differ(rng.exponential(size=150), rng.exponential(size=40), level=0.05, seed=trial).p <= 0.05
            )
        elif kind == "places":
            a, b = rng.normal(size=(150, 12)), rng.normal(size=(40, 12))
            a, b = a / np.linalg.norm(a, axis=1)[:, None], b / np.linalg.norm(b, axis=1)[:, None]
            alarms += p.places_differ(a, b, level=0.05, seed=trial).p <= 0.05
        elif kind == "worse":
            a, b = (rng.random(150) < 0.1).astype(float), (rng.random(40) < 0.1).astype(float)
            alarms += p.mean_rises(a, b, level=0.05, seed=trial).p <= 0.05
        else:
            a, b = rng.choice(list("abcdef"), 150), rng.choice(list("abcdef"), 40)
            alarms += p.categories_differ(list(a), list(b), level=0.05, seed=trial).p <= 0.05
    assert alarms / 200 <= 0.05 + 2.5 * (0.05 * 0.95 / 200) ** 0.5


def test_a_new_cluster_is_found_and_its_rows_stand_out():
    rng = np.random.default_rng(2)
    before, now = rng.normal(size=(400, 20)), rng.normal(size=(100, 20))
    now[:20, 3] += 4
    found = p.vectors_differ(before, now, level=1e-3)
    assert found.p < 1e-3 and found.size > 0.55
    assert (np.argsort(-found.foreign)[:15] < 20).mean() > 0.8


def test_a_small_p_value_is_reached_only_with_enough_divisions():
    before, now = np.zeros(200), np.ones(50)
    assert p.numbers_differ(before, now, level=1e-3).p < 1e-3 / 3
    assert p.numbers_differ(before, now, level=0.1).p < 0.1


def test_a_few_rows_in_a_place_of_their_own_are_found_where_a_mean_does_not_see_them():
    rng = np.random.default_rng(3)
    before, now = rng.normal(size=(1000, 64)), rng.normal(size=(300, 64))
    now[:15] = 0.6 * now[:15] + rng.normal(size=64)
    before, now = (some / np.linalg.norm(some, axis=1)[:, None] for some in (before, now))
    assert p.vectors_differ(before, now, level=1e-3).p > 1e-3
    found = p.places_differ(before, now, level=1e-3)
    assert found.p < 1e-3 and set(np.argsort(-found.foreign)[:10].tolist()) <= set(range(15))


def test_only_a_rise_of_the_mean_counts():
    low, high = np.repeat([1.0, 0.0], [10, 90]), np.repeat([1.0, 0.0], [20, 30])
    found = p.mean_rises(low, high, level=1e-3)
    assert found.p < 1e-3 and found.size == pytest.approx(0.3)
    assert p.mean_rises(high, low, level=1e-3).p > 0.9
