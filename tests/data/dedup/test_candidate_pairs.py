"""Similar pairs in bulk: the same as pair by pair, in any number of processes, and crowds in their turn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dedup import duplicates
from tuneloop.data.dedup.duplicates import Alike, find_alike
from tuneloop.data.dedup.minhash import RowTexts, prompt_similarity, shape_of, sketch


class Texts(list[RowTexts]):
    """Texts that can be read in other processes."""

    def read(self, indices: Sequence[int]) -> list[RowTexts]:
        return [self[i] for i in indices]


def questions(count: int, spread: int, seed: int = 0) -> Texts:
    """Questions of which many are nearly equal."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(spread)]
    return Texts(RowTexts(" ".join(words[(n % 97) :][:9]) + f" {draw.choice(words)}", "", "") for n in range(count))


def alike(texts: Texts, threshold: float = 0.8, **more: Any) -> Alike:
    columns = sketch(texts, DuplicatesConfig(threshold=threshold))
    return find_alike(columns, texts.read, threshold, rows=np.arange(len(texts)), **more)


def test_the_number_of_processes_and_the_size_of_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = questions(800, 300)
    first = alike(texts)
    assert len(first.one) > 100
    monkeypatch.setattr(duplicates, "BATCH", 64)
    monkeypatch.setattr(duplicates, "_CANDIDATES_AT_ONCE", 50)
    second = alike(texts, workers=2)
    for name in ("one", "other", "prompt", "whole", "together", "crowded"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_nearly_all_similar_pairs_are_found_and_no_other(threshold: float = 0.8) -> None:
    texts = questions(300, 300)
    found = alike(texts, threshold)
    shapes = [shape_of(cut) for cut in texts]
    pairs_found = set(zip(found.one.tolist(), found.other.tolist(), strict=True))
    similar = {
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if prompt_similarity(shapes[i], shapes[j]) >= threshold and not found.crowded[j]
    }
    assert pairs_found <= similar and len(pairs_found) >= 0.98 * len(similar) > 50


def test_rows_with_too_many_candidates_are_left_to_their_turn() -> None:
    stem = "please tell me where the parcel with this number is now"
    texts = Texts(RowTexts(f"{stem} {n:04d}", "", "") for n in range(200))
    found = alike(texts)
    assert not found.crowded[:2].any() and found.crowded[40:].all()
    assert not found.crowded[found.other].any()


@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31, 2**32 - 1]), min_size=1))
def test_no_key_that_comes_again_is_overlooked(numbers: list[int]) -> None:
    keys = np.array(numbers, dtype=np.uint32)
    again = np.array([numbers.count(number) > 1 for number in numbers])
    assert duplicates._maybe_shared(keys)[again].all()


def test_hardly_any_single_key_is_looked_at_again() -> None:
    keys = np.random.default_rng(0).permutation(2**32 // 5003 * np.arange(5000)).astype(np.uint32)
    assert duplicates._maybe_shared(keys).mean() < 0.2


def test_rows_without_answers_are_looked_for_once_and_the_same_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts([cut._replace(apart="ab"[n % 2]) for n, cut in enumerate(questions(400, 300))])
    assert duplicates._sketch_names(sketch(texts, DuplicatesConfig())) == ("prompt",)
    answered = Texts([*texts, texts[0]._replace(answer="Thank you for asking.")])
    assert duplicates._sketch_names(sketch(answered, DuplicatesConfig())) == ("whole", "prompt")
    once = alike(texts)
    monkeypatch.setattr(duplicates, "_sketch_names", lambda columns: ("whole", "prompt"))
    both = alike(texts)
    assert len(once.one) > 20
    for name in ("one", "other", "prompt", "whole", "together", "crowded"):
        assert np.array_equal(getattr(once, name), getattr(both, name)), name
