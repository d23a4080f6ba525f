"""Who always says the same agrees with itself in full, who guesses does not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

import pytest

from tuneloop.core.errors import UserError
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.consistency import AS_IT_IS, Consistency, Way, measure_consistency, ways_of
from tuneloop.recipe import make_recipe
from tuneloop.records.completion import Completion
from tuneloop.records.rows import Row

LABELS = ["billing", "delivery", "refund", "technical"]
CONFIG = EvaluateConfig(consistency=5, bootstrap=400)


def row(i: int, answer: str, label: str | None = None) -> Row:
    text = f"Where is the parcel that your people wanted to deliver on day {i}? Nobody answers the telephone."
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return Row(f"r{i}", messages, label)  # type: ignore[arg-type]


def labelled(n: int = 40) -> list[Row]:
    return [row(i, LABELS[i % 4], LABELS[i % 4]) for i in range(n)]


Answerer = Callable[[Way], Completion]


def measured(rows: Sequence[Row], answerer: Answerer, task: str = "classification") -> Consistency:
    ways = ways_of(rows, 5, labels=LABELS)
    answers = [answerer(way) for row_ways in ways for way in row_ways]
    labels = LABELS if task == "classification" else None
    return measure_consistency(ways, answers, task=task, labels=labels, config=CONFIG, seed=0)


def constant(way: Way) -> Completion:
    return Completion("billing")


def guessing(seed: int) -> Answerer:
    numbers = random.Random(seed)
    return lambda way: Completion(numbers.choice(LABELS))


def right(way: Way) -> Completion:
    return Completion(way.row.answer)


def test_each_row_is_asked_as_it_is_and_in_other_words() -> None:
    for item in ways_of(labelled(10), 5, labels=LABELS):
        assert item[0].kind == AS_IT_IS and len({way.kind for way in item}) == len(item) == 5
        assert len({way.row.messages[0]["content"] for way in item}) == 5
        assert {way.row.answer for way in item} == {item[0].row.answer}


def test_programs_are_not_reworded() -> None:
    program = Row("p", [{"role": "user", "content": "def f(x):\n    pass"}, {"role": "assistant", "content": "return"}])
    assert len(ways_of([program], 4)[0]) == 1


def test_the_same_rows_are_asked_the_same_ways_whatever_their_order() -> None:
    rows = labelled(12)
    ways = ways_of(rows, 5)
    assert ways_of(rows[::-1], 5) == ways[::-1]


def test_a_constant_answerer_agrees_with_itself_in_full_and_is_said_to_be_worthless() -> None:
    found = measured(labelled(), constant)
    assert found.values["agreement"].value == 1.0
    assert found.values["always_right"].value == pytest.approx(0.25)
    assert "one and the same answer to all rows" in " ".join(found.words)


def test_a_guessing_answerer_agrees_as_chance_does_and_a_right_one_always() -> None:
    agreement = measured(labelled(80), guessing(2)).values["agreement"]
    assert agreement.low < 0.25 < agreement.high and agreement.value < 0.35
    found = measured(labelled(80), right)
    assert found.values["always_right"].value == 1.0 > found.values["always_right"].low > 0.9
    assert "worthless" not in " ".join(found.words)


def test_answers_outside_the_labels_agree_only_word_by_word() -> None:
    def rambling(way: Way) -> Completion:
        return Completion("I think it is late" if way.kind in (AS_IT_IS, "case") else f"Well, {way.kind}")

    found = measured(labelled(8), rambling)
    assert 0.0 < found.values["agreement"].value <= 1 / 10  # one pair of ten, where a row has the kind
    assert found.same_as_plain["case"] == 1.0 and found.same_as_plain["typo"] == 0.0


def test_spelling_of_a_label_is_no_disagreement() -> None:
    found = measured(labelled(8), lambda way: Completion("Billing." if way.kind == "case" else "billing"))
    assert found.values["agreement"].value == 1.0


def test_json_is_compared_by_its_fields() -> None:
    rows = [row(i, json.dumps({"name": f"Anna {i}", "day": i})) for i in range(10)]

    def shuffled(way: Way) -> Completion:
        value = json.loads(way.row.answer)
        return Completion(json.dumps(dict(reversed(value.items())) if way.kind == "typo" else value))

    def careless(way: Way) -> Completion:
        return Completion("{" + way.row.answer if way.kind == "typo" else way.row.answer)

    assert measured(rows, shuffled, "generation").values["agreement"].value == 1.0
    assert measured(rows, careless, "generation").values["agreement"].value < 1.0


def test_free_texts_are_compared_by_their_similarity() -> None:
    rows = [row(i, "The parcel comes on Monday morning.") for i in range(10)]

    def wordy(way: Way) -> Completion:
        return Completion(f"The parcel comes on Monday{' or later' if way.kind == 'typo' else ''}.")

    same = measured(rows, lambda way: Completion("The parcel comes."), "generation")
    assert same.values["similarity"].value == 1.0 and "token F1 of 1.000" in same.words[0]
    found = measured(rows, wordy, "generation")
    assert found.values["agreement"].value < found.values["similarity"].value < 1.0


def test_empty_answers_agree() -> None:
    found = measured([row(i, "Text.") for i in range(4)], lambda way: Completion(""), "generation")
    assert found.values["similarity"].value == 1.0


def test_rows_that_contradict_themselves_are_shown_with_each_way() -> None:
    found = measured(labelled(20), guessing(7))
    assert 1 <= len(found.examples) <= 5
    first = found.examples[0]
    assert first["ways"][0]["kind"] == AS_IT_IS and len(first["ways"]) == 5
    assert len({way["answer"] for way in first["ways"]}) > 1
    assert measured(labelled(8), right).examples == []


def test_one_row_has_no_spread() -> None:
    found = measured(labelled(1), right)
    assert found.values["agreement"].low < 0.5 and found.words


def test_one_way_is_refused() -> None:
    with pytest.raises(UserError, match="one way"):
        make_recipe({}, ["evaluate.consistency=1"])


def test_texts_with_a_field_agree_by_it_and_answers_that_lack_it_only_word_by_word() -> None:
    rows = [row(i, f"Queue: q{i % 3}\nIssue: late") for i in range(12)]
    config = EvaluateConfig(consistency=5, bootstrap=200, fields={"queue": r"^Queue: (.+)$"})
    ways = ways_of(rows, 5)

    def card(way: Way) -> Completion:
        return Completion(f"{way.row.answer}, said in {way.kind}")

    def chatter(way: Way) -> Completion:
        return Completion(f"I am sorry to hear of {way.row.id} {way.kind}")

    def agreement(answerer: Answerer) -> Consistency:
        answers = [answerer(way) for row_ways in ways for way in row_ways]
        return measure_consistency(ways, answers, task="generation", labels=None, config=config, seed=0)

    found = agreement(card)
    assert found.values["agreement"].value == 1.0
    assert "gives the same queue in 100.0 %" in found.words[0] and "worthless" not in " ".join(found.words)
    assert agreement(chatter).values["agreement"].value < 0.2, "lacking the queue is no agreement"
