"""Two systems on the same rows: paired tests, adjusted for their number."""

import math

import pytest
from evaluations import FAST, LABELS, cards, cards_evaluation, classification, labels_evaluation, row

from tuneloop.core.errors import UserError
from tuneloop.core.stats.intervals import holm
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.records.completion import Completion


def test_a_clear_gain_is_better_and_turned_round_worse():
    a, b = labels_evaluation(200, 0.6, seed=1), labels_evaluation(200, 0.9, seed=2)
    there = {c.metric: c for c in compare("few-shot", a, "tuned", b)}
    back = {c.metric: c for c in compare("tuned", b, "few-shot", a)}
    assert there.pop("invalid_rate").verdict == "not enough evidence"  # neither has any
    assert {c.verdict for c in there.values()} == {"better"}
    del back["invalid_rate"]
    assert {c.verdict for c in back.values()} == {"worse"}
    accuracy = there["accuracy"]
    assert accuracy.test == "exact McNemar"
    assert accuracy.delta == pytest.approx(b.metrics["accuracy"].value - a.metrics["accuracy"].value)
    assert accuracy.low < accuracy.delta < accuracy.high
    assert there["macro_f1"].test == "paired bootstrap"
    assert there["macro_f1"].p >= 1 / 201


def test_the_same_answers_do_not_differ():
    a = cards_evaluation()
    for c in compare("a", a, "b", a):
        assert (c.delta, c.p, c.verdict) == (0, 1, "not enough evidence")


def test_pairing_goes_by_id_not_by_order():
    a = labels_evaluation(60, 0.6, seed=1)
    rows, answers = classification(60, 0.8, seed=2)
    straight = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    turned = evaluate(rows[::-1], answers[::-1], task="classification", labels=LABELS, config=FAST, seed=0)
    assert compare("a", a, "b", straight) == compare("a", a, "b", turned)


def test_other_rows_or_other_references_are_refused():
    a = labels_evaluation(20, 0.6)
    with pytest.raises(UserError, match="different rows"):
        compare("a", a, "b", labels_evaluation(21, 0.6))
    rows, answers = classification(20, 0.6)
    rows[3] = row(3, "label_0", "label_0")
    other = evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)
    with pytest.raises(UserError, match="different reference"):
        compare("a", a, "b", other)


def test_perplexity_is_carried_and_not_compared():
    rows, answers = cards(4)
    result = evaluate(
        rows, answers, task="chat", labels=None, config=FAST, seed=0, measured=AnswerStats(perplexity=3.5)
    )
    assert result.metrics["perplexity"].value == 3.5
    assert math.isnan(result.metrics["perplexity"].low)
    assert "perplexity" not in {c.metric for c in compare("a", result, "b", result)}


def test_p_values_are_adjusted_and_the_metric_that_decides_is_not():
    a, b = labels_evaluation(120, 0.7, seed=1), labels_evaluation(120, 0.8, seed=2)
    found = {c.metric: c for c in compare("a", a, "b", b)}
    assert found["accuracy"].p_holm == found["accuracy"].p
    others = [c for c in found.values() if c.metric != "accuracy" and c.test != "exact McNemar"]
    assert all(c.p_holm >= c.p for c in others) and any(c.p_holm > c.p for c in others if c.p < 1)
    assert found["micro_f1"].p_holm == found["accuracy"].p_holm  # the same number by definition


def test_several_systems_are_adjusted_for_together():
    base = labels_evaluation(200, 0.7, seed=1)
    pairs = [c for k in (2, 3, 4) for c in compare("base", base, f"m{k}", labels_evaluation(200, 0.75, seed=k))]
    first = [c.p for c in pairs if c.metric == "accuracy"]
    assert len(first) == 3
    together = [c for c in adjusted(pairs, base) if c.metric == "accuracy"]
    assert [c.p_holm for c in together] == pytest.approx(holm(first))


def test_effects_and_what_these_rows_could_have_shown_and_how_many_would():
    a, b = labels_evaluation(60, 0.75, seed=1), labels_evaluation(60, 0.85, seed=5)
    c = {c.metric: c for c in compare("a", a, "b", b)}["accuracy"]
    assert c.verdict == "not enough evidence" and c.more_rows and c.more_rows > 0
    assert c.effect_kind == "Cohen's h" and (c.effect > 0) == (c.delta > 0)
    assert c.detectable == pytest.approx((1.96 + 0.8416) * (c.high - c.low) / (2 * 1.96), rel=1e-3)
    sure = {c.metric: c for c in compare("a", labels_evaluation(300, 0.3), "b", labels_evaluation(300, 0.9, 1))}
    assert sure["accuracy"].verdict == "better" and sure["accuracy"].more_rows is None


def test_fewer_invalid_answers_and_less_calibration_error_are_better():
    rows, _ = classification(200, 1.0)

    def made(wrong, sure):
        texts = ["?" if i % wrong == 0 else r.label for i, r in enumerate(rows)]
        answers = [
            Completion(t, label_scores={r.label: math.log(sure), "x": math.log(1 - sure)})
            for t, r in zip(texts, rows, strict=True)
        ]
        return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)

    found = {c.metric: c for c in compare("a", made(2, 0.99), "b", made(50, 0.97))}
    assert found["invalid_rate"].delta < 0 and found["invalid_rate"].verdict == "better"
    assert found["ece"].delta < 0 and found["ece"].verdict == "better"
