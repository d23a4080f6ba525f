"""Amounts as people say them."""

from __future__ import annotations

import pytest

from tuneloop.core.units import counted, hours_expected


@pytest.mark.parametrize(("number", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1234, "1,234 steps")])
def test_one_thing_is_no_several(number: int, words: str) -> None:
    assert counted(number, "step") == words


def test_a_span_of_hours_stands_only_where_it_says_more() -> None:
    assert hours_expected(5 / 60, 4 / 60, 6 / 60) == "5 minutes (4 to 6 minutes)"
    assert hours_expected(0.03, 0.01, 0.04) == "2 minutes (36 seconds to 2 minutes)"
    assert hours_expected(0.033, 0.032, 0.034) == "2 minutes"
