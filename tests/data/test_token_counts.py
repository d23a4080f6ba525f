"""Tokens of many rows follow from a sample."""

from __future__ import annotations

import numpy as np

from tuneloop.data.prepare import _to_measure
from tuneloop.data.table import TokenLine


def test_totals_of_a_sample_follow_the_characters_of_all_rows_even_where_the_long_ones_were_picked() -> None:
    characters = np.arange(20, 2020, dtype=np.int32)
    tokens = 10 + characters // 4
    known = (characters > 1500) | (characters % 10 == 0)
    assert abs(TokenLine.through(characters[known], tokens[known]).total(characters) / int(tokens.sum()) - 1) < 0.001
    assert TokenLine.through(np.full(2, 30), np.full(2, 7)).total(np.full(5, 30)) == 35


def test_of_many_rows_a_sample_is_measured_with_the_longest_among_them() -> None:
    keys = np.random.default_rng(0).permutation(40_000).astype(np.uint64)
    short, long = np.full(40_000, 50), np.full(9_000, 1_000)
    short[777] = 5_000
    few = np.arange(300)
    assert np.array_equal(_to_measure(few, short[:300], keys[:300]), few)
    sampled = _to_measure(np.arange(40_000), short, keys)
    assert set(sampled.tolist()) == {*np.argsort(keys)[:1_000].tolist(), 777}
    assert np.array_equal(_to_measure(np.arange(9), np.full(9, 10**7), keys[:9]), np.arange(9))
    # so many characters that all of them would take long, though the rows are few
    assert 500 <= len(_to_measure(np.arange(9_000), long, keys[:9_000])) <= 600
