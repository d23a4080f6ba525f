"""Short texts that say the same but for one misspelt word or a courtesy: they are compared word by word.

A typo or a "please" changes half of their groups of letters. Two words are one if they are an edit apart and just one
is in a dictionary. And texts of the same letters may differ in a number, a "not", the order (Zhang et al. 2019, PAWS).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from tuneloop.data.clean.language import LANGUAGES, detect_language, frequency, known_words

SHORT = 12  # words up to which texts are compared here: from some 30 letters on, Jaccard similarity sees past one typo
COMPARED = 50  # words up to which similar texts are compared in meaning
_LETTERS = 4  # of the longer of two words that may be one: shorter ones are mostly other words, codes or currencies
_RARE = 100  # times as often as a word must another one occur for it to be a misspelling: "cyst" of "cost", not "lost"

# As folded: lower case, no punctuation.
_ANYWHERE = frozenset("please pls plz plse bitte svp kindly".split())  # noqa: SIM905
_AT_THE_EDGES = frozenset(
    tuple(phrase.split())
    for phrase in (  # noqa: SIM905
        "hi,hi there,hi all,hi team,hello,hello there,hello team,hey,hey there,good morning,good afternoon,"
        "good evening,good day,dear team,dear support,dear sir,dear madam,dear sir or madam,excuse me,greetings,thanks,"
        "thank you,thx,ty,thanks a lot,many thanks,thank you very much,thanks in advance,thank you in advance,cheers,"
        "regards,"
        "hallo,guten tag,guten morgen,danke,vielen dank,danke schön,bonjour,bonsoir,salut,merci,merci beaucoup,"
        "sil vous plaît,hola,buenos días,buenas tardes,por favor,gracias,muchas gracias,olá,bom dia,obrigado,obrigada,"
        "ciao,buongiorno,grazie,per favore,per piacere,dank je,bedankt,alstublieft,alsjeblieft,goedemorgen"
    ).split(",")
)
_NEGATIONS = frozenset(
    "not no never none nothing nobody nor neither without cannot cant dont doesnt didnt isnt "  # noqa: SIM905
    "arent wasnt werent wont wouldnt couldnt shouldnt havent hasnt hadnt aint nicht kein keine keinen keiner "
    "keinem nie ohne pas jamais sans sin nunca jamás non mai senza não nem niet geen nooit zonder не нет без".split()
)
_OPPOSITES = (
    "monday tuesday wednesday thursday friday saturday sunday today tomorrow yesterday",
    "january february march april may june july august september october november december",
    "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand million",
    "usd eur gbp aud cad chf jpy inr nzd euro euros dollar dollars pound pounds yen rupees francs",
    "to from", "in out", "on off", "up down", "before after", "more less", "buy sell", "send receive", "credit debit",
    "open close", "increase decrease", "enable disable", "add remove", "high low", "first second third last", "he she",
    "his her", "left right", "north south east west", "am pm", "weekly monthly yearly daily", "minimum maximum",
    "same different", "always never",
)  # fmt: skip
_EXCLUSIVE = tuple(frozenset(group.split()) for group in _OPPOSITES)
_PREFIXES = ("un", "in", "im", "de", "dis", "non", "ir", "il", "mis")
_DIGIT = re.compile(r"\d")
_FIRST, _LAST = (frozenset(phrase[at] for phrase in _AT_THE_EDGES) for at in (0, -1))
_LONGEST = max(map(len, _AT_THE_EDGES))


def without_courtesies(words: Sequence[str]) -> Sequence[str]:
    """Folded words without greetings, thanks and "please"; all of them where nothing else is there."""
    if not words or (words[0] not in _FIRST and words[-1] not in _LAST and _ANYWHERE.isdisjoint(words)):
        return words
    left = [word for word in words if word not in _ANYWHERE]
    while left:
        at_start = next((n for n in range(_LONGEST, 0, -1) if tuple(left[:n]) in _AT_THE_EDGES), 0)
        del left[:at_start]
        at_end = next((n for n in range(_LONGEST, 0, -1) if tuple(left[-n:]) in _AT_THE_EDGES), 0)
        del left[len(left) - at_end :]
        if not at_start + at_end:
            break
    return left or words


def short_similarity(a: Sequence[str], b: Sequence[str], texts: tuple[str, str]) -> float:
    """How alike two short texts are that differ only in one typo and courtesies: 1 - edits / letters, else 0.

    A typo is one edit, as are all courtesies together: "where is my card" and "please where is my crd" are two edits in
    13 letters apart. `a` and `b` are their folded words; the capitals of `texts` tell names.
    """
    if max(len(a), len(b)) > SHORT:
        return 0.0
    one, other = without_courtesies(a), without_courtesies(b)
    if len(one) != len(other):
        return 0.0
    differing = [place for place, (u, v) in enumerate(zip(one, other, strict=True)) if u != v]
    if len(differing) > 1:
        return 0.0
    if differing:
        place = differing[0]
        u, v = one[place], other[place]
        rest = [word for at, word in enumerate(one) if at != place]
        if not one_edit_apart(u, v) or not _is_typo(u, v, rest) or all(map(_looks_like_a_name, texts, (u, v))):
            return 0.0
    courtesies = (len(a), len(b)) != (len(one), len(other))
    letters = max(sum(map(len, one)), sum(map(len, other)))
    return 1.0 - (len(differing) + courtesies) / max(letters, 1)


def same_meaning(a: Sequence[str], b: Sequence[str], texts: tuple[str, str]) -> bool:
    """Whether two similar texts may say the same: not if they differ in a negation, an opposite, or in who does what.

    Short texts also differ in a number or a name; longer ones with other numbers are mostly filled-in templates. A
    typo, a courtesy, another form of a word ("card", "cards") or a clause that is moved to the front changes nothing.
    `a` and `b` are the folded words of the texts.
    """
    if max(len(a), len(b)) > COMPARED or a == b:
        return True
    one, other = without_courtesies(a), without_courtesies(b)
    short = max(len(a), len(b)) <= SHORT
    if short and with_digits(one) != with_digits(other):
        return False
    if short_similarity(a, b, texts) > 0:
        return True
    if _differ_in_a_negation(one, other):
        return False
    if len(one) != len(other):
        return True
    if sorted(one) == sorted(other):
        return one == other or not _is_swap(one, other)
    differing = [(u, v) for u, v in zip(one, other, strict=True) if u != v]
    for u, v in differing:  # words that exclude each other: days, currencies, "to" and "from", "lock" and "unlock"
        less, more = sorted((u, v), key=len)
        prefixed = len(less) >= _LETTERS and any(more == prefix + less for prefix in _PREFIXES)
        if prefixed or any(u in group and v in group for group in _EXCLUSIVE):
            return False
    return not (short and len(differing) == 1 and all(map(_looks_like_a_name, texts, differing[0])))


def with_digits(words: Sequence[str]) -> list[str]:
    """The words that hold digits, in order."""
    return [word for word in words if _DIGIT.search(word)]


def _differ_in_a_negation(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one text has a "not" more, with a backtick for an apostrophe, too; a misspelt one counts as one."""
    here, there = Counter(one), Counter(other)
    lone = [list((here - there).elements()), list((there - here).elements())]
    negations = [[word for word in words if word.replace("`", "") in _NEGATIONS] for words in lone]
    if len(negations[0]) == len(negations[1]):
        return False
    pairs = ((word, partner) for i in (0, 1) for word in negations[i] for partner in lone[1 - i])
    return not any(one_edit_apart(word, partner) and partner not in known_words("en") for word, partner in pairs)


def _is_swap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two parts changed places around a third one: "from A to B", "from B to A"."""
    start = next(at for at, (u, v) in enumerate(zip(one, other, strict=True)) if u != v)
    end = next(at for at, (u, v) in enumerate(zip(reversed(one), reversed(other), strict=True)) if u != v)
    a, b = list(one[start : len(one) - end]), list(other[start : len(other) - end])
    n = len(a)
    return any(
        a[:i] == b[n - i :] and a[n - j :] == b[:j] and a[i : n - j] == b[j : n - i]
        for i in range(1, n - 1)
        for j in range(1, n - i)
    )


def one_edit_apart(u: str, v: str) -> bool:
    """Whether one letter is missing, added or another one, or two neighbours are swapped (Damerau-Levenshtein: 1)."""
    if abs(len(u) - len(v)) > 1 or u == v:
        return False
    same = next((n for n, (c, d) in enumerate(zip(u, v, strict=False)) if c != d), min(len(u), len(v)))
    u, v = u[same:], v[same:]
    return u[1:] == v[1:] or u[1:] == v or u == v[1:] or (u[:2] == v[1::-1] and u[2:] == v[2:] and len(u) > 1)


def _is_typo(u: str, v: str, rest: Sequence[str]) -> bool:
    """Whether just one of two words is one, in the language of the words around them. Digits and signs are no typos."""
    if not (u.isalpha() and v.isalpha() and max(len(u), len(v)) >= _LETTERS):
        return False
    vocabulary = known_words("en")
    if 2 * sum(word in vocabulary for word in rest) < len(rest):
        language, _ = detect_language(" ".join(rest))
        if language == "en" or language not in LANGUAGES:
            return False
        vocabulary = known_words(language)
    rarer, other = sorted((frequency(u, vocabulary), frequency(v, vocabulary)))
    return rarer * _RARE < other


@lru_cache(maxsize=1024)
def _looks_like_a_name(text: str, word: str) -> bool:
    """Whether a word has a capital where most words of the text have none, and no sentence begins."""
    match = re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
    if match is None or not match.group()[0].isupper() or match.group().isupper():
        return False
    before = text[: match.start()].rstrip()
    capitals = sum(other[0].isupper() for other in text.split())
    return bool(before) and before[-1] not in ".!?:\n" and capitals <= len(text.split()) // 2 + 1
