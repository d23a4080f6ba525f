from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.data.checks.drift import folds, groups, sample, sketch, tfidf

TEXTS = ["My card is lost", "my CARD  is lost", "the lost card", "transfer pending", "is my transfer pending", "xyzzy"]


def test_rows_have_unit_length_and_like_texts_are_near() -> None:
    table = tfidf(TEXTS)
    likeness = (table @ table.T).toarray()
    assert np.allclose(likeness.diagonal()[:5], 1, atol=1e-5)
    assert likeness[0, 1] > 0.999 > likeness[0, 2] > likeness[0, 3]
    assert table[5].nnz == 0  # what stands in one text only says nothing about another


def test_a_sketch_keeps_inner_products() -> None:
    table = tfidf(TEXTS)
    dense = sketch(table, 4096)
    assert np.allclose(dense @ dense.T, (table @ table.T).toarray(), atol=0.1)


@given(st.lists(st.text(), min_size=1, max_size=8))
def test_any_texts_become_rows_of_unit_length_or_zero(texts: list[str]) -> None:
    table = tfidf(texts)
    lengths = np.sqrt(table.multiply(table).sum(axis=1))
    assert table.shape[0] == len(texts) and np.all(lengths < 1.0001)


def test_equal_texts_are_one_group_in_one_fold() -> None:
    assert groups(TEXTS).tolist() == [0, 0, 1, 2, 3, 4]
    fold = folds(TEXTS, 5, 1)
    assert fold[0] == fold[1] and fold.max() < 5


def test_a_sample_depends_on_the_texts_alone() -> None:
    texts = [f"text {i}" for i in range(50)]
    chosen = {texts[i] for i in sample(texts, 10, 0)}
    assert chosen == {texts[::-1][i] for i in sample(texts[::-1], 10, 0)} and len(chosen) == 10
    assert sample(texts, 50, 0) == list(range(50))
