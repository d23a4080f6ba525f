"""Labels that a model never gives are named in the first sentence."""

from __future__ import annotations

from verdicts import CARD, HAM, flipped, rows_of, scored, verdict_of

from tuneloop.core.stats.intervals import NOT_ENOUGH
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.evaluate import evaluate
from tuneloop.evaluation.verdict import decide, verdict_in_words
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row


def test_a_model_that_answers_ham_to_everything_is_not_better_and_the_first_sentence_says_what_it_does() -> None:
    ham = ["ham"] * len(HAM)
    few = flipped(HAM, 0.6, 2)  # far below in accuracy and macro-F1
    found, text = verdict_of(scored(HAM, ham), few=scored(HAM, few), majority=scored(HAM, ham))
    assert found.outcome == NOT_ENOUGH and found.against == MAJORITY
    assert found.metric == "macro_f1" and found.only == "ham" and found.never == ["spam"]
    first = text[0].split(". ")[0].removesuffix(".")
    assert first.startswith('No proven gain over always answering "ham": macro-F1 0.462')
    assert "better than few-shot" not in text[0]  # true, and no merit of a model that has learned nothing
    assert first.endswith('and it answers "ham" to every row')
    assert any("has learned nothing that this test shows" in word for word in text)


def test_without_a_majority_baseline_the_first_sentence_still_says_it() -> None:
    ham = ["ham"] * len(HAM)
    _, text = verdict_of(scored(HAM, ham), few=scored(HAM, flipped(HAM, 0.6, 2)))
    assert 'it answers "ham" to every row' in text[0]


def test_one_label_of_several_that_is_never_given_is_named_with_its_share() -> None:
    labels = ["a", "b", "c", "d"] * 25
    answers = [label if label != "d" else "a" for label in labels]
    found, text = verdict_of(scored(labels, answers), few=scored(labels, flipped(labels, 0.7, 1)))
    assert found.never == ["d"] and found.only is None
    first = text[0].split(". ")[0]
    assert first.startswith("Better than few-shot but with a serious fault: accuracy 75.0 %, +")
    assert first.endswith('and it never answers "d" (25 % of the rows)')


def test_a_rare_label_that_is_never_given_is_named_and_no_serious_fault() -> None:
    labels = ["a", "b"] * 45 + ["c"] * 5
    answers = [label if label != "c" else "a" for label in labels]
    _, text = verdict_of(
        scored(labels, answers, primary="accuracy"), few=scored(labels, flipped(labels, 0.7, 1), primary="accuracy")
    )
    first = text[0].split(". ")[0]
    assert first.startswith("Better than few-shot: ") and first.endswith('but it never answers "c" (5.3 % of the rows)')


def test_the_value_of_a_field_that_is_never_given_is_said_too() -> None:
    queues = ["cards"] * 20 + ["loans"] * 20
    rows = rows_of([f"Queue: {q}\nIssue: {i}" for i, q in enumerate(queues)])
    rows = [Row(row.id, row.messages) for row in rows]
    config = EvaluateConfig(bootstrap=200, embedding=False, fields=CARD)
    answers = [Completion(row.answer.replace("loans", "cards")) for row in rows]
    result = evaluate(rows, answers, task="generation", labels=None, config=config, seed=0)
    assert result.primary == "queue.accuracy"
    found = decide({"tuned": result}, [], "tuned")
    assert found.never == ["loans"] and found.only == "cards"
    assert 'it answers "cards" to every row' in verdict_in_words(found, {"tuned": result})[0]


def test_answers_that_name_no_label_are_said_and_not_taken_for_the_one_that_does() -> None:
    labels = ["cards"] * 20 + ["loans"] * 20
    answers = ["cards", *["I am happy to help."] * 39]
    found, text = verdict_of(scored(labels, answers), few=scored(labels, flipped(labels, 0.2, 1)))
    assert found.never == ["loans"] and found.only is None
    assert "39 of its 40 answers name no label" in text[0]
