"""Templates make a prompt and an answer of any columns."""

from __future__ import annotations

from typing import Any

import pytest
from format_records import parse, reason, turns
from hypothesis import assume, given
from hypothesis import strategies as st

from tuneloop.core.errors import UserError
from tuneloop.data.formats import Parsed, Rejection, error_answer, template_columns
from tuneloop.models.reasoning import TAGS

CARD = {"input": "{text}", "output": "Queue: {queue}\n{summary}"}


def test_templates_fill_columns_paths_and_lists() -> None:
    record = {"text": "help", "queue": "cards", "summary": "s"}
    assert turns(parse(record, **CARD)) == [("user", "help"), ("assistant", "Queue: cards\ns")]
    record = {"a": {"b": "deep"}, "tags": ["x", 2], "odd name!": "o"}
    parsed = parse(record, input="{a.b} {odd name!}", output='{{"tags": "{tags}"}}')
    assert turns(parsed) == [("user", "deep o"), ("assistant", '{"tags": "x, 2"}')]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"queue": ""}, "empty_output"),
        ({"queue": None}, "empty_output"),
        ({"queue": [float("nan")]}, "wrong_type"),
        ({"text": " "}, "empty_input"),
    ],
)
def test_a_hole_in_a_template_rejects_the_record(change: dict[str, Any], expected: str) -> None:
    assert reason(parse({"text": "help", "queue": "cards", "summary": "s"} | change, **CARD)) == expected


def test_a_record_without_a_template_column_is_rejected() -> None:
    assert parse({"text": "help", "queue": "cards"}, **CARD) == Rejection("missing_field", "no column 'summary'")


@pytest.mark.parametrize("template", ["{", "a } b", "{}", "{a", "{{{a}}"])
def test_a_malformed_template_is_a_user_error(template: str) -> None:
    with pytest.raises(UserError, match="in a template"):
        template_columns(template)


@given(text=st.text(max_size=20), value=st.text(min_size=1, max_size=20))
def test_values_enter_templates_unchanged_whatever_they_hold(text: str, value: str) -> None:
    assume(not any(tag in text + value for tags in TAGS for tag in tags))  # reasoning: the next test
    literal = text.replace("{", "{{").replace("}", "}}")
    record = {"q": "x", "v": value}
    parsed = parse(record, input="{q}", output=literal + "{v}")
    if error_answer(text + value) and not text:
        assert reason(parsed) == "error_output"
    elif value.strip():
        assert turns(parsed)[-1] == ("assistant", text + value)
    else:
        assert reason(parsed) == "empty_output"


def test_reasoning_in_a_value_is_read_as_reasoning() -> None:
    def answered(value: str) -> Parsed | Rejection:
        return parse({"q": "x", "v": value}, input="{q}", output="{v}")

    assert turns(answered("<think>a</think>b"))[-1] == ("assistant", "b")
    assert reason(answered("<think>")) == "cut_reasoning" and reason(answered("<think></think>")) == "empty_output"


def test_objects_and_lists_become_compact_json_in_the_order_of_their_keys() -> None:
    record = {"mail": "m", "card": {"z": "Äpfel", "a": [1, 2.5, None, True], "in": {"k": '"q"'}}, "tags": ["x", "y"]}
    templates = {"input": "{mail}", "output": "{card}"}
    text = '{"z":"Äpfel","a":[1,2.5,null,true],"in":{"k":"\\"q\\""}}'
    assert turns(parse(record, **templates))[-1] == ("assistant", text)
    assert turns(parse(record, input="{card}", output='{{"t": {tags}, "z": "{card.z}"}}')) == [
        ("user", text),
        ("assistant", '{"t": ["x","y"], "z": "Äpfel"}'),
    ]
    assert turns(parse(record, input="{mail}", output="{card.a}"))[-1][1] == "[1,2.5,null,true]"
    labels = parse(record, input="{mail}", output="{tags}", task="classification")
    assert turns(labels)[-1][1] == "x, y"
