"""The leaderboard of systems."""

from __future__ import annotations

from tuneloop.evaluate.leaderboard import leaderboard, leaderboard_in_words


def test_with_every_baseline_turned_off_the_ladder_is_empty() -> None:
    assert leaderboard({}, {}) == [] and leaderboard_in_words([]) == []
