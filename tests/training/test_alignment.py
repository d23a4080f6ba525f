"""Positions of two tokenizations are paired where both stand at the same character of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.models.chat.template import Rendered
from tuneloop.training.teachers import APART, aligned

PIECES = ["<end>", "un", "do", "und", "o", " it", " ", "it", "caf", "é", "é"[:0]]
EURO = "€".encode()


def decode(ids: Sequence[int]) -> str:
    """Ids are numbers of pieces; from 100 on single bytes."""
    data = b"".join(bytes([i - 100]) if i >= 100 else b"" if i == 0 else PIECES[i].encode() for i in ids)
    return data.decode("utf-8", "replace")


def row(prompt: int, *answer: int) -> Rendered:
    return Rendered([6] * prompt + list(answer), [0.0] * prompt + [1.0] * len(answer))


def test_shared_borders_are_paired_and_others_stay_apart() -> None:
    student, teacher = row(3, 1, 2, 5, 0), row(5, 3, 4, 6, 7, 0)  # un|do| it, und|o| |it
    assert aligned(student, teacher, decode, decode) == (0, APART, 2, 4)
    assert aligned(teacher, student, decode, decode) == (0, APART, 2, APART, 3)


def test_equal_tokens_are_paired_one_to_one() -> None:
    same = row(2, 1, 2, 6, 7, 0, 0)
    assert aligned(same, same, decode, decode) == (0, 1, 2, 3, 4, 5)


def test_no_border_is_inside_a_character() -> None:
    bytes_ = [100 + byte for byte in EURO]
    whole, cut = row(1, 8, *bytes_, 7), row(1, 8, *bytes_, 7)
    assert aligned(whole, cut, decode, decode) == (0, 1, APART, APART, 4)


def test_only_learned_tokens_count() -> None:
    student = Rendered([1, 2, 6, 7, 0], [0, 0, 0, 1, 1])
    teacher = Rendered([3, 4, 7, 0], [0, 0, 1, 1])
    assert aligned(student, teacher, decode, decode) == (0, 1)
