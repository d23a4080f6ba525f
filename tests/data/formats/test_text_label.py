"""Records with a text and one label, several labels, or a class id."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import parse, reason, turns

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import CLASSIFY, CLASSIFY_MANY, Parsed, Rejection, detect


def test_text_and_label_get_an_instruction_and_the_label_is_trimmed_on_record() -> None:
    parsed = parse({"text": "hello", "label": " greet "})
    assert turns(parsed) == [("system", CLASSIFY), ("user", "hello"), ("assistant", "greet")]
    assert (
        isinstance(parsed, Parsed)
        and parsed.label == "greet"
        and parsed.repairs == [{"kind": "trimmed", "field": "label"}]
    )
    assert turns(parse({"text": "x", "label": 3}, instruction="I"))[0] == ("system", "I")
    assert turns(parse({"text": "x", "label": False}, instruction="")) == [("user", "x"), ("assistant", "false")]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "", "label": "a"}, "empty_input"),
        ({"text": "a", "label": ""}, "empty_output"),
        ({"text": "a", "label": None}, "empty_output"),
        ({"text": [1], "label": "a"}, "wrong_type"),
        ({"label": "a"}, "missing_field"),
        ({"text": "a"}, "missing_field"),
    ],
)
def test_text_label_records_with_a_hole_are_rejected(record: dict[str, Any], expected: str) -> None:
    assert reason(parse(record, text="text", label="label")) == expected


def test_an_unknown_label_is_rejected_with_the_nearest() -> None:
    parsed = parse({"text": "a", "label": "Card arival"}, labels=["card_arrival", "refund"])
    assert parsed == Rejection("unknown_label", "'Card arival': did you mean 'card_arrival'?")


def test_lists_of_labels_become_one_answer_in_alphabetical_order() -> None:
    rows = [{"text": f"t {n}", "labels": ["b", " a ", "b"]} for n in range(4)]
    parsed = parse(rows[0], rows)
    assert turns(parsed) == [("system", CLASSIFY_MANY), ("user", "t 0"), ("assistant", "a, b")]
    assert isinstance(parsed, Parsed) and (parsed.label, parsed.extra) == ("a, b", {"labels": ["a", "b"]})
    none = parse({"text": "t", "labels": []}, rows)  # that no label applies is an answer too
    assert isinstance(none, Parsed) and none.label == "none" and none.extra["labels"] == ["none"]
    assert reason(parse({"text": "t", "labels": [""]}, rows)) == "empty_output"
    assert reason(parse({"text": "t", "labels": "a"}, rows)) == "wrong_type"
    assert reason(parse({"text": "t", "labels": ["a", 1]}, rows)) == "wrong_type"
    assert reason(parse(rows[0], rows, labels=["a"])) == "unknown_label"


def test_class_ids_are_named_by_the_column_beside_them() -> None:
    rows = [{"text": f"t {n}", "label": n % 2, "label_text": ["no", "yes"][n % 2]} for n in range(8)]
    parsed = parse(rows[1], rows)
    assert isinstance(parsed, Parsed) and parsed.label == "yes" and "label" not in parsed.used
    assert reason(parse(rows[1] | {"label_text": None}, rows)) == "empty_output"


@pytest.mark.parametrize("value", [69, True, 1.5, ["greet"], {"name": "greet"}])
def test_a_value_of_another_type_than_nearly_all_others_is_wrong(value: Any) -> None:
    rows = [{"text": f"t {n}", "label": "greet"} for n in range(30)]
    assert reason(parse(rows[0] | {"label": value}, rows)) == "wrong_type"
    assert reason(parse(rows[0] | {"text": value}, rows)) == "wrong_type"


def test_numbers_are_labels_where_the_sample_shows_them() -> None:
    rows = [{"text": f"t {n}", "label": n % 3} for n in range(30)]
    assert isinstance(parsed := parse(rows[1], rows), Parsed) and parsed.label == "1"


@pytest.mark.parametrize("label", ["N/A", "null", "-", "nan"])
def test_a_placeholder_is_no_label_unless_it_is_as_common_as_the_others(label: str) -> None:
    rows = [{"text": f"t {n}", "label": "ab"[n % 2]} for n in range(30)]
    odd = {"text": "t", "label": label}
    assert reason(parse(odd, [*rows, odd])) == "empty_output"
    assert isinstance(parse(odd, [*rows, *[odd] * 10]), Parsed)
    assert isinstance(parse(odd, [*rows, odd], labels=["a", "b", label]), Parsed)


INTENTS = [["pin", "new"], ["card"], ["card", "lost"], []]


def test_a_list_of_labels_is_the_label_and_a_fold_s_number_never() -> None:
    records = [
        {"utterance_txt": f"where is card {i}?", "intent_list": INTENTS[i % 4], "fold_no": i % 5} for i in range(60)
    ]
    guess = detect(records, PrepareConfig())
    assert guess.columns == {"text": "utterance_txt", "label": "intent_list"} and guess.many_labels
    in_a_table = [{**record, "intent_list": json.dumps(record["intent_list"])} for record in records]
    assert detect(in_a_table, PrepareConfig()).columns == guess.columns


def test_lists_of_labels_with_unusual_names_are_proposed_and_numbers_next_to_them_are_not_taken() -> None:
    records = [{"frage": f"wo ist meine Karte {i}?", "absichten": INTENTS[i % 4], "gruppe": i % 5} for i in range(60)]
    with pytest.raises(UserError) as caught:
        detect(records, PrepareConfig())
    assert caught.value.settings == ("data.text=frage", "data.label=absichten")


@pytest.mark.parametrize("name", ["fold_no", "fold", "cv_split", "row_index", "idx"])
def test_a_column_about_the_row_is_no_label(name: str) -> None:
    records = [{"sentence": f"where is card {i}?", name: i % 5} for i in range(60)]
    with pytest.raises(UserError):
        detect(records, PrepareConfig(format="text_label"))
