"""What rows are compared by: MinHash signatures (Broder 1997) in bands (Leskovec et al., 3.4); shingles; words.

Of folded texts: groups of three letters, so that a typo in a line of ten words leaves it above 0.8; over 50 words pairs
of words, since most groups of letters occur there anyway. The longer text of a pair decides; some are sketched twice.
Short texts that say the same but for one misspelt word or a courtesy are compared word by word: a typo or a "please"
changes half of their groups of letters. Two words are one if they are an edit apart and just one is in a dictionary.
And texts of the same letters may differ in a number, a "not", the order (Zhang et al. 2019, PAWS).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson

from tuneloop.data.clean.language import LANGUAGES, detect_language, frequency, known_words
from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dataset import Array, Columns, normalised, normalised_often
from tuneloop.records.rows import Row

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
    first, other = without_courtesies(a), without_courtesies(b)
    if len(first) != len(other):
        return 0.0
    differing = [index for index, (u, v) in enumerate(zip(first, other, strict=True)) if u != v]
    if len(differing) > 1:
        return 0.0
    if differing:
        position = differing[0]
        u, v = first[position], other[position]
        rest = [word for at, word in enumerate(first) if at != position]
        if not one_edit_apart(u, v) or not _is_typo(u, v, rest) or all(map(_looks_like_a_name, texts, (u, v))):
            return 0.0
    courtesies = (len(a), len(b)) != (len(first), len(other))
    letters = max(sum(map(len, first)), sum(map(len, other)))
    return 1.0 - (len(differing) + courtesies) / max(letters, 1)


def same_meaning(a: Sequence[str], b: Sequence[str], texts: tuple[str, str]) -> bool:
    """Whether two similar texts may say the same: not if they differ in a negation, an opposite, or in who does what.

    Short texts also differ in a number or a name; longer ones with other numbers are mostly filled-in templates. A
    typo, a courtesy, another form of a word ("card", "cards") or a clause that is moved to the front changes nothing.
    `a` and `b` are the folded words of the texts.
    """
    if max(len(a), len(b)) > COMPARED or a == b:
        return True
    first, other = without_courtesies(a), without_courtesies(b)
    short = max(len(a), len(b)) <= SHORT
    if short and with_digits(first) != with_digits(other):
        return False
    if short_similarity(a, b, texts) > 0:
        return True
    if _differ_in_a_negation(first, other):
        return False
    if len(first) != len(other):
        return True
    if sorted(first) == sorted(other):
        return first == other or not _is_swap(first, other)
    differing = [(u, v) for u, v in zip(first, other, strict=True) if u != v]
    for u, v in differing:  # words that exclude each other: days, currencies, "to" and "from", "lock" and "unlock"
        less, more = sorted((u, v), key=len)
        prefixed = len(less) >= _LETTERS and any(more == prefix + less for prefix in _PREFIXES)
        if prefixed or any(u in group and v in group for group in _EXCLUSIVE):
            return False
    return not (short and len(differing) == 1 and all(map(_looks_like_a_name, texts, differing[0])))


def with_digits(words: Sequence[str]) -> list[str]:
    """The words that hold digits, in order."""
    return [word for word in words if _DIGIT.search(word)]


def _differ_in_a_negation(first: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one text has a "not" more, with a backtick for an apostrophe, too; a misspelt one counts as one."""
    here, there = Counter(first), Counter(other)
    lone = [list((here - there).elements()), list((there - here).elements())]
    negations = [[word for word in words if word.replace("`", "") in _NEGATIONS] for words in lone]
    if len(negations[0]) == len(negations[1]):
        return False
    pairs = ((word, partner) for i in (0, 1) for word in negations[i] for partner in lone[1 - i])
    return not any(one_edit_apart(word, partner) and partner not in known_words("en") for word, partner in pairs)


def _is_swap(first: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two parts changed places around a third one: "from A to B", "from B to A"."""
    start = next(at for at, (u, v) in enumerate(zip(first, other, strict=True)) if u != v)
    end = next(at for at, (u, v) in enumerate(zip(reversed(first), reversed(other), strict=True)) if u != v)
    a, b = list(first[start : len(first) - end]), list(other[start : len(other) - end])
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


LONG = 50  # words above which shingles are pairs of words
SIDE = 0.7  # least similarity of the questions alone, and of the answers alone, of rows that are near duplicates
BANDS = 16  # at most: 4 bytes a row and sketch each
MISSED = 0.01  # share of pairs at the threshold that candidates may miss
SIGNS = 4  # numbers of 32 bits behind the band keys: one bit of each value of the signature
CROWD = 16  # rows at most that one is compared with, the likeliest
BUCKET = 192  # rows, divided by the values in a band, that are remembered at most of those with one band in common
VALUES = 96  # of a signature at least: more than the bands of a low threshold need, so that signs tell pairs apart
CACHED = 1 << 17  # characters of the folded texts that are held at once; their shingles take some 150 bytes each
TURN = "\x02"  # stands before each turn in both texts of a row; folded away like all control characters

Kind = Literal["letters", "words"]
Name = Literal["prompt", "whole"]  # of a sketch
MASKS = 4  # keys of a short text: each without every fourth word, so that texts that differ in one word share one
# What the names of the columns begin with that `sketch` makes.
COLUMNS = ("exact", "prompt", "whole", "edge_", "masked")
LEAST_SHARED = 20  # prompts, and characters of a frame
KINDS: tuple[Kind, ...] = ("letters", "words")
_PUNCTUATION = bytes(code for code in range(128) if unicodedata.category(chr(code))[0] == "P")
_CONTROLS = bytes(32 if unicodedata.category(chr(code)) == "Cc" else code for code in range(256))
_NUMBER = re.compile(r"\d+")
_FACTORS = np.random.default_rng(21).integers(0, 2**64, SHORT, dtype=np.uint64) | np.uint64(1)  # by place in a text
_AT_ONCE = 1024  # texts whose shingles fit the second-level cache


class RowTexts(NamedTuple):
    """A row cut into what is compared."""

    prompt: str  # what the user says; in a row without a user turn, all of it
    answer: str  # what assistant and tools say, with the calls; nothing where that is the label itself
    apart: str  # label, rating, system turns and tools, normalised: rows that differ in it are no near duplicates


@dataclass(frozen=True)
class PromptFrame:
    """What is around the words of nearly every prompt, such as an instruction: it says nothing about a row."""

    before: str = ""
    after: str = ""
    ratings: bool = False  # the rating: it does not set rows apart, as the best one of them is to stay

    def inside(self, text: str) -> str:
        """Text without the frame; as it is where the frame isn't there, or nothing else is."""
        if not (text.startswith(self.before) and text.endswith(self.after)):
            return text
        inner = text[len(self.before) : len(text) - len(self.after)]
        return inner if inner.strip() else text


NO_FRAME = PromptFrame()


def shared_frame(prompts: Sequence[str]) -> PromptFrame:
    """The frame that nine of ten different prompts share; from `LEAST_SHARED` prompts and characters of it on."""
    different = sorted(set(prompts))
    if len(different) < LEAST_SHARED:
        return NO_FRAME
    before = _shared_start(different)
    after = _shared_start(sorted(text[::-1] for text in different))[::-1]
    return PromptFrame(before, after) if before or after else NO_FRAME


def _shared_start(ordered: Sequence[str]) -> str:
    """The longest start that nine of ten sorted texts share, up to the end of a word."""
    span = math.ceil(0.9 * len(ordered)) - 1
    longest = ""
    for pair in zip(ordered, ordered[span:], strict=False):  # all between two sorted texts share what these share
        differing = (position for position, (a, b) in enumerate(zip(*pair, strict=False)) if a != b)
        same = next(differing, min(map(len, pair)))
        if same > len(longest):
            longest = pair[0][:same]
    while longest and not longest[-1].isspace():
        longest = longest[:-1]
    return longest if len(longest) >= LEAST_SHARED else ""


def texts_of(row: Row, frame: PromptFrame = NO_FRAME) -> RowTexts:
    """A row cut into what is compared, without the frame of the user's turns."""
    prompt: list[str] = []
    answer: list[str] = []
    system: list[str] = []
    asks = False
    for message in row.messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system.append(content)
        elif role == "user":
            prompt.append(frame.inside(content) if frame is not NO_FRAME else content)
            answer.append("")  # so that both tell whose turn it was
            asks = True
        else:
            answer.append(content)
            prompt.append("")
        if len(message) > 2 and (calls := message.get("tool_calls")):
            answer += [f"{call['function']['name']} {call['function']['arguments']}" for call in calls]
    apart = normalised_often(row.label) if row.label is not None else ""
    # One answer that some liked and others did not is a contradiction, no copy.
    if "thumb" in row.meta and not frame.ratings:
        apart += f"\n{row.meta['thumb']}"
    if system or row.tools:
        tools = orjson.dumps(row.tools, option=orjson.OPT_SORT_KEYS).decode() if row.tools else "[]"
        apart = "\n".join([apart, *map(normalised_often, system), tools])
    question, reply = f"{TURN} ".join(prompt), f"{TURN} ".join(answer)
    label = row.label if row.label is not None and len(reply) < len(row.label) + 40 else None
    if label is not None and normalised_often(reply.replace(TURN, "")) == normalised_often(label):
        reply = ""  # else rows of one label would be similar by it alone
    return RowTexts(question, reply, apart) if asks else RowTexts(reply, "", apart)


class _Folding(dict[int, str | None]):
    """A table for `str.translate`, filled as characters come up: punctuation, formats and surrogates are removed."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        folded = " " if category[0] == "Z" or category == "Cc" else None if category[0] in "PC" else chr(code)
        self[code] = folded
        return folded


_FOLDING = _Folding()


def folded_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and invisible characters; as they are if nothing else is there."""
    if text.isascii():
        plain = text.lower()
        words = plain.encode("ascii").translate(_CONTROLS, _PUNCTUATION).decode("ascii").split()
    else:
        plain = unicodedata.normalize("NFKC", text).casefold()
        words = plain.translate(_FOLDING).split()
    return words or plain.replace(TURN, " ").split()


def _shingles(words: Sequence[str], kind: Kind) -> set[Any]:
    if kind == "words":
        return set(itertools.pairwise(words)) if len(words) > 1 else set(words)
    letters = "".join(words)
    if len(letters) < 3:
        return {letters} if letters else set()
    return {letters[i : i + 3] for i in range(len(letters) - 2)}


@dataclass(frozen=True)
class Shape:
    """Texts of a row, folded, with the shingles that comparisons have needed so far."""

    texts: RowTexts
    prompt: list[str]
    answer: list[str]
    numbers: list[str]  # in what the assistant says
    cache: dict[tuple[str, Kind], set[Any]] = field(default_factory=dict)

    @functools.cached_property
    def digits(self) -> list[str]:
        """The words of the question that hold digits."""
        return with_digits(self.prompt)

    def shingles(self, side: Literal["prompt", "answer"], kind: Kind) -> set[Any]:
        """Of one side."""
        if (side, kind) not in self.cache:
            self.cache[side, kind] = _shingles(self.prompt if side == "prompt" else self.answer, kind)
        return self.cache[side, kind]


def shape_of(texts: RowTexts) -> Shape:
    """Texts made ready to be compared."""
    return Shape(texts, folded_words(texts.prompt), folded_words(texts.answer), _NUMBER.findall(texts.answer))


def _overlap(a: Shape, b: Shape, side: Literal["prompt", "answer"], length: int) -> tuple[int, int]:
    kind: Kind = "words" if length > LONG else "letters"
    first, other = a.shingles(side, kind), b.shingles(side, kind)
    both = len(first & other)
    return both, len(first) + len(other) - both


def _prompt_overlap(a: Shape, b: Shape, length: int) -> tuple[float, int]:
    """As `_overlap` of what the users say; texts that differ in a typo or a courtesy overlap by `short_similarity`."""
    both, either = _overlap(a, b, "prompt", length)
    if both == either:
        return both, either
    return max(both, either * short_similarity(a.prompt, b.prompt, (a.texts.prompt, b.texts.prompt))), either


def prompt_similarity(a: Shape, b: Shape) -> float:
    """Jaccard similarity of what the users say, or `short_similarity` where that is higher."""
    both, either = _prompt_overlap(a, b, max(len(a.prompt), len(b.prompt)))
    return both / either if either else 1.0


def may_be_copies(a: Shape, b: Shape) -> bool:
    """Whether what the users say means the same, as far as two alike texts show it; see `same_meaning`."""
    if max(len(a.prompt), len(b.prompt)) <= SHORT and a.digits != b.digits:
        return False  # as `same_meaning` says, of each text once: in a crowd of templates this decides nearly always
    return same_meaning(a.prompt, b.prompt, (a.texts.prompt, b.texts.prompt))


def similarities(a: Shape, b: Shape) -> tuple[float, float]:
    """`prompt_similarity`; Jaccard similarity of questions and answers together, 0 where one alone is not similar.

    A long answer that many questions get does not make these the same, nor a long question two answers. Nor are answers
    the same that hold different numbers.
    """
    prompt = prompt_similarity(a, b)
    if not a.answer and not b.answer:
        return prompt, prompt
    if prompt < SIDE or a.numbers != b.numbers:
        return prompt, 0.0
    both, either = _overlap(a, b, "answer", max(len(a.answer), len(b.answer)))
    if both < SIDE * either:
        return prompt, 0.0
    length = max(len(a.prompt) + len(a.answer), len(b.prompt) + len(b.answer))
    (prompt_both, prompt_either), (both, either) = _prompt_overlap(a, b, length), _overlap(a, b, "answer", length)
    return prompt, (prompt_both + both) / (prompt_either + either) if prompt_either + either else 1.0


def banding(threshold: float) -> tuple[int, int]:
    """Bands, and rows in each: as selective as they can be with at most `BANDS` bands that miss at most `MISSED`.

    A pair of similarity s has all values of one of b bands of r rows in common with probability 1 - (1 - s^r)^b.
    """
    best = (BANDS, 1)
    for rows in range(1, 9):
        chance = min(threshold, 1.0 - 1e-9) ** rows
        bands = max(1, math.ceil(math.log(MISSED) / math.log1p(-chance)))
        if bands <= BANDS:
            best = (bands, rows)
    return best


def signature_size(threshold: float) -> int:
    """Values of a signature: those of all bands, and at least VALUES."""
    return max(math.prod(banding(threshold)), VALUES)


def sketch(texts: Sequence[RowTexts], config: DuplicatesConfig) -> dict[str, Array]:
    """What is kept of rows to find duplicates by.

    Returns:
        `exact`: key of the whole row up to Unicode form, white space and case, uint64 (rows, 2). `prompt` and `whole`
            (unless only the user's words count): keys of the bands of MinHash signatures, then one bit of each value
            (b-bit minwise hashing; Li, König 2010), uint32 (rows, bands + SIGNS). For texts just below the limit
            between short and long a second sketch, `edge_prompt` and `edge_whole`, with the key `exact` of its row in
            `edge_prompt_of` and `edge_whole_of`: these have another length. `masked`: keys of short prompts with words
            left out, uint32 (rows, MASKS); 0 for none.
    """
    raw = (f"{normalised(t.prompt)}\0{normalised(t.answer)}\0{t.apart}".encode("utf-8", "surrogatepass") for t in texts)
    digests = (hashlib.blake2b(content, digest_size=16).digest() for content in raw)
    exact = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    columns: dict[str, Array] = {"exact": exact}
    if not config.near:
        return columns
    prompts, answers = [folded_words(t.prompt) for t in texts], [folded_words(t.answer) for t in texts]
    length = np.array([len(words) for words in prompts], dtype=np.int64)
    lengths = {"prompt": length, "whole": length + np.array([len(words) for words in answers], dtype=np.int64)}
    if config.on == "user":
        del lengths["whole"]
    bands, rows = banding(config.threshold)
    size = signature_size(config.threshold)
    for name in lengths:
        columns[name] = np.zeros((len(texts), bands + SIGNS), dtype=np.uint32)
    columns["masked"] = _masked_keys(prompts)
    edges: dict[str, Any] = {name: [] for name in lengths}
    apart = word_hashes([t.apart for t in texts]).astype(np.uint32)
    for kind in KINDS:
        # which texts can be part of a similar pair that is compared by this kind of shingles
        letters = kind == "letters"
        needs = {name: n <= LONG if letters else n > config.threshold * LONG for name, n in lengths.items()}
        used = np.flatnonzero(functools.reduce(np.logical_or, needs.values()))
        if len(used) == 0:
            continue
        signature = _signatures([prompts[i] for i in used], kind, size, 0)
        keys_of = {"prompt": _keys(signature, bands, rows)}
        if "whole" in lengths:
            replies = [answers[i] for i in used]
            keys_of["whole"] = keys_of["prompt"].copy()
            if any(replies):
                keys_of["whole"] = _keys(np.minimum(signature, _signatures(replies, kind, size, 1)), bands, rows)
            keys_of["whole"][:, :bands] ^= apart[used, None]  # rows apart need not meet
        for name, length in lengths.items():
            keys = keys_of[name]
            first = needs[name][used] & ((length[used] > LONG) == (kind == "words"))
            columns[name][used[first]] = keys[first]
            second = needs[name][used] & ~first
            edges[name].append((exact[used[second]], keys[second]))
    for name, parts in edges.items():
        columns[f"edge_{name}_of"] = np.concatenate([exact[:0], *(of for of, _ in parts)])
        columns[f"edge_{name}"] = np.concatenate([columns[name][:0], *(keys for _, keys in parts)])
    return columns


def _masked_keys(texts: Sequence[Sequence[str]]) -> Array:
    """Keys of short texts without courtesies and every fourth word; 0 where no word is left, or of long ones."""
    keys = np.zeros((len(texts), MASKS), dtype=np.uint32)
    short = [number for number, words in enumerate(texts) if 1 < len(words) <= SHORT]
    if not short:
        return keys
    cores = [without_courtesies(texts[number]) for number in short]
    lengths = np.array([len(core) for core in cores], dtype=np.int64)
    positions = counted(lengths)
    hashed = (word_hashes([word for core in cores for word in core]) + np.uint64(1)) * _FACTORS[positions]
    hashed ^= hashed >> np.uint64(29)
    starts = np.cumsum(lengths) - lengths
    for mask in range(MASKS):
        sums = np.add.reduceat(np.where(positions % MASKS == mask, np.uint64(0), hashed), starts)
        sums = (sums ^ (lengths * MASKS + mask).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        keys[short, mask] = np.where((lengths > mask) & (lengths > 1), sums >> np.uint64(32), 0)
    return keys


def windows(values: Array, lengths: Array, size: int) -> tuple[Array, Array]:
    """A hash of every run of `size` values within one text, and how many there are of each text.

    `values`: of all texts one after another, uint64; `lengths`: values of each text, at least `size`.
    """
    hashed = np.zeros(max(len(values) - size + 1, 0), dtype=np.uint64)
    for offset in range(size):
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        hashed += values[offset : offset + len(hashed)]
    inside = np.ones(len(values), dtype=bool)
    ends = np.cumsum(lengths)
    for offset in range(1, size):
        inside[ends - offset] = False
    hashed = hashed[inside[: len(hashed)]]
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    hashed ^= hashed >> np.uint64(32)
    return hashed, lengths - (size - 1)


def counted(lengths: Array) -> Array:
    """0, 1, ... up to each length, one after another."""
    numbers: Array = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return numbers


class _WordHashes(dict[str, int]):
    """Hashes that are computed as words come up: in long texts most words come again."""

    def __missing__(self, word: str) -> int:
        self[word] = hashed = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        return hashed


def word_hashes(words: Sequence[str]) -> Array:
    """A 32-bit hash of each word, as uint64."""
    return np.fromiter(map(_WordHashes().__getitem__, words), dtype=np.uint64, count=len(words))


def _signatures(texts: Sequence[Sequence[str]], kind: Kind, size: int, side: int) -> Array:
    """MinHash signatures, uint32 (size, texts): the least of `size` hash functions over a text's shingles."""
    some = [number for number, words in enumerate(texts) if words]
    if len(some) < len(texts):
        signatures = np.full((size, len(texts)), 2**32 - 1, dtype=np.uint32)
        if some:
            signatures[:, some] = _signatures([texts[number] for number in some], kind, size, side)
        return signatures
    random = np.random.default_rng(20)
    factors = random.integers(0, 2**32, size, dtype=np.uint32) | np.uint32(1)
    summands = random.integers(0, 2**32, size, dtype=np.uint32)
    signatures = np.empty((size, len(texts)), dtype=np.uint32)
    for begin in range(0, len(texts), _AT_ONCE):
        hashed, counts = _hashed_shingles(texts[begin : begin + _AT_ONCE], kind)
        shingles = (hashed >> np.uint64(32)).astype(np.uint32) ^ np.uint32(side * 0x5BD1E995)
        starts = np.cumsum(counts) - counts
        part = signatures[:, begin : begin + _AT_ONCE]
        values = np.empty_like(shingles)
        for number in range(size):
            np.multiply(shingles, factors[number], out=values)
            values += summands[number]
            np.minimum.reduceat(values, starts, out=part[number])
    return signatures


def _hashed_shingles(texts: Sequence[Sequence[str]], kind: Kind) -> tuple[Array, Array]:
    """Hashes of the shingles of all texts, and how many there are of each: at least one."""
    if kind == "letters":
        letters = ["".join(words).ljust(3, "\0") for words in texts]
        joined = "".join(letters)
        if joined.isascii():
            codes = np.frombuffer(joined.encode("ascii"), dtype=np.uint8).astype(np.uint64)
        else:
            codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        return windows(codes, np.array([len(text) for text in letters], dtype=np.int64), 3)
    padded = [[*words, *[""] * (2 - len(words))] for words in texts]
    lengths = np.array([len(words) for words in padded], dtype=np.int64)
    return windows(word_hashes([word for words in padded for word in words]), lengths, 2)


def _keys(signatures: Array, bands: int, rows: int) -> Array:
    """What is kept of signatures, by text: the keys of their bands, then SIGNS numbers with one bit of each value.

    The bits of two texts agree for every value in common and half of the others.
    """
    texts = signatures.shape[1]
    keys = np.zeros((bands, texts), dtype=np.uint64)
    for values in signatures[: bands * rows].reshape(bands, -1, texts).transpose(1, 0, 2):
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    bits = np.packbits(((signatures >> np.uint32(12)) & np.uint32(1)).astype(np.uint8).T, axis=1)
    signs = np.zeros((texts, 4 * SIGNS), dtype=np.uint8)
    signs[:, : bits.shape[1]] = bits
    return np.concatenate([(keys >> np.uint64(16)).astype(np.uint32).T, signs.view(np.uint32)], axis=1)


def most_apart(threshold: float) -> int:
    """Signs in which two texts at the threshold may differ: 3.1 standard deviations (1 in 1,000) above the mean."""
    values, differ = signature_size(threshold), (1.0 - threshold) / 2
    return math.floor(values * differ + 3.1 * math.sqrt(values * differ * (1.0 - differ)))


class Sketched(NamedTuple):
    """The sketches of some rows; a row may have two."""

    owner: Array  # place of the row that each belongs to; first all rows in order, then the second sketches
    signs: Array  # behind the band keys: uint64 (sketches, 2)
    bands: Iterator[Array]  # the keys, one band after another


def sketched(columns: Columns, name: Name, rows: Array) -> Sketched:
    """The sketches of rows, given by their indices."""
    owners, edge = _edges(columns, name, rows)
    keys, edge_keys = columns[name], columns[f"edge_{name}"]
    bands = (np.concatenate([keys[rows, band], edge_keys[edge, band]]) for band in range(keys.shape[1] - SIGNS))
    signs = np.ascontiguousarray(np.concatenate([keys[rows, -SIGNS:], edge_keys[edge, -SIGNS:]])).view("<u8")
    return Sketched(np.concatenate([np.arange(len(rows)), owners]), signs, bands)


def long_signs(sketches: Sketched, places: Iterable[int]) -> dict[int, list[int]]:
    """The signs of some rows, given by their places: of each sketch one long number."""
    some = np.flatnonzero(among(sketches.owner, np.fromiter(places, dtype=np.int64)))
    signs: dict[int, list[int]] = {}
    for owner, (low, high) in zip(sketches.owner[some].tolist(), sketches.signs[some].tolist(), strict=True):
        signs.setdefault(owner, []).append(low | high << 64)
    return signs


def among(values: Array, few: Array) -> Array:
    """Which values are among few others."""
    if len(few) == 0:
        return np.zeros(len(values), dtype=bool)
    few = np.sort(few)
    present: Array = few[np.minimum(np.searchsorted(few, values), len(few) - 1)] == values
    return present


def distance(signs: Sequence[int], others: Sequence[int]) -> int:
    """Places in which the signs of two rows differ; of several sketches the least."""
    if len(signs) == len(others) == 1:
        return (signs[0] ^ others[0]).bit_count()
    return min((sign ^ other).bit_count() for sign in signs for other in others)


def _edges(columns: Columns, name: str, rows: Array) -> tuple[Array, Array]:
    """For each second sketch of one of the rows: the row's place, and the sketch's index."""
    of, exact = columns[f"edge_{name}_of"], columns["exact"]
    pair = np.dtype([("a", "<u8"), ("b", "<u8")])
    some = np.flatnonzero(among(exact[rows, 0], of[:, 0]))
    if len(some) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    keys = np.ascontiguousarray(exact[rows[some]]).view(pair)[:, 0]
    owners, index = np.unique(np.ascontiguousarray(of).view(pair)[:, 0], return_index=True)  # copies have one sketch
    order = np.argsort(keys)
    at = np.minimum(np.searchsorted(keys, owners, sorter=order), len(some) - 1)
    there = keys[order[at]] == owners
    return some[order[at[there]]], index[there]
