"""Evaluations of other tools on the items that they share; tests equal scipy's; what an evaluation can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from tuneloop.core.errors import UserError
from tuneloop.core.stats.intervals import PairedMean
from tuneloop.evaluation.foreign.align import Refereeing, as_scored, power_of, shared_items, with_absent
from tuneloop.evaluation.foreign.record import ForeignEvaluation, Observation, collected
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.records.evaluation import Comparison


def evaluation(name: str, observations: Sequence[Observation]) -> ForeignEvaluation:
    return collected(name, "table", "", observations)


def of_scores(name: str, scores: Sequence[float], **more: Sequence[float]) -> ForeignEvaluation:
    """Items with ids, inputs and a topic; each metric one value an item."""
    return evaluation(name, [
        Observation(f"i{k}", {"acc": score, **{n: v[k] for n, v in more.items()}}, f"question {k}", meta={"passage": k // 4})
        for k, score in enumerate(scores)
    ])  # fmt: skip


def compared(a: ForeignEvaluation, b: ForeignEvaluation, how: Refereeing = Refereeing()) -> dict[str, Comparison]:
    scored = as_scored([a, b], how)
    return {c.metric: c for c in compare(a.place, scored[a.place], b.place, scored[b.place])}


RNG = np.random.default_rng(3)
RIGHT = [(RNG.random(80) < share).astype(float).tolist() for share in (0.6, 0.75)]
GRADED = [np.clip(RNG.normal(mean, 0.2, 80), 0, 1).tolist() for mean in (0.5, 0.56)]


def test_right_and_wrong_are_compared_by_the_exact_test_of_scipy() -> None:
    pair = compared(of_scores("a", RIGHT[0]), of_scores("b", RIGHT[1]))["acc"]
    only_a = sum(x > y for x, y in zip(*RIGHT, strict=True))
    only_b = sum(x < y for x, y in zip(*RIGHT, strict=True))
    assert pair.test == "exact McNemar" and (pair.only_a, pair.only_b) == (only_a, only_b)
    assert pair.p == pytest.approx(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue, abs=1e-12)


def test_graded_scores_are_compared_by_the_paired_t_test_of_scipy() -> None:
    pair = compared(of_scores("a", GRADED[0]), of_scores("b", GRADED[1]))["acc"]
    theirs = stats.ttest_rel(GRADED[1], GRADED[0])
    interval = theirs.confidence_interval(0.95)
    assert pair.test == "paired t" and pair.p == pytest.approx(theirs.pvalue, abs=1e-12)
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high)) or pair.p >= 0.05


def test_items_of_one_source_are_compared_as_clusters() -> None:
    """The p-value and error are statsmodels 0.15's, of a constant with `cov_type="cluster"` and `use_t=True`."""
    gaps = [0.2, 0.1, -0.05, 0.3, 0.15, 0.0, -0.1, 0.25]
    clustered = PairedMean.of(gaps, [0, 0, 0, 1, 1, 2, 2, 3])
    sums = [sum(g - np.mean(gaps) for g in gaps[i:j]) / 8 for i, j in ((0, 3), (3, 5), (5, 7), (7, 8))]
    assert clustered.error == pytest.approx(math.sqrt(sum(s * s for s in sums) * 4 / 3)) and clustered.groups == 4
    assert clustered.p == pytest.approx(STATSMODELS_P, abs=1e-9)
    pair = compared(of_scores("a", RIGHT[0]), of_scores("b", RIGHT[1]), Refereeing(cluster="passage"))["acc"]
    assert pair.test == "paired t, robust to clusters"


STATSMODELS_P = 0.18065585754596816


def test_without_clusters_the_paired_mean_is_the_t_test() -> None:
    gaps = np.subtract(GRADED[1], GRADED[0])
    assert PairedMean.of(gaps).p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=1e-12)
    assert PairedMean.of([0.0, 0.0, 0.0]).p == 1.0 and PairedMean.of([1.0] * 6).p == 2 * 0.5**6
    assert math.isnan(PairedMean.of([]).p) and math.isnan(PairedMean.of([1.0]).p)


def test_epochs_are_averaged_by_item() -> None:
    repeated = [Observation(f"i{k}", {"acc": v}, f"question {k}", epoch=str(e))
                for k in range(80) for e, v in enumerate((RIGHT[0][k], GRADED[0][k]))]  # fmt: skip
    pair = compared(evaluation("a", repeated), of_scores("b", RIGHT[1]))["acc"]
    means = np.mean([RIGHT[0], GRADED[0]], axis=0)
    assert pair.p == pytest.approx(stats.ttest_rel(RIGHT[1], means).pvalue, abs=1e-12)


def test_several_metrics_are_corrected_together_and_a_loss_may_be_less() -> None:
    a = of_scores("a", RIGHT[0], f1=GRADED[0], val_loss=GRADED[1])
    b = of_scores("b", RIGHT[1], f1=GRADED[1], val_loss=GRADED[0])
    scored = as_scored([a, b])
    pairs = {c.metric: c for c in adjusted(compare("a", scored["a"], "b", scored["b"]), scored["a"])}
    assert pairs["f1"].tests == 2 and pairs["f1"].p_holm >= pairs["f1"].p
    assert {pairs["f1"].verdict, pairs["val_loss"].verdict} <= {"better", "not enough evidence"}
    assert scored["b"].primary == "acc"
    assert as_scored([a, b], Refereeing(metric="f1"))["b"].primary == "f1"


def test_items_are_aligned_by_input_where_ids_differ() -> None:
    other = evaluation("b", [Observation(f"x{k}", {"acc": v}, f"question {k}") for k, v in enumerate(RIGHT[1])])
    shared = shared_items([of_scores("a", RIGHT[0]), other])
    assert shared.by == "input" and len(shared.rows) == 80 and "aligned by their input" in shared.notes[0]


def test_unequal_sets_missing_scores_and_other_prompts_are_named() -> None:
    a, b = of_scores("a", RIGHT[0]), of_scores("b", [*RIGHT[1][:70], *[math.nan] * 3])
    changed = dict(b.items)
    changed["i5"] = of_scores("c", RIGHT[0][:6]).items["i5"]
    changed["i5"] = type(changed["i5"])(**{**vars(changed["i5"]), "key": "text:other"})
    scored = as_scored([a, ForeignEvaluation("b", "table", "", changed, [])])
    notes = " ".join(scored["b"].notes)
    assert "1 id has different prompts and is left out: i5" in notes
    assert "a has 7 items that not all have, left out: i73, i74, i75 ..." in notes
    assert "3 items have no score of acc in b and count as 0, the worst value: i70, i71, i72" in notes
    assert scored["a"].n == scored["b"].n == 72


def test_what_shares_nothing_is_refused() -> None:
    a = of_scores("a", RIGHT[0])
    others = [Observation(f"i{k}", {"acc": 1.0}, f"another question {k}") for k in range(80)]
    with pytest.raises(UserError, match="The same ids mean different prompts: 80 of 80"):
        as_scored([a, evaluation("b", others)])
    apart = [Observation(f"x{k}", {"acc": 1.0}, f"another {k}") for k in range(80)]
    with pytest.raises(UserError, match="No item is shared"):
        as_scored([a, evaluation("b", apart)])
    renamed = [Observation(f"i{k}", {"match": 1.0}, f"question {k}") for k in range(80)]
    with pytest.raises(UserError, match="No metric is in all of them"):
        as_scored([a, evaluation("b", renamed)])
    with pytest.raises(UserError, match="No metric 'ac'"):
        as_scored([a, of_scores("b", RIGHT[1])], Refereeing(metric="ac"))


def test_power_before_running_agrees_with_what_a_second_system_then_shows() -> None:
    """Drawn again and again, a difference of the size that can be seen is found about four times in five."""
    rng, n = np.random.default_rng(0), 200
    power = power_of(as_scored([of_scores("a", rng.normal(0.5, 0.2, n).clip(0, 1).tolist())])["a"])
    seen = 0
    for _ in range(300):
        a, b = rng.normal(0.5, 0.2, n), rng.normal(0.5 + power.unrelated, 0.2, n)
        seen += stats.ttest_rel(b, a).pvalue < 0.05
    assert 0.7 < seen / 300 < 0.9 and power.alike == pytest.approx(power.unrelated * math.sqrt(0.2))
    assert power.items_for["0.01"] > power.items_for["0.02"] > power.items_for["0.05"]


def test_a_missing_score_is_a_failure_of_the_side_that_lacks_it() -> None:
    right = [*[1.0] * 60, *[0.0] * 20]
    b = [*[1.0] * 50, *[math.nan] * 30]  # no score where it would be wrong
    pair = compared(of_scores("a", right), of_scores("b", b))["acc"]
    assert pair.delta == pytest.approx(-10 / 80) and pair.compared == 80


def test_items_that_one_side_lacks_leave_its_loss_open() -> None:
    a, b = of_scores("a", [1.0] * 80), of_scores("b", [1.0] * 60)
    scored = as_scored([a, b])
    (pair,) = compare("a", scored["a"], "b", scored["b"])
    (whole,) = adjusted([with_absent(pair, [a, b])], scored["a"])
    assert adjusted([whole], scored["a"])[0].low_margin < -0.25 < -0.07 < pair.low_margin


def test_items_that_each_side_lacks_are_not_set_off_against_each_other() -> None:
    both = of_scores("both", [1.0] * 100).items
    a = ForeignEvaluation("a", "t", "", dict(list(both.items())[:80]), [])
    b = ForeignEvaluation("b", "t", "", dict(list(both.items())[20:]), [])
    scored = as_scored([a, b])
    (pair,) = compare("a", scored["a"], "b", scored["b"])
    assert adjusted([with_absent(pair, [a, b])], scored["a"])[0].low_margin < -0.25


def test_an_epoch_that_ended_in_an_error_is_a_failure() -> None:
    epochs = [Observation("i", {"acc": 1.0}, epoch="1"), Observation("i", {}, epoch="2", error="timeout")]
    again = [Observation("j", {}, epoch="1", error="timeout"), Observation("j", {"acc": 1.0}, epoch="1")]
    table = as_scored([evaluation("a", [*epochs, *again]), evaluation("b", [*epochs[:1], *again])])
    assert table["a"].row_scores["acc"] == [0.5, 1.0] and table["b"].row_scores["acc"] == [1.0, 1.0]


def test_percent_is_not_compared_with_shares() -> None:
    percent = of_scores("b", [100 * score for score in RIGHT[1]])
    with pytest.raises(UserError, match="acc goes up to 1 in a and to 100 in b"):
        as_scored([of_scores("a", RIGHT[0]), percent])


def test_identical_graded_scores_keep_a_width() -> None:
    pair = compared(of_scores("a", [0.5] * 2), of_scores("b", [0.5] * 2))["acc"]
    assert pair.low < -0.8 and pair.high > 0.8 and pair.verdict == "not enough evidence"
