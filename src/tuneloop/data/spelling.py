"""The words of twelve languages and how often each occurs, from the lists in the package pyspellchecker (MIT)."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from importlib import resources

import orjson

LANGUAGES = frozenset({"en", "de", "es", "fr", "it", "nl", "pt", "ru", "ar", "lv", "eu", "fa"})
_PART = 4  # letters of a word in a longer one: shorter ones are found in everything


@cache
def known_words(language: str) -> Mapping[str, int]:
    """The words of a language, in lower case and without apostrophes, and how often each occurs; about 160,000 English ones."""
    words = resources.files("spellchecker").joinpath("resources", f"{language}.json.gz").read_bytes()
    known: dict[str, int] = orjson.loads(gzip.decompress(words))
    for word in [word for word in known if "'" in word or not word.isascii()]:
        plain = word.casefold().replace("'", "").replace("’", "")
        if plain != word:
            known[plain] = known.get(plain, 0) + known[word]
    return known


def frequency(word: str, known: Mapping[str, int]) -> int:
    """How often a word occurs; two words in one, as in "passcode", as often as the rarer one; else 0."""
    parts = (min(known.get(word[:at], 0), known.get(word[at:], 0)) for at in range(_PART, len(word) - _PART + 1))
    return known.get(word) or max(parts, default=0)


def made_of_words(text: str, known: Mapping[str, int]) -> bool:
    """Whether a text in lower case, without gaps, is one known word after another, as in "lightweightframework"."""
    ends = {0}
    for end in range(_PART, len(text) + 1):
        if any(start in ends and text[start:end] in known for start in range(max(0, end - 30), end - _PART + 1)):
            ends.add(end)
    return len(text) in ends
