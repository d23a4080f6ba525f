"""The ladder of contenders."""

from __future__ import annotations

from tuneloop.evaluate.ladder import ladder, ladder_in_words


def test_with_every_baseline_turned_off_the_ladder_is_empty() -> None:
    assert ladder({}, {}) == [] and ladder_in_words([]) == []
