"""Answers that are JSON objects: the whole of them, and each field by what fits it."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.evaluation.alternatives.constants import usual_value
from tuneloop.evaluation.config import EvaluateConfig
from tuneloop.evaluation.deciding import labels_of_fields
from tuneloop.evaluation.evaluate import ScoredAnswers, evaluate
from tuneloop.evaluation.metrics.objects import differing_fields, is_prose, object_statistics
from tuneloop.evaluation.results import load_evaluation, write_evaluation
from tuneloop.records.completion import Completion
from tuneloop.records.evaluation import Subject
from tuneloop.records.rows import Row

TOWNS, PRODUCTS = ("Ulm", "Bern", "Graz"), ("lamp", "desk", "chair", "shelf")
WORDS = [
    "the",
    "parcel",
    "came",
    "late",
    "and",
    "one",
    "corner",
    "of",
    "its",
    "box",
    "was",
    "torn",
    "so",
    "we",
    "would",
    "like",
    "a",
    "new",
    "one",
    "please",
]


def invoice(i: int) -> dict[str, Any]:
    rng = random.Random(i)
    return {
        "number": f"R-{1000 + i}",
        "date": f"2026-03-{1 + i:02d}",
        "total": 10.0 + i,
        "paid": bool(i % 2),
        "address": {"city": TOWNS[i % 3], "zip": f"{8000 + i}"},
        "items": [{"name": name, "quantity": n + 1} for n, name in enumerate(rng.sample(PRODUCTS, 2))],
        "tags": ["new", "export"],
        "note": None if i % 4 else " ".join(rng.sample(WORDS, 12)),
    }


def scored(cards: list[dict[str, Any]], answers: list[Any], **config: Any) -> ScoredAnswers:
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"mail {i}"}, {"role": "assistant", "content": json.dumps(card)}])
        for i, card in enumerate(cards)
    ]
    given = [Completion(a if isinstance(a, str) else json.dumps(a)) for a in answers]
    made = EvaluateConfig.model_validate({"bootstrap": 200, "embedding": False, **config})
    return evaluate(rows, given, task="generation", labels=None, config=made, seed=0)


def values(evaluation: ScoredAnswers, *names: str) -> list[float]:
    return [pytest.approx(evaluation.metrics[name].value, abs=1e-9) for name in names]


CARDS = [invoice(i) for i in range(12)]


def changed(i: int, **change: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CARDS[i]), **change}


def test_right_answers_are_right_whatever_the_order_of_keys_and_lists_and_the_spelling_of_numbers() -> None:
    answers = [
        json.dumps(
            {**dict(reversed(card.items())), "total": int(card["total"]), "items": card["items"][::-1], "tags": ["export", "new"]},
            indent=1,
        )
        for card in CARDS
    ]  # fmt: skip
    found = scored(CARDS, answers)
    wanted = (
        "object_accuracy",
        "field_accuracy",
        "valid_json",
        "items.item_f1",
        "items.quantity.exact_match",
        "note.token_f1",
    )
    assert values(found, *wanted) == [1.0] * 6
    assert values(found, "missing_fields", "invented_fields", "invalid_rate") == [0.0] * 3
    assert found.primary == "filled_f1"


def test_each_field_is_measured_by_what_its_values_are() -> None:
    found = set(scored(CARDS, CARDS).metrics)
    exact = {
        "number",
        "date",
        "total",
        "paid",
        "address.city",
        "address.zip",
        "items",
        "tags",
        "items.name",
        "items.quantity",
    }
    assert {f"{name}.exact_match" for name in exact} <= found
    labels = {name.removesuffix(".macro_f1") for name in found if name.endswith(".macro_f1")}
    assert labels == {"paid", "address.city"}  # texts and booleans that repeat; no number, no code
    assert {name for name in found if "rouge" in name or "token_f1" in name} == {"note.token_f1", "note.rougeL"}
    assert {"items.item_f1", "items.item_precision", "items.item_recall"} <= found


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (changed(0, total=10.5), {"total.exact_match"}),
        (changed(0, total="10.0"), {"total.exact_match"}),
        (changed(0, date="01.03.2026"), {"date.exact_match"}),
        (changed(1, paid="true"), {"paid.exact_match", "paid.accuracy"}),
        (changed(1, paid=1), {"paid.exact_match", "paid.accuracy"}),
        (changed(0, address={"city": "Rome", "zip": "8000"}), {"address.city.exact_match", "address.city.accuracy"}),
        (changed(0, tags=["new"]), {"tags.exact_match", "tags.item_f1", "tags.item_recall"}),
        (changed(1, note=""), {"object_accuracy"}),
    ],
)
def test_a_wrong_field_is_wrong_in_its_own_line_and_in_the_whole(answer: dict[str, Any], wrong: set[str]) -> None:
    answers: list[Any] = [*CARDS]
    answers[int(answer["number"][2:]) - 1000] = answer
    found = scored(CARDS, answers)
    below = {name for name in found.metrics if found.metrics[name].value < 1 and "macro" not in name}
    general = {"object_accuracy", "field_accuracy", "field_f1", "field_precision", "field_recall", "filled_f1", "missing_fields", "invented_fields", "invalid_rate"}  # fmt: skip
    assert wrong - {"object_accuracy"} <= below - general <= wrong
    assert found.metrics["object_accuracy"].value == pytest.approx(11 / 12)
    assert values(found, "missing_fields", "invented_fields") == [0.0, 0.0]


def test_missing_and_invented_fields_are_counted_by_answer() -> None:
    answers: list[Any] = [*CARDS]
    lacking = changed(0)
    del lacking["address"]["zip"]
    answers[:4] = [lacking, changed(1, vat=19), changed(2, address={**CARDS[2]["address"], "street": "x"}), "no idea"]
    found = scored(CARDS, answers)
    assert values(found, "missing_fields", "invented_fields") == [2 / 12, 2 / 12]
    assert values(found, "object_accuracy", "address.zip.exact_match", "valid_json") == [8 / 12, 10 / 12, 11 / 12]
    assert found.valid[:4] == [True, True, True, False]
    assert found.metrics["missing_fields"].high > 2 / 12  # with an interval like every metric


def test_items_are_paired_with_those_most_like_them_and_compared_as_a_set() -> None:
    card = {"items": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}, {"sku": "c", "n": 3}]}
    answer = {"items": [{"sku": "c", "n": 3}, {"sku": "b", "n": 9}, {"sku": "z", "n": 7}, {"sku": "a", "n": 1}]}
    found = scored([card] * 6, [answer] * 6)
    precision, recall = 2 / 4, 2 / 3
    f1 = 2 * precision * recall / (precision + recall)
    assert values(found, "items.item_precision", "items.item_recall", "items.item_f1") == [precision, recall, f1]
    assert values(found, "items.sku.exact_match", "items.n.exact_match") == [1.0, 2 / 3]
    assert found.metrics["invented_fields"].value == 0  # an item more is no field


def test_a_list_as_the_whole_answer_and_empty_lists() -> None:
    cards: list[Any] = [["a", "b"], [], ["c"], ["a"], ["b", "c"]]
    found = scored(cards, [["b", "a"], [], [], ["a", "x"], "?"])
    assert values(found, "object_accuracy", "item_precision", "item_recall") == [2 / 5, 3 / 4, 3 / 6]
    assert found.primary == "filled_f1" and values(found, "filled_f1") == [2 * 3 / (6 + 4)]


def test_prose_is_long_and_differs_from_row_to_row() -> None:
    assert is_prose([f"the parcel number {i} came a day too late" for i in range(9)])
    assert not is_prose(["the parcel came a day too late"] * 9)  # a phrase that repeats
    assert not is_prose([f"RE-2026-{i:05d}/A Müller GmbH" for i in range(9)])
    assert is_prose(
        [f"荷物が{i}日遅れて届きました。新しいものを送ってください。返品も可能でしょうか。" for i in range(9)]
    )


def test_where_all_fields_are_prose_a_measure_of_texts_decides() -> None:
    cards = [{"summary": " ".join(random.Random(i).sample(WORDS, 14))} for i in range(8)]
    assert scored(cards, cards).primary == "summary.rougeL"


def test_the_same_metric_decides_however_many_whole_answers_are_right(tmp_path: Path) -> None:
    none, some = scored(CARDS, ["{}"] * 12), scored(CARDS, [CARDS[0], *["{}"] * 11])
    assert none.primary == some.primary == scored(CARDS, CARDS).primary == "filled_f1"
    assert scored(CARDS, ["{}"] * 12, primary="total.exact_match").primary == "total.exact_match"
    write_evaluation(tmp_path, none, Subject("m", "d", "test"))
    again = load_evaluation(tmp_path)
    assert again.primary == "filled_f1" and again.metrics["filled_f1"] == none.metrics["filled_f1"]


def test_f1_of_filled_fields_is_that_of_the_pairs_that_say_something() -> None:
    cards: list[Any] = [
        {"intents": ["a", "b"], "slots": {"day": "monday"}, "note": ""},  # 3 pairs
        {"intents": [], "slots": {}, "note": None},  # none: an empty answer is no hit
        {"intents": ["c"], "slots": {}, "note": " "},  # 1 pair
        {"paid": False, "total": 0},  # 2 pairs: false and 0 say something
    ]
    answers: list[Any] = [
        {"intents": ["a"], "slots": {"day": "friday"}, "note": ""},  # 1 of 2 is right
        {"intents": [], "slots": {}, "note": None},
        {"intents": ["c", "d"], "slots": {}},  # 1 of 2
        {"paid": False, "total": 0.0},  # 2 of 2
    ]
    found = scored(cards, answers)
    assert values(found, "filled_f1") == [2 * 4 / (6 + 6)]
    assert found.row_scores["filled_f1"] == pytest.approx([2 / 5, 1.0, 2 / 3, 1.0])
    empty = scored(cards, [{"intents": [], "slots": {}, "note": ""}] * 4)
    assert values(empty, "filled_f1") == [0.0] and empty.metrics["field_accuracy"].value > 0.3


def test_what_no_reference_fills_is_judged_by_whole_answers() -> None:
    found = scored([{"intents": []}] * 6, [{"intents": []}] * 5 + [{"intents": ["a"]}])
    assert found.primary == "object_accuracy" and "filled_f1" not in found.metrics


def test_an_answer_in_json_that_lacks_an_optional_field_is_valid() -> None:
    cards: list[Any] = [{"city": "Ulm", **({"zip": "1"} if i % 2 else {})} for i in range(10)]
    found = scored(cards, [{"city": "Ulm"}] * 9 + ["{"])
    assert values(found, "valid_json", "invalid_rate", "missing_fields") == pytest.approx([0.9, 0.1, 0.5])


def test_a_few_references_in_words_leave_the_others_to_be_scored_as_objects() -> None:
    rows = [
        Row(f"r{i}", [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": text}])
        for i, text in enumerate([*map(json.dumps, CARDS), "There is no invoice."])
    ]
    config = EvaluateConfig(bootstrap=200, embedding=False)
    given = [Completion(json.dumps(card)) for card in CARDS]
    for last, right in (("There is no invoice. ", 1.0), ("{}", 12 / 13)):
        found = evaluate(rows, [*given, Completion(last)], task="generation", labels=None, config=config, seed=0)
        assert values(found, "object_accuracy", "total.exact_match", "invalid_rate") == [right, 1.0, 0.0]


def test_objects_without_keys_are_no_field_and_optional_fields_count_where_they_are() -> None:
    cards: list[Any] = [{"city": f"City {i}"} if i % 2 else {} for i in range(10)]
    found = scored(cards, [*cards[:-1], {"city": "Rome"}])
    assert values(found, "object_accuracy", "city.exact_match", "invented_fields") == [0.9, 0.8, 0.0]
    assert "exact_match" not in found.metrics
    found = scored(cards, [{"city": "Rome"}, *cards[1:]])
    assert values(found, "city.exact_match", "invented_fields") == [1.0, 0.1]


def test_fields_of_a_pattern_are_not_scored_twice() -> None:
    found = scored(CARDS, CARDS, fields={"paid": r'"paid": (\w+)'})
    assert found.primary == "paid.accuracy" and "paid.exact_match" not in found.metrics


@pytest.mark.parametrize(
    "deep", ['{"a":' * n + "1" + "}" * n for n in (90, 150, 900)] + ["[" * 300 + "]" * 300, '{"a":[' * 120 + "]}" * 120]
)
def test_deep_nesting_is_no_crash(deep: str) -> None:
    found = scored(CARDS, [deep, *CARDS[1:]])
    assert values(found, "object_accuracy") == [11 / 12]
    assert differing_fields(json.dumps(CARDS[0]), deep)


def test_keys_that_look_like_paths_do_not_break_scoring() -> None:
    cards = [{"a.b": 1, "a": {"b": 2}, "": 3, "items": [{"exact_match": i}], "accuracy": i} for i in range(8)]
    found = scored(cards, cards)
    assert values(found, "object_accuracy", "accuracy.exact_match", "items.exact_match") == [1.0] * 3


def test_the_usual_object_has_the_most_frequent_value_of_each_field() -> None:
    texts = [json.dumps(card) for card in CARDS] + ["{}"]
    usual = usual_value(list(map(json.loads, texts)))
    assert usual["tags"] == ["new", "export"] and usual["address"]["city"] == "Ulm" and usual["note"] is None
    assert labels_of_fields([json.dumps(c) for c in CARDS], {})["address.city"] == dict.fromkeys(sorted(TOWNS), 4)


def test_differing_fields_are_named_with_both_values() -> None:
    right = json.dumps(CARDS[1])
    wrong = changed(1, total=7, vat=1)
    del wrong["date"]
    assert differing_fields(right, json.dumps(wrong)) == "date is missing; total is 7, not 11.0; vat is invented"
    assert differing_fields(right, right) == "" and differing_fields(right, "?") == "no valid JSON"
    assert differing_fields('{"a": [1, 2]}', '{"a": [2, 3]}') == "a lacks 1; a has also 3"
    assert differing_fields('{"a": 1, "b": 1, "c": 1, "d": 1}', "{}").endswith("c is missing; and 1 more")
    assert differing_fields("plain text", "another") == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(st.dictionaries(st.text(max_size=3), JSON, max_size=3), JSON), min_size=1, max_size=4))
def test_any_objects_are_scored_and_each_is_right_about_itself(pairs: list[tuple[Any, Any]]) -> None:
    references, answers = [[json.dumps(a)] for a, _ in pairs], [json.dumps(b) for _, b in pairs]
    scores = object_statistics(references, answers, {}).statistics[0].row_scores
    for (a, b), right in zip(pairs, scores["object_accuracy"], strict=True):
        assert right in (0.0, 1.0) and (a != b or right == 1.0)
    own = object_statistics(references, [row[0] for row in references], {}).statistics[0].row_scores
    assert set(own["object_accuracy"]) == {1.0} and set(own["missing_fields"]) == set(own["invented_fields"]) == {0.0}
