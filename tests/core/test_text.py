"""Any text and any JSON value becomes one that files and databases hold, and what can't is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.core.text import json_bytes, json_value, storable, unstorable

ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_what_is_storable_is_utf8_without_the_character_0_and_stays_as_it_is(text: str) -> None:
    held = storable(text)
    assert held.encode() and "\0" not in held if text else held == ""
    assert storable(held) == held
    if not any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        assert held == text


@pytest.mark.parametrize(
    ("text", "held"),
    [("\ud83d\ude00", "😀"), ("a\ud83db", "a\ufffdb"), ("\ude00\ud83d", "\ufffd\ufffd"), ("a\0", "a\ufffd")],
)
def test_halves_are_joined_or_replaced(text: str, held: str) -> None:
    assert storable(text) == held


@pytest.mark.parametrize(
    ("value", "says"),
    [({"a": ["\ud800"]}, "surrogate"), ({"\udfff": 1}, "surrogate"), ([2**64], "64 bits"), (-(2**63) - 1, "64 bits")],
)
def test_what_can_not_be_stored_is_named(value: Any, says: str) -> None:
    assert says in unstorable(value) and not unstorable({"a": [1, "é\0", None, 2**63]})
    assert json.loads(json_bytes(value)) == value
    deep: Any = 1
    for _ in range(1000):
        deep = [deep]
    assert "deeply" in unstorable(deep)


@pytest.mark.parametrize("value", [{"a": 1}, {"a": 10**400}, {"a": -(10**400), "b": "\ud800"}])
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    assert json_value(json_bytes(value)) == value
