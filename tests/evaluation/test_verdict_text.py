"""The verdict in sentences."""

import json
import re

from evaluations import FAST, LABELS, cards_evaluation, classification, labels_evaluation, row
from verdicts import scored

from tuneloop.evaluation.alternatives.classifiers import TFIDF
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.metrics.claims import outcome_words
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.records.completion import Completion


def words(tuned, **others):
    names = {"zero": "zero-shot", "few": "few-shot", "tfidf": "tf-idf + logistic regression"}
    evaluations = {names[key]: value for key, value in others.items()}
    comparisons = [c for name, other in evaluations.items() for c in compare(name, other, "tuned", tuned)]
    everyone = {**evaluations, "tuned": tuned}
    return " ".join(verdict_in_words(decide(everyone, comparisons, "tuned"), everyone))


def test_a_better_model_is_set_against_the_best_prompt():
    text = words(labels_evaluation(300, 0.95), zero=labels_evaluation(300, 0.3, 1), few=labels_evaluation(300, 0.6, 2))
    assert text.startswith("Better than few-shot: ") and "few-shot, the best prompt, has" in text
    assert "p < 0.001" in text
    assert "more test rows" not in text


def test_a_tie_with_the_cheap_alternative_is_said_plainly():
    text = words(
        labels_evaluation(300, 0.9, 1), few=labels_evaluation(300, 0.5, 2), tfidf=labels_evaluation(300, 0.9, 3)
    )
    assert "-0.7 points" in text and "is ahead, though these rows can't prove it. Use that one" in text
    text = words(labels_evaluation(300, 0.9, 3), tfidf=labels_evaluation(300, 0.9, 1))
    assert "No proven gain over tf-idf" in text and "Use tf-idf + logistic regression unless" in text


def test_a_cheap_alternative_that_wins_is_said_plainly():
    text = words(labels_evaluation(300, 0.6, 1), tfidf=labels_evaluation(300, 0.95, 2))
    assert "Worse than tf-idf" in text and "Use tf-idf + logistic regression: it trains in seconds" in text


def test_too_few_rows_are_said_with_a_number():
    def with_right(count):
        rows, _ = classification(40, 1.0)
        answers = [Completion(r.label if i < count else "") for i, r in enumerate(rows)]
        return evaluate(rows, answers, task="classification", labels=LABELS, config=FAST, seed=0)

    text = words(with_right(32), few=with_right(28))  # 4 rows apart: p = 0.125
    assert "No proven gain over few-shot" in text
    assert "more test rows would show it" in text


def test_a_worse_model_is_not_recommended():
    text = words(labels_evaluation(300, 0.3, 1), few=labels_evaluation(300, 0.9, 2))
    assert text.startswith("Worse than few-shot") and "Don't use" in text


def test_a_loss_on_another_metric_is_told_in_that_metric_and_no_gain_without_evidence_stands_for_it():
    labels = ["ham"] * 48 + ["spam", "billing", "other"] * 4
    tuned = scored(labels, ["ham"] * 60, primary="accuracy")
    few = scored(labels, ["spam"] * 8 + labels[8:], primary="accuracy")
    everyone = {"few-shot calibrated": few, "tuned": tuned}
    verdict = decide(everyone, compare("few-shot calibrated", few, "tuned", tuned), "tuned")
    sentences = verdict_in_words(verdict, everyone)
    assert verdict.outcome == "worse" and list(verdict.weakest.lost) == ["macro_f1"]
    assert re.search(
        r"^Worse than few-shot calibrated: it lost macro-F1 \(-0\.\d+, 95 % interval -0\.\d+ to -0\.\d+, p",
        sentences[0],
    )
    assert outcome_words(verdict.weakest, "accuracy") == "worse by macro-F1"
    (decides,) = re.findall(r"accuracy 80\.0 %, (-6\.7 points) on 60 test rows", sentences[0])
    assert not any(decides in sentence and "worse" in sentence for sentence in sentences[1:]), sentences
    third = scored(labels, labels, primary="accuracy")  # the first sentence is about another one
    everyone[TFIDF] = third
    pairs = adjusted([c for n in ("few-shot calibrated", TFIDF) for c in compare(n, everyone[n], "tuned", tuned)], tuned)  # fmt: skip
    several = verdict_in_words(decide(everyone, pairs, "tuned"), everyone)
    (sentence,) = [s for s in several[1:] if "few-shot calibrated" in s]
    assert several[0].startswith(f"Worse than {TFIDF}")
    assert sentence.startswith("It is worse than the best prompt, few-shot calibrated (86.7 %): it lost macro-F1 (-0.")


def test_each_fact_of_a_verdict_is_said_once():
    tuned = labels_evaluation(300, 0.6, 1)
    text = words(tuned, few=labels_evaluation(300, 0.3, 2), tfidf=labels_evaluation(300, 0.95, 2))
    for pattern in (r"accuracy \d", r"\d test rows", r"tf-idf \+ logistic regression, the best"):
        assert len(re.findall(pattern, text)) == 1, text
    amounts = re.findall(r"[+-]\d+\.\d points", text)
    assert len(amounts) == len(set(amounts)) == 2


def test_comparisons_may_stand_the_other_way_round():
    tuned, few = labels_evaluation(300, 0.95), labels_evaluation(300, 0.6, 2)
    evaluations = {"tuned": tuned, "few-shot": few}
    there = decide(evaluations, compare("few-shot", few, "tuned", tuned), "tuned")
    assert there == decide(evaluations, compare("tuned", tuned, "few-shot", few), "tuned")
    assert there.outcome == "better"


def test_words_for_fields_and_without_baselines():
    alone = {"tuned": cards_evaluation()}
    sentences = verdict_in_words(decide(alone, [], "tuned"), alone)
    assert "queue accuracy 66.7 %" in sentences[0]
    assert "4 of its 12 answers" in sentences[-1]


def test_an_answer_in_the_first_sentence_is_whole_or_named_and_never_broken_json():
    record = {"queue": "access", "note": "the customer can not sign in since monday", "priority": 3, "tags": ["a"] * 30}
    answers = {
        json.dumps({"queue": "access", "open": True}): 'always answering {"queue": "access", "open": true}:',
        json.dumps(record): "always answering the same object of 4 fields:",
        json.dumps({"note": "x" * 99}): "always answering the same object of 1 field:",
        json.dumps(list(range(50))): "always answering a list of 50 values:",
        "Queue: access\nIssue: " + "word " * 30: 'always answering "Queue: access Issue: word word',
    }
    for answer, expected in answers.items():
        rows = [row(i, answer if i % 2 else f'{{"n": {i}}}') for i in range(30)]
        always, tuned = (
            evaluate(rows, [Completion(text)] * 30, task="generation", labels=None, config=FAST, seed=0)
            for text in (answer, "no")
        )
        everyone = {MAJORITY: always, "tuned": tuned}
        verdict = decide(everyone, compare(MAJORITY, always, "tuned", tuned), "tuned")
        first = verdict_in_words(verdict, everyone)[0]
        assert expected in first, first
        assert "\n" not in first and first.count("{") == first.count("}"), first
