"""Thumbs and ratings."""

from __future__ import annotations

from typing import Any

import pytest
from format_records import ASK, SAY, parse, reason

from tuneloop.core.errors import UserError
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import Parsed, detect


@pytest.mark.parametrize(
    ("others", "value", "expected"),
    [
        ([True, False], False, {"thumb": False}),
        ([1, 0], 1, {"thumb": True}),
        (["True", "False"], "False", {"thumb": False}),
        (["up", "down"], "down", {"thumb": False}),
        (["thumbs_up"], "Thumbs Up", {"thumb": True}),
        (["👍", "👎"], "👎", {"thumb": False}),
        ([{"score": 1}, {"score": 0}], {"score": 0}, {"thumb": False}),
        ([1, 5, 4], 4, {"thumb": True, "rating": 4}),
        ([1, 5, 4], 3, {"rating": 3}),
        (["1", "5", "4"], "2", {"thumb": False, "rating": 2}),
        ([-1, 0, 1], 0, {"rating": 0}),
        ([10, 7, 2], 7, {"thumb": True, "rating": 7}),
        (["up", "down"], None, {}),
    ],
)
def test_thumbs_and_ratings_are_read(others: list[Any], value: Any, expected: dict[str, Any]) -> None:
    record = {"messages": [ASK, SAY]}
    parsed = parse(record | {"feedback": value}, [record | {"feedback": other} for other in others])
    assert isinstance(parsed, Parsed) and parsed.extra == expected
    assert "feedback" not in parsed.used and parsed.messages == [ASK, SAY]


def test_a_thumb_that_can_not_be_read_or_is_missing_on_request() -> None:
    rows = [{"prompt": "a", "completion": "b", "label": n % 2 == 0} for n in range(20)]
    assert reason(parse(rows[0] | {"label": "maybe"}, rows)) == "wrong_type"
    assert reason(parse(rows[0] | {"label": None}, rows, format="thumbs")) == "missing_field"
    with pytest.raises(UserError, match="don't look like thumbs"):
        detect([{"prompt": "a", "completion": "b"}], PrepareConfig(format="thumbs"))


def test_a_few_ratings_are_kept_without_changing_the_format() -> None:
    rows: list[dict[str, Any]] = [{"messages": [ASK, SAY]}] * 9 + [{"messages": [ASK, SAY], "rating": "up"}]
    assert detect(rows, PrepareConfig()).name == "messages"
    parsed = parse(rows[-1], rows)
    assert isinstance(parsed, Parsed) and parsed.extra == {"thumb": True}


def test_of_columns_with_one_name_the_one_used_is_told() -> None:
    sample = [{"text": f"t {i}", "label": f"l{i % 3}", "label_2": "x"} for i in range(9)]
    assert detect(sample, PrepareConfig()).reason.endswith(
        "; taken is 'label', not 'label_2' (columns of one name are numbered)"
    )
