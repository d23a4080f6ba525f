"""What people are asked to judge, as files hold it."""

from __future__ import annotations

import pytest

from tuneloop.core.errors import UserError
from tuneloop.records.record import as_line, as_record
from tuneloop.records.review import Review, ReviewItem

MANIFEST = {"version": 1, "mode": "pairwise", "systems": [{"name": "a"}, {"name": "b"}], "populations": {}}
ITEM = {"id": "1", "row": "r", "systems": ["a", "b"], "answers": ["x", "y"], "messages": [], "references": ["x"],
        "label": None, "stratum": "random", "group": "rest"}  # fmt: skip


def test_a_review_is_read_as_it_was_written() -> None:
    review = as_record(Review, MANIFEST, "review.json")
    assert [system.name for system in review.systems] == ["a", "b"]
    item = as_line(ReviewItem, ITEM, "items.jsonl:1", Review.again)
    assert item.systems == ("a", "b") and as_line(ReviewItem, item.to_json(), "items.jsonl:1", Review.again) == item


def test_a_damaged_line_is_named() -> None:
    with pytest.raises(UserError) as caught:
        as_line(ReviewItem, {**ITEM, "answers": "x"}, "items.jsonl:7", Review.again)
    assert caught.value.where == "items.jsonl:7" and "answers" in caught.value.what
