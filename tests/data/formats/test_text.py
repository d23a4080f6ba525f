"""Plain text."""

from __future__ import annotations

from format_records import parse, reason, turns


def test_plain_text_is_one_turn_of_the_assistant() -> None:
    parsed = parse({"text": "Once upon a time.", "url": "x"}, instruction="I")
    assert turns(parsed) == [("assistant", "Once upon a time.")]
    assert reason(parse({"text": " "}, [{"text": "a"}])) == "empty_output"
