"""Amounts as people say them."""

from __future__ import annotations

import pytest

from tuneloop.core.units import counted


@pytest.mark.parametrize(("number", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (1234, "1,234 steps")])
def test_one_thing_is_no_several(number: int, words: str) -> None:
    assert counted(number, "step") == words
