"""Batches hold every row once, within their bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuneloop.inference.local.batches import batched_by_length


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 9))
def test_batches_hold_every_row_once_within_their_bounds(lengths: list[int], tokens: int, rows: int) -> None:
    batches = list(batched_by_length(lengths, tokens, rows))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
