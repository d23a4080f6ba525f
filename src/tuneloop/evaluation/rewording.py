"""The same question in other words: small changes that keep what a text means.

What carries meaning by its spelling is left alone: numbers, ids, addresses, code, quoted text, names of labels, words
in capitals. Each change is drawn from the row's own random numbers, so a row is always reworded in the same way.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

from tuneloop.core.foreign import parse_json

# What is never changed inside a text: code, quoted text, tags and places to be filled in.
_PROTECTED = re.compile(
    r"""
    ```.*?(?:```|\Z) | `[^`\n]{0,400}`
    | "[^"\n]{0,400}" | “[^”\n]{0,400}” | „[^“”\n]{0,400}[“”] | «[^»\n]{0,400}»
    | (?<!\w)'[^'\n]{1,400}'(?!\w) | (?<!\w)‘[^’\n]{1,400}’(?!\w)
    | <[^<>\n]{0,400}> | \{[^{}\n]{0,400}\} | \[[^\[\]\n]{0,400}\]
    """,
    re.VERBOSE | re.DOTALL,
)
_SIGNS = re.compile(r"[\d_\\/@#$%=|~^*+<>{}\[\]]|\w[.:]\w")  # of numbers, ids, addresses, paths, formulas
_CODE = re.compile(
    r"^[ \t]*(?:def |class \w+[:(]|import \w|from \w+ import |#include|@\w+|public |private |function \w*\(|SELECT "
    r"|INSERT |>>> )|[;{}][ \t]*$",
    re.MULTILINE,
)
_FIELD = re.compile(r"(?P<name>[^\W\d_][\w .()/-]{0,39}):[ \t]+\S.*")
_ENGLISH = {
    "the", "and", "with", "my", "you", "your", "that", "what", "how", "this", "does", "are", "why", "where", "when",
    "there",
}  # fmt: skip
_CONSONANTS = frozenset("bcdfghjklmnpqrstvwxz")
# Words that two neighbouring letters turn into another word.
_TWINS = {
    "casual", "causal", "united", "untied", "unties", "unites", "marital", "martial", "calvary", "cavalry", "silver",
    "sliver", "sacred", "scared", "perfect", "prefect", "signed", "singed", "signing", "singing", "barely", "barley",
}  # fmt: skip
GREETINGS = ("Hello,", "Hi,", "Hi there,", "Good morning,")
THANKS = ("Thanks!", "Thank you.", "Thanks in advance.")
LONGEST = 20_000  # characters of a text that is reworded


def rewordings(text: str, seed: str, keep: Sequence[str] = ()) -> list[tuple[str, str]]:
    """All kinds of rewording that fit a text, each once, in a drawn order: (kind, new text), all texts different. None
    for code and for very long texts. `seed`: of the draws, a row's id; `keep`: words that stay as they are (labels)."""
    if not text.strip() or len(text) > LONGEST or looks_like_code(text):
        return []
    rng = random.Random(f"rewording:{seed}")
    kinds = list(KINDS.items())
    rng.shuffle(kinds)
    kind_of: dict[str, str] = {}
    for kind, change in kinds:
        new = change(text, random.Random(f"{kind}:{seed}"), keep)
        if new is not None and new != text and new not in kind_of:
            kind_of[new] = kind
    return [(kind, new) for new, kind in kind_of.items()]


def looks_like_code(text: str) -> bool:
    """Whether a text is a program outside of any fence: nothing in it can be changed safely."""
    bare = re.sub(r"```.*?(?:```|\Z)", "", text, flags=re.DOTALL)
    return bool(_CODE.search(bare)) and fields_of(text) is None


def _protected_spans(text: str, keep: Sequence[str]) -> list[tuple[int, int]]:
    spans = [match.span() for match in _PROTECTED.finditer(text)]
    for m in re.finditer(r"\S+", text):
        # Plain: small letters, also behind a capital; not ABBREVIATED, camelCase, a grade ("B"), a script without case.
        span_words = re.findall(r"[^\W\d_]+", m[0])
        if _SIGNS.search(m[0]) or not all(w.islower() or w == "I" or (len(w) > 1 and w.istitle()) for w in span_words):
            spans.append(m.span())
    for word in keep:
        if word.strip():
            spans += [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE)]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            start, end = merged[-1][0], max(end, merged.pop()[1])
        merged.append((start, end))
    return merged


def _is_english(text: str) -> bool:
    return any(word in _ENGLISH for word in re.findall(r"[a-z]+", text.lower()))


def _is_document(text: str) -> bool:
    """Whether a text is a document rather than a sentence or two: what is put around it then gets its own paragraph."""
    return "\n" in text.strip() or len(text.split()) > 80


def greeting(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """A greeting before it, for English texts that are not made of fields."""
    if not _is_english(text) or fields_of(text) is not None or re.match(r"(?i)\s*(?:hello|hi|hey|dear|good)\b", text):
        return None
    phrase = rng.choice(GREETINGS)
    return phrase + ("\n\n" if _is_document(text) else " ") + text.lstrip()


def thanks(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """Thanks behind it, where it ends as a sentence does."""
    if not _is_english(text) or fields_of(text) is not None or text.rstrip()[-1:] not in (".", "!", "?"):
        return None
    space = "\n\n" if _is_document(text) else " "
    return text.rstrip() + space + rng.choice(THANKS)


def case(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """Capitalised words in small letters, as on a telephone."""
    pieces, at = [], 0
    for start, end in [*_protected_spans(text, keep), (len(text), len(text))]:
        pieces += [re.sub(r"\b[^\W\d_]+\b", lambda m: m[0].lower(), text[at:start]), text[start:end]]
        at = end
    return "".join(pieces)


def punctuation(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """Without the mark at its end, or with a full stop where it has none."""
    bare = text.rstrip()
    if bare[-1:] in (".", "!", "?") and bare[-2:-1] not in (".", "!", "?"):
        end = len(bare) - 1
        return None if any(start <= end < stop for start, stop in _protected_spans(bare, keep)) else bare[:-1]
    return bare + "." if bare[-1:].isalpha() and "\n" not in bare else None


def whitespace(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """A second space in one place, and a line end behind it."""
    spans, gaps = _protected_spans(text, keep), re.finditer(r"(?<=[^\W\d_]) (?=[^\W\d_])", text)
    places = [m.start() for m in gaps if not any(start <= m.start() < end for start, end in spans)]
    if not places:
        return text + "\n" if text == text.rstrip() else None
    at = rng.choice(places)
    return f"{text[:at]} {text[at:]}\n"


def typo(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """One slip for every dozen words, three at most: two neighbouring letters inside a long word change places."""
    spans, places = _protected_spans(text, keep), []
    words = [m for m in re.finditer(r"\b[a-z]{6,}\b", text) if m[0] not in _TWINS]
    words = [m for m in words if not any(start < m.end() and m.start() < end for start, end in spans)]
    for word in words:
        pairs = ((i, text[i], text[i + 1]) for i in range(word.start() + 1, word.end() - 2))
        # A vowel and a consonant, or two consonants, that differ: no real word comes of most of these.
        inner = [i for i, a, b in pairs if a != b and (a in _CONSONANTS or b in _CONSONANTS)]
        if inner:
            places.append(rng.choice(inner))
    if not places:
        return None
    letters = list(text)
    for i in rng.sample(places, min(len(places), 3, 1 + len(text.split()) // 12)):
        letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def field_order(text: str, rng: random.Random, keep: Sequence[str] = ()) -> str | None:
    """The fields of a text that has some (`Name: value` lines, or a JSON object) in another order."""
    fields = fields_of(text)
    if fields is None:
        return None
    parts, join = fields
    orders = (rng.sample(parts, len(parts)) for _ in range(8))
    return next((join(mixed) for mixed in orders if mixed != parts), None)


def fields_of(text: str) -> tuple[list[str], Callable[[Sequence[str]], str]] | None:
    """The fields that a text is made of, and what puts them together again; None where it is no such text. There must
    be three lines, fields one and all, with names of their own that don't count ("Step 1"), and no sentences: at most
    one of them ends as a sentence does. Of a JSON object the values are not touched."""
    bare = text.strip()
    if bare.startswith("{") and bare.endswith("}"):
        return _json_fields(bare)
    lines = bare.split("\n")
    names = [m["name"] for line in lines if (m := _FIELD.fullmatch(line.rstrip()))]
    sentences = sum(line.rstrip().endswith((".", "!", "?")) for line in lines)
    if len(names) < 3 or len(set(names)) < len(lines) or sentences > 1 or any(map(str.isdigit, "".join(names))):
        return None
    return lines, "\n".join


def _json_fields(text: str) -> tuple[list[str], Callable[[Sequence[str]], str]] | None:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or len(value) < 2:
        return None

    def written(order: Sequence[str], style: tuple[int | None, tuple[str, str], bool]) -> str:
        indent, separators, ascii_only = style
        return json.dumps({k: value[k] for k in order}, indent=indent, separators=separators, ensure_ascii=ascii_only)

    styles = [
        (indent, separators, ascii_only)
        for indent, separators in ((None, (", ", ": ")), (None, (",", ":")), (2, (",", ": ")), (4, (",", ": ")))
        for ascii_only in (False, True)
    ]
    # Only a text that is written again letter by letter keeps its values through this.
    style = next((style for style in styles if written(list(value), style) == text), None)
    return None if style is None else (list(value), lambda order: written(order, style))


Change = Callable[[str, random.Random, Sequence[str]], str | None]
KINDS: dict[str, Change] = {
    "greeting": greeting, "thanks": thanks, "case": case, "punctuation": punctuation, "whitespace": whitespace,
    "typo": typo, "field order": field_order,
}  # fmt: skip
