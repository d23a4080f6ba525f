"""Two texts with what differs marked."""

from __future__ import annotations

import difflib
import re

from tuneloop.report.facts import clean

Parts = list[tuple[str, str]]  # ("", "del" or "ins", text)
WORD = re.compile(r"\w+|\s+|[^\w\s]")
LONGEST_MARKED = 4000  # characters; the search for differences takes quadratic time
EXCERPT = 160  # characters around a change that `repairs.jsonl` keeps
ALIGNED = 12  # equal characters by which two excerpts end at the same place
FEWEST_SHARED = 0.3  # of the words; texts with less in common would be marked all over


def side_by_side(kept: str, gone: str) -> tuple[Parts, Parts]:
    """Two texts with the words marked that only one of them has; case and white space do not count."""
    a, b = WORD.findall(kept), WORD.findall(gone)
    folded_a, folded_b = ([" " if word.isspace() else word.casefold() for word in words] for words in (a, b))
    left: Parts = []
    right: Parts = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, folded_a, folded_b, autojunk=False).get_opcodes():
        left.append(("" if tag == "equal" else "del", clean("".join(a[i:j]))))
        right.append(("" if tag == "equal" else "ins", clean("".join(b[k:m]))))
    return [p for p in left if p[1]], [p for p in right if p[1]]


def from_difference(one: str, other: str, most: int) -> tuple[str, str]:
    """Two texts without the beginning that both share, where it would take the room (`most` characters) of what differs."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = same - most // 4
    if max(len(one), len(other)) <= most or start <= 0:
        return one, other
    return "… " + one[start:], "… " + other[start:]


def same_end(one: str, other: str, most: int) -> tuple[str, str]:
    """Two excerpts of at most `most` characters that end at the same place of their texts; where one goes on, that is no difference.

    A text of `EXCERPT` characters and an ellipsis was cut by who wrote it.
    """
    if not any(len(text) > most or (text.endswith("…") and len(text) > EXCERPT) for text in (one, other)):
        return one, other
    a, b = (text[:most].removesuffix("…") for text in (one, other))
    for shift in range(min(max(len(a), len(b)), most)):
        for longer, shorter in ((b, a), (a, b)):
            stem = longer[: len(longer) - shift]
            if len(stem) >= ALIGNED and shorter.endswith(stem[-ALIGNED:]):
                return (shorter + "…", stem + "…") if longer is b else (stem + "…", shorter + "…")
    return a + "…", b + "…"


def marked_against(reference: str, answer: str) -> Parts:
    """The answer with the words marked that the reference lacks; plain where they have too little in common."""
    if not reference or not answer or max(len(reference), len(answer)) > LONGEST_MARKED:
        return [("", answer)]
    _, parts = side_by_side(reference, answer)
    shared = sum(len(text) for kind, text in parts if not kind and text.strip())
    if shared < FEWEST_SHARED * max(len(reference), len(answer)):
        return [("", answer)]
    return [("" if not text.strip() else kind, text) for kind, text in parts]
