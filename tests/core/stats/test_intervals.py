import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, roc_auc_score

from tuneloop.core.stats import intervals as u
from tuneloop.core.stats.intervals import mean_statistics
from tuneloop.evaluation.metrics.labels import label_statistics


def test_mcnemar_by_hand():
    # 1 against 5 discordant rows: 2 * (C(6,0) + C(6,1)) / 2**6
    assert u.mcnemar_p(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert u.mcnemar_p(5, 1) == u.mcnemar_p(1, 5)
    assert u.mcnemar_p(3, 3) == 1.0
    assert u.mcnemar_p(0, 0) == 1.0


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (7, 10), (181, 350)])
def test_wilson_is_scipys(right, n):
    theirs = binomtest(right, n).proportion_ci(method="wilson")
    assert u.wilson_interval(right, n) == pytest.approx((theirs.low, theirs.high))


def test_the_bootstrap_of_macro_f1_equals_scoring_each_resample():
    rng = np.random.default_rng(1)
    references = [str(x) for x in rng.integers(0, 4, 40)]
    predictions = [r if rng.random() < 0.7 else "3" for r in references]
    draws = u.bootstrap([label_statistics(references, predictions)], 40, resamples=30, seed=5)["macro_f1"]
    (weights,) = u.resample_weights(40, 30, 5)
    for value, weight in zip(draws, weights, strict=True):
        chosen = np.repeat(np.arange(40), weight.astype(int))
        refs, preds = [references[i] for i in chosen], [predictions[i] for i in chosen]
        assert value == pytest.approx(f1_score(refs, preds, average="macro", zero_division=0))


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    whole = np.concatenate(list(u.resample_weights(7, 50, 3)))
    monkeypatch.setattr(u, "_CELLS", 30)
    parts = list(u.resample_weights(7, 50, 3))
    assert len(parts) > 10
    assert np.array_equal(whole, np.concatenate(parts))
    assert (whole.sum(axis=1) == 7).all()


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        statistics = [mean_statistics({"x": list(rng.beta(2, 3, 60))})]
        draws = u.bootstrap(statistics, 60, resamples=300, seed=trial)["x"]
        low, high = u.bootstrap_interval(statistics[0].point_values()["x"], draws)
        covered += low <= 2 / 5 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_macro_f1_over_many_labels_is_covered_too():
    rng = np.random.default_rng(0)

    def drawn(n):
        references = rng.integers(0, 50, n)
        predictions = np.where(rng.random(n) < 0.85, references, rng.integers(0, 50, n))
        return label_statistics([str(x) for x in references], [str(x) for x in predictions])

    truth = 0.85 + 0.15 / 50  # all labels are alike, so each has this F1
    corrected = plain = 0
    for trial in range(100):
        statistics = drawn(500)
        draws = u.bootstrap([statistics], 500, resamples=200, seed=trial)["macro_f1"]
        low, high = u.bootstrap_interval(statistics.point_values()["macro_f1"], draws)
        corrected += low <= truth <= high
        plain += np.quantile(draws, 0.025) <= truth <= np.quantile(draws, 0.975)
    assert corrected >= 85
    assert corrected > plain


def test_an_interval_without_spread_is_the_value():
    assert u.bootstrap_interval(1.0, np.ones(100)) == (1.0, 1.0)


def test_paired_intervals_cover_the_true_difference():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        cells = rng.multinomial(80, [0.10, 0.22, 0.68])  # only a, only b, the same
        low, high = u.paired_shares_interval(int(cells[0]), int(cells[1]), 80)
        covered += low <= 0.12 <= high
    assert 0.92 <= covered / 500 <= 0.985


def test_the_paired_test_rarely_cries_wolf_and_sees_what_is_there():
    rng = np.random.default_rng(2)

    def p_of(shift: float, seed: int) -> float:
        a = rng.normal(0, 1, 50)
        b = a + rng.normal(shift, 0.5, 50)
        statistics = [mean_statistics({"x": list(b - a)})]
        draws = u.bootstrap(statistics, 50, resamples=300, seed=seed)["x"]
        return u.paired_bootstrap_p(statistics[0].point_values()["x"], draws)

    assert sum(p_of(0.0, i) < 0.05 for i in range(200)) / 200 < 0.12
    assert sum(p_of(0.4, i) < 0.05 for i in range(50)) / 50 > 0.95


def test_p_is_floored_and_one_when_nothing_differs():
    assert u.paired_bootstrap_p(5.0, np.full(99, 5.0)) == pytest.approx(1 / 100)
    assert u.paired_bootstrap_p(0.0, np.zeros(99)) == 1.0
    assert math.isnan(u.paired_bootstrap_p(0.1, np.empty(0)))


def test_one_row_has_no_interval():
    draws = u.bootstrap([mean_statistics({"x": [0.3]})], 1, resamples=100, seed=0)
    assert all(math.isnan(bound) for bound in u.bootstrap_interval(0.3, draws["x"]))


def test_verdict_needs_the_test_and_the_interval():
    assert u.verdict(0.01, 0.2, 0.01) == "better"
    assert u.verdict(-0.2, -0.01, 0.01) == "worse"
    assert u.verdict(0.01, 0.2, 0.06) == u.NOT_ENOUGH
    assert u.verdict(-0.01, 0.2, 0.04) == u.NOT_ENOUGH
    assert u.verdict(math.nan, math.nan, math.nan) == u.NOT_ENOUGH


def test_rows_to_settle_follow_the_root_law():
    # spread 0.05 at 100 rows, difference 0.05: (1.96 + 0.84)^2 = 7.85 times the rows
    half = u.Z95 * 0.05
    assert u.rows_to_settle(0.05, 0.05 - half, 0.05 + half, 100) == 785
    assert u.rows_to_settle(0.0, -0.1, 0.1, 100) is None
    assert u.rows_to_settle(0.05, math.nan, math.nan, 100) is None


def test_holm_by_hand_and_in_any_order():
    # Holm 1979: the smallest of four is multiplied by 4, the next by 3, never below the one before.
    assert u.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert u.holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = u.holm([math.nan, 0.02, 0.03])
    assert math.isnan(adjusted[0]) and adjusted[1:] == pytest.approx([0.04, 0.04])
    assert u.holm([]) == []


def test_single_rows_as_clusters_are_plain_rows():
    statistics = [mean_statistics({"x": [float(i % 3) for i in range(30)]})]
    plain = u.bootstrap(statistics, 30, resamples=50, seed=1)["x"]
    assert np.array_equal(plain, u.bootstrap(statistics, 30, resamples=50, seed=1, clusters=list(range(30)))["x"])
    assert u.cluster_numbers(["a", "b"]) is None
    assert u.cluster_numbers(["a", "b", "a"]) == [0, 1, 0]


def test_copies_of_rows_in_clusters_add_no_certainty():
    scores = [float(i % 2) for i in range(40)]
    once = u.bootstrap([mean_statistics({"x": scores})], 40, resamples=400, seed=1)["x"]
    copies = mean_statistics({"x": [s for s in scores for _ in range(5)]})
    many = u.bootstrap([copies], 200, resamples=400, seed=1, clusters=[i // 5 for i in range(200)])["x"]
    assert np.allclose(once, many)


def test_the_difference_of_groups_is_about_welchs_for_single_rows():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    scores, inside = rng.normal(size=400), np.arange(400) < 150
    scores[inside] += 0.3
    delta, low, high, p = u.robust_difference(scores, inside, np.arange(400))
    welch = ttest_ind(scores[inside], scores[~inside], equal_var=False)
    assert delta == pytest.approx(scores[inside].mean() - scores[~inside].mean())
    interval = welch.confidence_interval()
    assert (low, high) == pytest.approx((interval.low, interval.high), rel=0.02)
    assert p < 1e-4 and welch.pvalue < 1e-4


def test_the_difference_of_groups_knows_that_clusters_repeat_themselves():
    rng = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(200):
        value = np.repeat(rng.normal(size=40), 10)  # ten copies a cluster
        false_alarms += u.robust_difference(value, np.arange(400) < 200, np.arange(400) // 10)[3] < 0.05
    assert false_alarms < 24  # 5 % of 200 are 10; ignoring clusters gives about 100


def test_effect_sizes_by_hand():
    assert u.cohens_h(0.5, 0.5) == 0.0
    assert u.cohens_h(0.0, 1.0) == pytest.approx(math.pi)
    # mean 1, standard error 0.5, 16 rows: a row's deviation is 2
    assert u.standardised(1.0, 1 - 1.96 * 0.5, 1 + 1.96 * 0.5, 16) == pytest.approx(0.5, rel=1e-3)
    assert math.isnan(u.standardised(1.0, 1.0, 1.0, 16))


def test_a_detectable_difference_is_detected_four_times_in_five():
    n, spread = 400, 1.0
    error = spread / math.sqrt(n)
    smallest = u.detectable(-1.96 * error, 1.96 * error)
    rng = np.random.default_rng(0)
    found = np.mean(np.abs(rng.normal(smallest, error, 5000)) > 1.96 * error)
    assert found == pytest.approx(0.8, abs=0.02)


def test_rows_for_pairs_are_those_of_the_formula() -> None:
    """Connor 1987: d = 0.3, delta = 0.1, two-sided 5 %, 80 % power."""
    root = 1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.3 - 0.01)
    assert u.rows_for_pairs(10, 20, 100) == math.ceil((root / 0.1) ** 2) == 234
    assert u.rows_for_pairs(5, 5, 100) is None
    stricter = u.rows_for_pairs(10, 20, 100, level=0.005)
    assert stricter is not None and stricter > 234


def test_so_many_rows_really_show_the_difference_in_four_of_five_tests() -> None:
    rng = np.random.default_rng(0)
    n = u.rows_for_pairs(10, 25, 100)
    assert n is not None
    drawn = rng.multinomial(n, [0.10, 0.25, 0.65], size=800)
    found = np.mean([u.mcnemar_p(int(a), int(b)) < 0.05 for a, b, _ in drawn])
    assert 0.74 < found < 0.86


def test_few_rows_that_differ_bound_the_p_value() -> None:
    assert [u.least_p(n) for n in (0, 1, 2, 6)] == [1.0, 1.0, 0.5, 0.03125]
    assert all(
        u.least_p(u.least_apart(level)) < level <= u.least_p(u.least_apart(level) - 1) for level in (0.05, 0.005)
    )
    labels = ["a"] * 12 + ["b"] * 4
    right, wrong = (
        label_statistics(labels, labels, allowed=["a", "b"]),
        label_statistics(labels, ["a"] * 15 + ["b"], allowed=["a", "b"]),
    )
    assert right.layout == wrong.layout == ("a", "b")


def test_the_levels_of_holm_are_where_its_verdicts_turn() -> None:
    p_values = [0.02, 0.012, 0.2, math.nan]
    for p, adjusted, level in zip(p_values, u.holm(p_values), u.holm_levels(p_values), strict=True):
        if not math.isnan(p):
            assert (adjusted < 0.05) == (p < level) or p != min(p_values)
    assert u.holm_levels(p_values)[:3] == pytest.approx([0.025, 0.05 / 3, 0.05])


def test_the_interval_of_a_difference_and_its_p_value_agree_at_every_level() -> None:
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.5, 1.0, 2.0, 3.0, 9.0):
        draws = rng.normal(shift, 1, 500).round(2)  # rounded: some are exactly 0
        p = u.paired_bootstrap_p(shift, draws)
        for level in (0.5, 0.05, 0.0125, 0.004, min(p, 0.5), min(p, 0.5) + 1e-6):
            low, high = u.paired_bootstrap_interval(shift, draws, level=level)
            assert low <= shift <= high
            if level > 1 / 501:  # finer than the draws tell
                assert (p < level) == (low > 0 or high < 0), (shift, level, p, low, high)
    assert all(map(math.isnan, u.paired_bootstrap_interval(0.1, np.empty(0))))


def test_intervals_of_paired_shares_grow_with_the_confidence_asked_for() -> None:
    wide, narrow = (u.paired_shares_interval(3, 12, 60, level=level) for level in (0.01, 0.05))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_an_interval_is_widened_to_zero_only_where_it_lacks_it() -> None:
    assert u.with_zero((0.1, 0.3)) == (0.0, 0.3) and u.with_zero((-0.3, -0.1)) == (-0.3, 0.0)
    assert u.with_zero((-0.1, 0.2)) == (-0.1, 0.2)


def test_auroc_is_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(0, 9, 50) + 2.0, rng.integers(0, 9, 70) * 1.0
    wanted = roc_auc_score([1] * 50 + [0] * 70, np.concatenate([high, low]))
    assert u.auroc(high, low) == pytest.approx(wanted)
