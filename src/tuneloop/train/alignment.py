"""Which positions of one conversation, read by two tokenizers, stand at the same place of its answers. Needs no torch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from tuneloop.models.template import Rendered

CONTEXT = 16  # tokens before a token that are decoded with it: its text may depend on them
APART = -1  # a position that has no counterpart
BROKEN = "\ufffd"  # what stands for the beginning of a character whose rest is in the next token

Decode = Callable[[Sequence[int]], str]


def aligned(student: Rendered, teacher: Rendered, of_student: Decode, of_teacher: Decode) -> tuple[int, ...]:
    """For each supervised position of the student the number of the teacher's that has read the same text, or `APART`.

    Two tokenizers cut a text differently. Where both have a border at the same character, each predicts what follows the same
    text. Supervised tokens alone count, so the prompts may be in different forms.

    Args:
        student, teacher: one conversation, rendered by either's template.
        of_student, of_teacher: text of token ids, control tokens left out.
    """
    ours, theirs = (_places(row, decode) for row, decode in ((student, of_student), (teacher, of_teacher)))
    where: defaultdict[int, deque[int]] = defaultdict(deque)
    for number, place in enumerate(theirs):
        if place is not None:
            where[place].append(number)
    return tuple(where[place].popleft() if place is not None and where[place] else APART for place in ours)


def _places(row: Rendered, decode: Decode) -> list[int | None]:
    """Characters of the supervised text before each supervised token; None inside a character."""
    ids = [token for token, weight in zip(row.ids[1:], row.mask[1:], strict=True) if weight > 0]
    found: list[int | None] = []
    place, whole = 0, True
    for i, token in enumerate(ids):
        found.append(place if whole else None)
        before = list(ids[max(i - CONTEXT, 0) : i])
        text = decode([*before, token])
        place += len(text) - len(decode(before))
        whole = not text.endswith(BROKEN)
    return found
