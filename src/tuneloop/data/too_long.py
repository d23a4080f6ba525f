"""What `data.too_long` does to a row over `max_length`: cut it, or split it into several.

`fits` says whether turns are short enough; shorter turns fit when longer ones do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import starmap

from tuneloop.records.rows import Message

Fits = Callable[[list[Message]], bool]

# Where a text may be cut, the best places first: behind paragraphs, sentences, words.
_BORDERS = (re.compile(r"\n\s*\n\s*"), re.compile(r"[.!?…。！？]['\")\]»”’]*\s+|[。！？]|\n+"), re.compile(r"\s+"))


def shortened(messages: Sequence[Message], fits: Fits) -> tuple[list[Message], str]:
    """A conversation without its beginning, and what was left out: first the oldest turns, then the start of the first
    user turn. System turns, the last question's end and the whole answer stay; so the result may still be too long.
    """
    head, body = _head(messages)
    before = len(body)
    while not fits([*head, *body]):
        later = [i for i in range(1, len(body)) if body[i]["role"] == "user"]
        if not later:
            break
        body = body[later[0] :]
    dropped, characters = before - len(body), 0
    if body[0]["role"] == "user" and not fits([*head, *body]):
        text, first = body[0]["content"], body[0]
        low, high = 1, len(text) - 1  # the least number of characters to cut lies between
        while low < high:
            middle = (low + high) // 2
            rest: Message = {**first, "content": text[middle:]}
            low, high = (low, middle) if fits([*head, rest, *body[1:]]) else (middle + 1, high)
        end = text[low:]
        end = end.split(" ", 1)[-1] if " " in end else end
        characters = len(text) - len(end)
        body = [{**first, "content": end}, *body[1:]]
    return [*head, *body], f"{dropped} turns and {characters} characters of the beginning left out"


def parts(messages: Sequence[Message], fits: Fits) -> list[list[Message]]:
    """A conversation in parts that fit, in order, which joined are the conversation; none where it can't be split.

    A chat is cut before user turns, so that a question stays with its answer and a call with its result; every part
    begins with the system turns. A text alone is cut at the ends of paragraphs, or else of sentences, or else words.
    """
    head, body = _head(messages)
    if len(body) == 1:
        text = body[0]["content"]

        def piece(start: int, end: int) -> list[Message]:
            return [*head, {**body[0], "content": text[start:end]}]

        cuts = _cuts(len(text), lambda a, b: fits(piece(a, b)), lambda a, b: _border(text, a, b))
        return list(starmap(piece, cuts))
    begins = [0, *(i for i, turn in enumerate(body) if turn["role"] == "user" and i), len(body)]

    def turns(start: int, end: int) -> list[Message]:
        return [*head, *body[begins[start] : begins[end]]]

    return list(starmap(turns, _cuts(len(begins) - 1, lambda a, b: fits(turns(a, b)))))


def _head(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    return [m for m in messages if m["role"] == "system"], [m for m in messages if m["role"] != "system"]


def _cuts(
    count: int, fits: Callable[[int, int], bool], better: Callable[[int, int], int] = lambda start, end: end
) -> list[tuple[int, int]]:
    """0 to `count` in ranges that fit, as long as can be or as `better` cuts; none if a single one is too long."""
    ranges: list[tuple[int, int]] = []
    start = 0
    while start < count:
        end, step = start, 1  # steps double first, so that what is tried is seldom far longer
        while end + step <= count and fits(start, end + step):
            end, step = end + step, 2 * step
        high = min(end + step, count + 1)  # does not fit
        while high - end > 1:
            middle = (end + high) // 2
            end, high = (middle, high) if fits(start, middle) else (end, middle)
        if end == start:
            return []
        if end < count:
            end = better(start, end)
        ranges.append((start, end))
        start = end
    return ranges


def _border(text: str, start: int, end: int) -> int:
    """The last good place to cut in the second half of a range; no piece is white space alone."""
    for border in _BORDERS:
        ends = [match.end() for match in border.finditer(text, (start + end) // 2, end)]
        if ends and text[start : ends[-1]].strip() and text[ends[-1] :].strip():
            return ends[-1]
    return end
