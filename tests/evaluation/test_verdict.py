"""The verdict: what may be called better, and what the first sentence has to say."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import CARD, HAM, flipped, rows_of, scored, verdict_of, write

from tuneloop.core.stats.intervals import NOT_ENOUGH
from tuneloop.evaluation.alternatives.classifiers import TFIDF
from tuneloop.evaluation.alternatives.constants import MAJORITY, strongest_constant
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.verdict import FROM_WORST, best_odds, decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

TURNED = {"better": "worse", "promising": "worse", "mixed": "mixed", NOT_ENOUGH: NOT_ENOUGH}


def cards(queue_wrong: float, text: str, seed: int) -> ScoredAnswers:
    rng, queues = random.Random(seed), ["cards", "loans", "transfers"]
    rows, answers = [], []
    for i in range(120):
        queue, said = queues[i % 3], "the customer's payment of last week has not arrived yet, please trace it"
        turns = [
            {"role": "user", "content": f"text {i}"},
            {"role": "assistant", "content": f"Queue: {queue}\nIssue: {said} {i}"},
        ]
        rows.append(Row(f"r{i}", turns))
        given = queue if rng.random() >= queue_wrong else queues[(i + 1) % 3]
        answers.append(Completion(f"Queue: {given}\nIssue: {text or said} {i}"))
    config = EvaluateConfig(bootstrap=500, embedding=False, fields=CARD)
    return evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)


def test_better_needs_every_alternative() -> None:
    tuned, few = scored(HAM, flipped(HAM, 0.02, 1)), scored(HAM, flipped(HAM, 0.5, 2))
    majority = scored(HAM, ["ham"] * len(HAM))
    found, text = verdict_of(tuned, few=few, majority=majority)
    assert found.outcome == "better"
    assert text[0].startswith('Better than few-shot and always answering "ham": macro-F1')
    tie, text = verdict_of(tuned, few=few, majority=majority, tfidf=scored(HAM, flipped(HAM, 0.02, 1)))
    assert tie.outcome == NOT_ENOUGH and tie.against == TFIDF
    assert "It is better than few-shot" in text[0]


def test_a_gain_in_the_queue_with_a_loss_in_the_text_is_mixed_and_says_both() -> None:
    found, text = verdict_of(cards(0.05, "payment missing", 1), few=cards(0.6, "", 2))
    assert found.outcome == "mixed"
    standing = found.standings[0]
    assert standing.gained["queue.accuracy"] > 0 and standing.lost["chrf"] < 0
    assert text[0].startswith("Mixed against few-shot: it gained queue accuracy")
    assert "but lost" in text[0] and "chrF (-" in text[0]


def test_a_loss_with_no_gain_is_worse_even_where_what_decides_is_undecided() -> None:
    found, text = verdict_of(cards(0.3, "payment missing", 1), few=cards(0.3, "", 1))
    assert found.outcome == "worse"
    assert text[0].startswith("Worse than few-shot: it lost") and "chrF" in text[0]


def test_sixteen_rows_that_just_pass_are_promising_and_the_words_say_what_would_settle_it() -> None:
    labels = ["a", "b"] * 8
    few = ["a" if i < 12 else labels[i] for i in range(16)]  # 6 wrong
    found, sentence = verdict_of(scored(labels, labels), few=scored(labels, few))
    assert found.standings[0].p == pytest.approx(0.03125)
    assert found.outcome == "promising"
    assert sentence[0].startswith("Promising, not proven")
    text = " ".join(sentence)
    assert "on 16 test rows" in text and "weak evidence" in text and "at most 3 to 1" in text
    assert "It rests on 6 rows: tuned alone is right on 6, few-shot alone on 0" in text
    assert "80 % power" in text and found.standings[0].rows_needed == 33


def test_the_best_odds_of_a_p_value_are_those_of_the_paper() -> None:
    """Sellke, Bayarri & Berger 2001, table 1: p = 0.05 -> 0.407, 0.01 -> 0.125, 0.001 -> 0.0184."""
    assert [1 / best_odds(p) for p in (0.05, 0.01, 0.001)] == pytest.approx([0.407, 0.125, 0.0188], abs=6e-4)
    assert best_odds(0.5) == 1 and best_odds(math.nan) == 1


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.floats(0.5, 0.95), st.integers(8, 80))
def test_better_is_never_said_without_the_metric_that_decides_or_with_a_sure_loss(
    seed: int, wrong_a: float, wrong_b: float, share: float, n: int
) -> None:
    labels = ["ham" if i < share * n else "spam" for i in range(n)]
    few = scored(labels, flipped(labels, wrong_a, seed), bootstrap=200)
    tuned = scored(labels, flipped(labels, wrong_b, seed + 1), bootstrap=200)
    found, text = verdict_of(tuned, few=few)
    there = found.standings[0]
    if found.outcome in ("better", "promising"):
        assert tuned.primary in there.gained and not there.lost and there.gain > 0 and there.p_holm < 0.05
        assert there.p < 0.005 or found.outcome == "promising"
    if found.outcome == "mixed":
        assert there.gained and there.lost
    everyone = {"few-shot": few, "tuned": tuned}
    back = decide(everyone, adjusted(compare("few-shot", few, "tuned", tuned), few), "few-shot")
    if found.outcome in TURNED:
        seen = (
            "worse" if found.outcome == NOT_ENOUGH and there.gained else TURNED[found.outcome]
        )  # a sure loss is a loss
        assert back.outcome == seen
    assert back.standings[0].gain == pytest.approx(-there.gain)
    for label in found.never:
        assert label in text[0] or len(found.never) == len(set(labels)) - 1


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_a_further_alternative_never_makes_a_gain_that_was_none(seed: int, wrong: list[float]) -> None:
    labels = ["a", "b"] * 30
    tuned, few, tfidf = (scored(labels, flipped(labels, w, seed + i), bootstrap=200) for i, w in enumerate(wrong))
    item, _ = verdict_of(tuned, few=few)
    two, _ = verdict_of(tuned, few=few, tfidf=tfidf)
    worst_of_two = min((s.outcome for s in two.standings), key=FROM_WORST.index)
    assert two.outcome == worst_of_two
    if two.outcome in ("better", "promising"):
        assert item.metric in item.standings[0].gained
    # A loss may become unsure with a further alternative: Holm asks more of each of several comparisons.
    before, now = item.standings[0], next(s for s in two.standings if s.against == item.standings[0].against)
    assert set(now.lost) <= set(before.lost) and set(now.gained) <= set(before.gained)


def test_gains_are_positive_for_the_better_side_also_where_less_is_better() -> None:
    labels = ["a", "b"] * 30
    few = ["?" if i % 2 else label for i, label in enumerate(labels)]
    found, _ = verdict_of(
        scored(labels, labels, primary="invalid_rate"), few=scored(labels, few, primary="invalid_rate")
    )
    assert found.metric == "invalid_rate" and found.outcome == "better" and found.standings[0].gain == 0.5


def test_rows_of_a_validation_split_are_called_so() -> None:
    tuned = scored(["a", "b"] * 3, ["a", "b"] * 3)
    found = decide({"tuned": tuned}, [], "tuned")
    assert "6 validation rows" in verdict_in_words(found, {"tuned": tuned}, split="val")[0]
    assert "6 rows" in verdict_in_words(found, {"tuned": tuned}, split="answers.jsonl")[0]


def test_macro_f1_finds_nothing_in_a_handful_of_rows() -> None:
    labels = ["ham"] * 12 + ["spam"] * 4
    few = ["ham"] * 15 + ["spam"]  # 3 rows apart
    pair = {c.metric: c for c in compare("few-shot", scored(labels, few), "tuned", scored(labels, labels))}["macro_f1"]
    assert pair.p >= 0.25 and pair.verdict == NOT_ENOUGH


def test_a_few_rows_that_differ_are_said_to_prove_nothing_and_the_better_one_is_still_recommended() -> None:
    labels = ["ham"] * 55 + ["spam"] * 5
    found, sentence = verdict_of(scored(labels, ["ham"] * 60), tfidf=scored(labels, labels))
    assert found.outcome == NOT_ENOUGH and found.standings[0].apart == 5
    text = " ".join(sentence)
    assert "is ahead, though these rows can't prove it" in text and "ties" not in text
    assert "The two differ on 5 rows only" in text and "about 48 more test rows" in text  # 9 that differ, of 108


@pytest.mark.parametrize("rows", [24, 60])
def test_intervals_and_p_values_of_a_verdict_agree_and_say_what_they_are_corrected_for(rows: int) -> None:
    labels = (["flight"] * 8 + ["fare", "airline"]) * 6
    tuned = scored(labels[:rows], flipped(labels[:rows], 0.3, 1))
    others = {
        f"few-shot {i}": scored(labels[:rows], flipped(labels[:rows], wrong, i))
        for i, wrong in enumerate((0.1, 0.4, 0.5, 0.9))
    }
    pairs = adjusted([c for name, other in others.items() for c in compare(name, other, "tuned", tuned)], tuned)
    assert pairs
    for c in pairs:
        if c.p == c.p:
            assert (c.p < 0.05) == (c.low > 0 or c.high < 0), c
            assert (c.p_holm < 0.05) == (c.low_holm > 0 or c.high_holm < 0), c
            assert c.low_holm <= c.low <= c.delta <= c.high <= c.high_holm, c
    found, text = verdict_of(tuned, **others)
    assert found.weakest is not None and found.weakest.tests == 4
    assert "both corrected for 4 comparisons (Holm)" in text[0]
    alone, text = verdict_of(tuned, few=others["few-shot 3"])
    assert alone.weakest is not None and alone.weakest.tests == 1 and "corrected" not in text[0]


def test_always_one_label_against_a_model_that_is_never_right_is_surely_better_by_macro_f1() -> None:
    """Draws of macro-F1 are skewed where a resample lacks rare labels; that must not hide a gain on 33 rows against none."""
    labels = ["flight"] * 34 + ["airline", "number", "restriction", "both", "fare", "ground"]
    pairs = compare(
        "zero-shot", scored(labels, ["airline"] * 34 + ["flight"] * 6), "tuned", scored(labels, ["flight"] * 40)
    )
    pair = next(c for c in pairs if c.metric == "macro_f1")
    assert pair.p < 0.005 and pair.low > 0 and pair.verdict == "better"


def test_a_model_that_answers_nearly_all_rows_alike_is_described_by_its_answer() -> None:
    labels = ["flight"] * 34 + ["airline", "number", "restriction", "both", "fare", "ground"]
    _, text = verdict_of(scored(labels, ["flight"] * 39 + ["airline"]), tfidf=scored(labels, labels))
    assert 'it answers "flight" to 39 of the 40 rows' in text[0] and "never gives" not in text[0]


def test_a_run_that_ties_the_most_frequent_label_says_so_in_the_title_and_boasts_of_no_prompt() -> None:
    labels = ["flight"] * 19 + ["a", "b", "c", "d", "e"]
    tuned = scored(labels, [*["flight"] * 18, "a", "a", *["flight"] * 4], primary="accuracy")
    always, few = scored(labels, ["flight"] * 24, primary="accuracy"), scored(labels, ["a"] * 24, primary="accuracy")
    tfidf = scored(labels, ["flight"] * 19 + ["a", "b", "c", "d", "flight"], primary="accuracy")
    everyone = {"few-shot": few, MAJORITY: always, "tf-idf + logistic regression": tfidf}
    found, text = verdict_of(tuned, **everyone)
    assert found.against == "tf-idf + logistic regression" and found.best_of("constant").gain == 0
    assert 'and no better than always answering "flight" (79.2 %)' in text[0]
    assert "It is better than" not in text[0]


def test_a_model_that_finds_the_rare_label_is_better_than_always_the_other(tmp_path: Path) -> None:
    labels = ["ham"] * 135 + ["spam"] * 13
    answers = ["spam" if i % 11 == 0 else "ham" for i in range(135)] + ["spam"] * 13
    found, _ = verdict_of(scored(labels, answers), majority=scored(labels, ["ham"] * 148))
    assert found.outcome == "better"


def test_the_majority_class_is_that_of_the_training_labels() -> None:
    found = strongest_constant(rows_of(["b", "a", "b", "a", "c"]), "classification", EvaluateConfig(), "accuracy")
    assert found is not None
    assert found.answer.text == "a"  # of equally frequent ones the first
    assert sum(math.exp(x) for x in (found.answer.label_scores or {}).values()) == pytest.approx(1)
    assert strongest_constant([], "classification", EvaluateConfig(), "accuracy") is None


def test_eval_json_holds_the_verdict_beside_what_it_held_before(tmp_path: Path) -> None:
    ham = scored(HAM, ["ham"] * len(HAM))
    manifest = write(tmp_path, scored(HAM, flipped(HAM, 0.02, 1)), {MAJORITY: ham})
    verdict = manifest["verdict"]
    assert isinstance(verdict, dict) and isinstance(manifest["words"], list)
    assert verdict["sentence"] == manifest["words"][0] and verdict["outcome"] == "better"
    assert verdict["standings"][0]["against"] == MAJORITY and verdict["standings"][0]["kind"] == "constant"
    comparison = manifest["comparisons"][0]  # type: ignore[index]
    assert {"a", "b", "metric", "delta", "low", "high", "p", "verdict", "p_holm", "rows_needed"} <= set(comparison)
    assert manifest["primary"] == "macro_f1" and manifest["row_metric"] == "accuracy"
