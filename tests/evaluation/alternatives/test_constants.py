"""The strongest constant answer of each kind of task, and what it stops verdicts from claiming."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from verdicts import verdict_of

from tuneloop.evaluation.alternatives.constants import (
    Constant,
    candidate_answers,
    strongest_constant,
    usual_value,
    value_of,
)
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import deciding_metric
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.scoring import AnswerStats
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

WORDS = [
    "parcel",
    "late",
    "refund",
    "card",
    "blocked",
    "transfer",
    "loan",
    "invoice",
    "branch",
    "opening",
    "hours",
    "pin",
    "reset",
    "fee",
    "account",
    "closed",
]


def row(number: int, answer: Any, *, label: bool = False, **meta: Any) -> Row:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    turns: Any = [{"role": "user", "content": f"case {number}"}, {"role": "assistant", "content": text}]
    return Row(f"r{number}", turns, text if label else None, meta=meta)


def cards(rng: random.Random, i: int) -> Row:
    """Intents and slots, both often empty: the shape on which saying nothing has most fields right."""
    intents = [name for name, share in (("change", 0.3), ("cancel", 0.2), ("card", 0.15)) if rng.random() < share]
    slots = {"day": rng.choice(WORDS)} if rng.random() < 0.3 else {}
    return row(i, {"intents": intents, "slots": slots})


def nested(rng: random.Random, i: int) -> Row:
    lines = [{"item": rng.choice(WORDS[:4]), "n": rng.choice([1, 1, 2])} for _ in range(rng.randrange(3))]
    card: dict[str, Any] = {"customer": {"tier": rng.choice(["free", "free", "paid"]), "since": 2000 + i % 20}}
    card |= {"lines": lines, "total": round(rng.lognormvariate(3, 1), 2), "note": rng.choice(["", "", WORDS[i % 9]])}
    return row(i, card | ({"vat": "DE1"} if rng.random() < 0.3 else {}))


def prose(rng: random.Random, i: int) -> Row:
    return row(i, {"queue": rng.choice(["loans", "loans", "cards"]), "summary": " ".join(rng.choices(WORDS, k=12))})


def texts(rng: random.Random, i: int) -> Row:
    return row(
        i, f"Your {rng.choice(WORDS)} is being looked at, and we will write to you about the {rng.choice(WORDS)}."
    )


def few_texts(rng: random.Random, i: int) -> Row:
    return row(
        i, rng.choice(["We will call you back today.", "We will call you back today.", "Please visit a branch."])
    )


def other_script(rng: random.Random, i: int) -> Row:
    return row(
        i, rng.choice(["荷物は明日届きます。", "返品を受け付けました。", "担当者からご連絡します。"]) + str(i % 50)
    )


def calls(rng: random.Random, i: int) -> Row:
    if i % 12 == 0:
        return row(i, "There is nothing to call.")
    name = rng.choice(["search", "search", "book", "cancel"])
    return row(i, {"name": name, "arguments": {"query": rng.choice(WORDS), "limit": rng.choice([5, 5, 10])}})


def numbers(rng: random.Random, i: int) -> Row:
    return row(i, str(rng.choice([3, 3, 4, 7, 12])))


def labels(rng: random.Random, i: int) -> Row:
    return row(i, rng.choices(["ham", "spam", "other"], [8, 1, 1])[0], label=True)


def even_labels(rng: random.Random, i: int) -> Row:
    return row(i, rng.choice(["a", "b", "c"]), label=True)


def several_labels(rng: random.Random, i: int) -> Row:
    names = [name for name, share in (("late", 0.6), ("refund", 0.5), ("card", 0.1)) if rng.random() < share]
    return row(i, ", ".join(names) or "none", label=True, labels=names or ["none"])


def patterned(rng: random.Random, i: int) -> Row:
    return row(i, f"Queue: {rng.choice(['a', 'a', 'b'])}\nIssue: {rng.choice(WORDS)} {i}")


FIELDS = {"queue": r"^Queue: (.+)$", "issue": r"^Issue: (.+)$"}
KINDS: dict[str, tuple[Callable[[random.Random, int], Row], dict[str, Any], str]] = {
    "cards": (cards, {}, "filled_f1"),
    "nested cards": (nested, {}, "filled_f1"),
    "cards with prose": (prose, {}, "filled_f1"),
    "cards by fields": (cards, {"primary": "field_accuracy"}, "field_accuracy"),
    "cards by wholes": (cards, {"primary": "object_accuracy"}, "object_accuracy"),
    "texts": (texts, {}, "rougeL"),
    "few texts": (few_texts, {}, "rougeL"),
    "another script": (other_script, {}, "chrf"),
    "calls": (calls, {}, "filled_f1"),
    "numbers": (numbers, {}, "exact_match"),
    "labels": (labels, {}, "macro_f1"),
    "even labels": (even_labels, {}, "accuracy"),
    "several labels": (several_labels, {}, "micro_f1"),
    "fields by patterns": (patterned, {"fields": FIELDS}, "macro_f1"),
}


class Task:
    """Rows of a kind of task: training rows, test rows and what is known of them."""

    def __init__(self, kind: str, seed: int) -> None:
        make, settings, _ = KINDS[kind]
        rng = random.Random(f"{kind} {seed}")
        rows = [make(rng, i) for i in range(260)]
        self.train, self.test = rows[:200], rows[200:]
        self.config = EvaluateConfig.model_validate({"bootstrap": 200, "embedding": False, **settings})
        self.name = "classification" if rows[0].label is not None else "generation"
        self.metric = deciding_metric(self.train, self.name, self.config)

    @property
    def constant(self) -> Constant:
        found = strongest_constant(self.train, self.name, self.config, self.metric)
        assert found is not None
        return found

    def scored(self, answers: list[str]) -> ScoredAnswers:
        measured = AnswerStats(deciding=self.metric)
        given = [Completion(text) for text in answers]
        options: dict[str, Any] = {"labels": None, "config": self.config, "seed": 0, "measured": measured}
        return evaluate(self.test, given, task=self.name, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_deciding_metric_follows_from_the_rows_and_every_system_is_scored_by_it(kind: str) -> None:
    task = Task(kind, 0)
    assert task.metric.rpartition(".")[2] == KINDS[kind][2].rpartition(".")[2] or task.metric == "queue.accuracy"
    rights = [row.answer for row in task.test]
    assert {task.scored(answers).primary for answers in (rights, ["?"] * 60, rights[::-1])} == {task.metric}


@pytest.mark.parametrize("kind", KINDS)
def test_the_strongest_constant_is_at_least_as_good_as_the_most_frequent_answer_on_training_rows(kind: str) -> None:
    task = Task(kind, 0)
    best = task.constant.answer.text
    score = {text: value_of(text, task.train, task.name, task.config, task.metric) for text in
             {best, *candidate_answers(task.train, task.name, task.config, task.metric)}}  # fmt: skip
    assert score[best] == max(score.values())
    assert max((row.answer for row in task.train), key=[row.answer for row in task.train].count) in score


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_system_that_is_worse_than_the_best_constant_is_never_better_than_anything(kind: str, seed: int) -> None:
    task, rng = Task(kind, seed), random.Random(seed)
    always = task.scored([task.constant.answer.text] * len(task.test))
    rights = [row.answer for row in task.test]
    poor = task.scored(["?"] * len(task.test))
    for share in (0.0, 0.1, 0.3, 0.6):  # of right answers, the rest those of other rows: some useful, some useless
        shuffled = rng.sample(rights, len(rights))
        answers = [right if rng.random() < share else other for right, other in zip(rights, shuffled, strict=True)]
        tuned = task.scored(answers)
        if tuned.metrics[task.metric].value < always.metrics[task.metric].value:
            verdict, sentences = verdict_of(tuned, zero=poor, majority=always)
            assert verdict.outcome not in ("better", "promising")
            assert "better than" not in sentences[0].lower().replace("no better than", "")


def program(number: int, answer: str, result: int) -> Row:
    return row(number, f"def f(x):\n    return {answer}", test_list=[f"assert f(2) == {result}"])


def test_of_programs_the_constant_is_the_one_that_passes_most_and_useless_ones_are_not_better() -> None:
    kinds = [("x", 2), ("x", 9), ("2 * x", 4), ("2 * x", 4)]  # the answer of the second one is wrong
    train = [program(i, *kinds[i % 4]) for i in range(20)]
    test = [program(100 + i, *kinds[2 if i % 3 else 0]) for i in range(30)]
    config = EvaluateConfig.model_validate({"bootstrap": 200, "embedding": False})
    metric = deciding_metric(train, "generation", config)
    constant = strongest_constant(train, "generation", config, metric)
    assert metric == "pass@1" and constant is not None and constant.answer.text.endswith("2 * x")

    def scored(answers: list[str]) -> ScoredAnswers:
        options: dict[str, Any] = {"labels": None, "config": config, "measured": AnswerStats(deciding=metric)}
        return evaluate(test, list(map(Completion, answers)), task="generation", seed=0, **options)

    always, poor = scored([constant.answer.text] * 30), scored(["?"] * 30)
    tuned = scored([row.answer if i % 2 else "def f(x):\n    return 0" for i, row in enumerate(test)])
    assert poor.metrics[metric].value < tuned.metrics[metric].value < always.metrics[metric].value
    verdict, sentences = verdict_of(tuned, zero=poor, majority=always)
    assert verdict.outcome not in ("better", "promising")
    assert "better than" not in sentences[0].lower().replace("no better than", "")
    alone = [program(i, f"x + {i}", 2 + i) for i in range(4)]
    assert len(list(candidate_answers(alone, "generation", config, "pass@1"))) == 1, "none is run that can't repeat"


def test_always_an_empty_card_is_not_beaten_by_useless_answers_where_the_share_of_fields_decides() -> None:
    train = [row(i, {"intents": ["a"] if i % 3 == 0 else [], "slots": {"day": str(i)} if i % 4 == 0 else {}})
             for i in range(120)]  # fmt: skip
    config = EvaluateConfig(bootstrap=200, embedding=False, primary="field_accuracy")
    found = strongest_constant(train, "generation", config, "field_accuracy")
    assert found is not None and json.loads(found.answer.text) == {"intents": [], "slots": {}}


def test_a_card_has_every_usual_field_empty_where_the_training_answers_are() -> None:
    some: list[Any] = [{"a": "", "b": [], "c": {}, "d": None, "e": "x"}] * 6 + [
        {"a": str(i), "b": [i], "c": {"inner": i}, "d": i, "e": "y", "rare": 1} for i in range(5)
    ]
    assert usual_value(some) == {"a": "", "b": [], "c": {}, "d": None, "e": "x"}
    assert set(usual_value(some, filled=True)) == {"a", "b", "c", "d", "e"}
    assert usual_value([{"n": 1}, {"n": 5}, {"n": 9}, {"n": 1}, {"n": 6}], median=True) == {"n": 5}
    for text in candidate_answers([row(i, card) for i, card in enumerate(some)], "generation", EvaluateConfig(), ""):
        assert set(json.loads(text)) >= {"a", "b", "c", "d", "e"}


def test_several_labels_have_the_set_with_the_best_f1_as_a_candidate() -> None:
    rows = [row(i, "x", label=True, labels=names) for i, names in
            enumerate([["a"], ["a", "b"], ["a", "b"], ["b", "c"], ["a"], ["a"], ["b"]])]  # fmt: skip
    config = EvaluateConfig(embedding=False)
    found = strongest_constant(rows, "classification", config, "micro_f1")
    assert found is not None and found.answer.text == "a, b"  # 2 * 9 / (14 + 10), against 2 * 5 / (7 + 10) of "a"
    assert value_of("a, b", rows, "classification", config, "micro_f1") == pytest.approx(18 / 24)
    by_sets = strongest_constant(rows, "classification", config, "accuracy")
    assert by_sets is not None and by_sets.answer.text == "a"


def test_numbers_have_the_median_and_the_most_frequent_one_as_candidates(tmp_path: Any) -> None:
    scorer = tmp_path / "near.py"
    scorer.write_text("def near(prediction, reference):\n    return -abs(float(prediction) - float(reference))\n")
    rows = [row(i, str(n)) for i, n in enumerate([1, 1, 1, 10, 11, 12, 13])]
    for metric, expected in (("exact_match", "1"), ("near", "10")):
        config = EvaluateConfig.model_validate({"scorers": {"near": f"{scorer}:near"}, "embedding": False})
        found = strongest_constant(rows, "generation", config, metric)
        assert found is not None and found.answer.text == expected


def test_texts_have_a_typical_one_as_a_candidate_and_test_rows_are_never_looked_at() -> None:
    texts = ["the parcel is late and comes on monday", *(f"x{i} y{i} z{i}" for i in range(30))]
    texts += [f"the parcel is late and comes on {day}" for day in ("tuesday", "friday", "sunday", "wednesday", "may")]
    rows = [row(i, text) for i, text in enumerate(texts)]
    found = strongest_constant(rows, "generation", EvaluateConfig(), "rougeL")
    assert found is not None and found.answer.text.startswith("the parcel is late")


def test_constants_by_patterns_have_the_most_frequent_values() -> None:
    lines = [row(i, f"Queue: {'ab'[i % 3 == 0]}\nIssue: {i}") for i in range(12)]
    found = strongest_constant(lines, "generation", EvaluateConfig(fields=FIELDS), "queue.accuracy")
    assert found is not None and found.answer.text.startswith("Queue: a")
