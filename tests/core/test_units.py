"""Amounts as people say them."""

from __future__ import annotations

import pytest

from tuneloop.core.units import counted, exactly, hours_expected, span_words, verb


@pytest.mark.parametrize(("number", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1234, "1,234 steps")])
def test_one_thing_is_no_several(number: int, text: str) -> None:
    assert counted(number, "step") == text


def test_a_span_of_hours_stands_only_where_it_says_more() -> None:
    assert hours_expected(5 / 60, 4 / 60, 6 / 60) == "5 minutes (4 to 6 minutes)"
    assert hours_expected(0.03, 0.01, 0.04) == "2 minutes (36 seconds to 2 minutes)"
    assert hours_expected(0.033, 0.032, 0.034) == "2 minutes"


def test_counts_and_their_verbs_are_right_in_the_singular() -> None:
    units = ["day", "copy", "pass", "batch", "epoch", "query", "key", "test row"]
    assert [counted(1, unit) for unit in units] == [f"1 {unit}" for unit in units]
    several = ["days", "copies", "passes", "batches", "epochs", "queries", "keys", "test rows"]
    assert [counted(2, unit) for unit in units] == [f"2 {text}" for text in several]
    assert [counted(0.6, "day"), counted(1234, "row"), counted(0, "row")] == ["1 day", "1,234 rows", "0 rows"]
    assert [exactly(1, "minute"), exactly(1.5, "hour"), exactly(3, "epoch")] == ["1 minute", "1.5 hours", "3 epochs"]
    assert [verb(n, "is", "are") for n in (0, 1, 2)] == ["are", "is", "are"]


def test_short_times_have_two_digits() -> None:
    assert [span_words(s) for s in (12.3, 1.24, 0.9912, 0.035, 0.00052)] == [
        "12 s",
        "1.2 s",
        "991 ms",
        "35 ms",
        "0.52 ms",
    ]
