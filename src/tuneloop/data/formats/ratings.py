"""What people thought of an answer: thumbs, stars and scores in their many spellings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_UP = (
    "up true 1 yes good like liked positive desirable chosen upvote upvoted helpful satisfied correct +1 👍 thumbsup "
    "thumbs_up thumb_up thumbs-up"
)
_DOWN = (
    "down false 0 no bad dislike disliked negative undesirable rejected downvote downvoted unhelpful dissatisfied "
    "incorrect -1 👎 thumbsdown thumbs_down thumb_down thumbs-down"
)
_THUMBS = dict.fromkeys(_UP.split(), True) | dict.fromkeys(_DOWN.split(), False)


def opinion(value: Any) -> Any:
    """What is said about an answer, out of the object it may stand in."""
    if isinstance(value, dict):
        names = ("thumb", "thumbs", "rating", "score", "value", "feedback", "label", "type")
        value = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(value, str) and not value.strip():
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def read_number(value: Any) -> float | None:
    """A number of a sane size, which may stand as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6 else None


def scale_of(values: Sequence[Any], name: str) -> tuple[float, float] | None:
    """The usual scale that ratings stay within; None for thumbs, and for labels, which are classes above 1."""
    numbers = [number for number in map(read_number, values) if number is not None]
    if 2 * len(numbers) < len(values) or set(numbers) <= {0, 1}:
        return None
    low, high = min(numbers), max(numbers)
    if name == "label" and (low, high) != (-1, 1):
        return None
    for top in (1, 5, 10, 100):
        if high <= top:
            return (-top if low < 0 else 1 if low >= 1 and top in (5, 10) else 0, top)
    return None


def read_thumb(value: Any, scale: tuple[float, float] | None) -> tuple[bool | None, float | None] | None:
    """Whether a rating is a thumb up (True), down (False) or neither (None), and its number.

    On a scale the upper two fifths are up, the lower two fifths down: 4 and 5 of five stars, 1 and 2.

    Args:
        value: a boolean, a word such as `up`, a number, or text with a number.
        scale: lowest and highest number, see `scale_of`; None for thumbs, where 1 is up and 0 is down.

    Returns:
        None if no rating can be read.
    """
    if isinstance(value, bool):
        return value, None
    if scale is None:
        if isinstance(value, str):
            word = "_".join(value.strip().strip(":").casefold().split())
            thumb = _THUMBS.get(word)
            return None if thumb is None else (thumb, None)
        return (value > 0, None) if isinstance(value, int | float) and value in (0, 1) else None
    number, (low, high) = read_number(value), scale
    if number is None or not low <= number <= high:
        return None
    place = (number - low) / (high - low)
    return (True if place >= 0.6 else False if place <= 0.4 else None), number


def score_of(answer: Any) -> float | None:
    """The score in an object with an answer, if it is one."""
    if not isinstance(answer, dict):
        return None
    numbers = (read_number(answer.get(name)) for name in ("score", "overall_score", "rating", "reward"))
    return next((number for number in numbers if number is not None), None)
