"""Rows that say the same: exactly, nearly, or in other words.

Workers turn each row into a few hashes (`sketch`); the main process finds candidates by them and reads the texts of
candidates only (`find_duplicates`). Candidates come from MinHash signatures (Broder 1997) cut into bands (locality-sensitive
hashing; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4), and each is verified: near duplicates have
at least the threshold's exact Jaccard similarity.

What is compared are shingles of folded texts: case, punctuation and invisible characters do not count. Short texts
are cut into groups of three letters without regard to spaces, so that a typo in a line of ten words leaves it above 0.8;
texts of more than 50 words into pairs of words, because in long texts most groups of letters occur anyway. Which of the two
is used depends on the longer text of a pair; texts a little below the limit are sketched both ways.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.split import key64 as key64
from tuneloop.data.split import normalised
from tuneloop.types import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
KINDS: tuple[Kind, ...] = ("letters", "words")


class RowTexts(NamedTuple):
    """A row cut into what is compared.

    Args:
        prompt: what the user says; in a row without a user turn, all of it.
        answer: what assistant and tools say, with the calls; nothing where that is the label itself.
        apart: label, rating, system turns and tools, normalised: rows that differ in it are no near duplicates.
    """

    prompt: str
    answer: str
    apart: str


Texts = Callable[[Sequence[int]], Sequence[RowTexts]]


@dataclass(frozen=True)
class Frame:
    """What stands before and after the words of nearly every prompt, such as an instruction: it says nothing about a row."""

    before: str = ""
    after: str = ""

    def inside(self, text: str) -> str:
        """Text without the frame; as it is where the frame isn't there, or nothing else is."""
        if not (text.startswith(self.before) and text.endswith(self.after)):
            return text
        inner = text[len(self.before) : len(text) - len(self.after)]
        return inner if inner.strip() else text


NO_FRAME = Frame()


def shared_frame(prompts: Sequence[str], *, least: int = 20) -> Frame:
    """The frame that nine of ten different prompts of a sample share.

    Args:
        prompts: texts of user turns.
        least: characters below which a shared beginning or end is no frame, and prompts below which none is looked for.
    """
    different = sorted(set(prompts))
    if len(different) < least:
        return NO_FRAME
    before = _shared_start(different, least)
    after = _shared_start(sorted(text[::-1] for text in different), least)[::-1]
    return Frame(before, after)


def _shared_start(ordered: Sequence[str], least: int) -> str:
    """The longest start that nine of ten sorted texts share, up to the end of a word."""
    span = math.ceil(0.9 * len(ordered)) - 1
    longest = ""
    for low, high in zip(ordered, ordered[span:], strict=False):  # all between two sorted texts share what these share
        same = 0
        for a, b in zip(low, high, strict=False):
            if a != b:
                break
            same += 1
        if same > len(longest):
            longest = low[:same]
    while longest and not longest[-1].isspace():
        longest = longest[:-1]
    return longest if len(longest) >= least else ""


def texts_of(row: Row, frame: Frame = NO_FRAME) -> RowTexts:
    """A row cut into what is compared.

    Args:
        row: of any kind.
        frame: left out of the user's turns.
    """
    prompt: list[str] = []
    answer: list[str] = []
    system: list[str] = []
    for message in row.messages:
        role, content = message["role"], message["content"]
        if role == "user" and frame is not NO_FRAME:
            content = frame.inside(content)
        (prompt if role == "user" else system if role == "system" else answer).append(content)
        if role != "system":
            (answer if role == "user" else prompt).append("")  # so that both tell whose turn it was
        if calls := message.get("tool_calls"):
            answer += [f"{call['function']['name']} {call['function']['arguments']}" for call in calls]
    apart = _normal_label(row.label) if row.label is not None else ""
    if "thumb" in row.meta:  # one answer that some liked and others did not is a contradiction, no copy
        apart += f"\n{row.meta['thumb']}"
    if system or row.tools:
        import orjson

        apart = "\n".join(
            [apart, *map(normalised, system), orjson.dumps(row.tools, option=orjson.OPT_SORT_KEYS).decode()]
        )
    asked, said = f"{TURN} ".join(prompt), f"{TURN} ".join(answer)
    if (
        row.label is not None
        and len(said) < len(row.label) + 40
        and _normal_label(said.replace(TURN, "")) == _normal_label(row.label)
    ):
        said = ""  # else rows of one label would be similar by it alone
    if not any(message["role"] == "user" for message in row.messages):
        return RowTexts(said, "", apart)
    return RowTexts(asked, said, apart)


_normal_label = functools.lru_cache(maxsize=1 << 12)(normalised)  # labels come again and again

# --- folding and shingles ------------------------------------------------------------------------


class _Folding(dict[int, str | None]):
    """A table for `str.translate` that is filled as characters come up: punctuation, format characters and surrogates go."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        if category[0] == "Z" or category == "Cc":
            self[code] = " "
        elif category[0] in "PC":
            self[code] = None
        else:
            self[code] = chr(code)
        return self[code]


_FOLDING = _Folding()
_PUNCTUATION = bytes(code for code in range(128) if unicodedata.category(chr(code))[0] == "P")
_CONTROLS = bytes(32 if unicodedata.category(chr(code)) == "Cc" else code for code in range(256))
_NUMBER = re.compile(r"\d+")


def folded_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and invisible characters; as they stand if nothing else is there."""
    if text.isascii():
        plain = text.lower()
        words = plain.encode("ascii").translate(_CONTROLS, _PUNCTUATION).decode("ascii").split()
    else:
        plain = unicodedata.normalize("NFKC", text).casefold()
        words = plain.translate(_FOLDING).split()
    return words or plain.replace(TURN, " ").split()


def _kind(words: int) -> Kind:
    return "words" if words > LONG else "letters"


def _shingles(words: Sequence[str], kind: Kind) -> set[Any]:
    """The distinct shingles of folded words."""
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
    numbers: list[str]
    known: dict[tuple[str, Kind], set[Any]] = field(default_factory=dict)

    def shingles(self, side: Literal["prompt", "answer"], kind: Kind) -> set[Any]:
        """Of one side."""
        found = self.known.get((side, kind))
        if found is None:
            found = self.known[side, kind] = _shingles(self.prompt if side == "prompt" else self.answer, kind)
        return found


def shape_of(texts: RowTexts) -> Shape:
    """Texts made ready to be compared."""
    return Shape(texts, folded_words(texts.prompt), folded_words(texts.answer), _NUMBER.findall(texts.answer))


def _overlap(a: Shape, b: Shape, side: Literal["prompt", "answer"], words: int) -> tuple[int, int]:
    """Shingles that both have, and that either has."""
    kind = _kind(words)
    one, other = a.shingles(side, kind), b.shingles(side, kind)
    both = len(one & other)
    return both, len(one) + len(other) - both


def prompt_similarity(a: Shape, b: Shape) -> float:
    """Jaccard similarity of what the users say."""
    both, either = _overlap(a, b, "prompt", max(len(a.prompt), len(b.prompt)))
    return both / either if either else 1.0


def row_similarity(a: Shape, b: Shape) -> float:
    """Jaccard similarity of questions and answers together; 0 where one of the two alone is not similar.

    A long answer that many questions get does not make these the same, nor a long question two answers. Nor are answers
    the same that hold different numbers.
    """
    asked = prompt_similarity(a, b)
    if not a.answer and not b.answer:
        return asked
    if asked < SIDE or a.numbers != b.numbers:
        return 0.0
    both, either = _overlap(a, b, "answer", max(len(a.answer), len(b.answer)))
    if both < SIDE * either:
        return 0.0
    words = max(len(a.prompt) + len(a.answer), len(b.prompt) + len(b.answer))
    sides = (_overlap(a, b, "prompt", words), _overlap(a, b, "answer", words))
    both, either = (sum(counts) for counts in zip(*sides, strict=True))
    return both / either if either else 1.0


# --- sketches ------------------------------------------------------------------------------------


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


def sketch(texts: Sequence[RowTexts], config: DuplicatesConfig) -> dict[str, NDArray[Any]]:
    """What is kept of rows to find duplicates by.

    Returns:
        `exact`: key of the whole row up to Unicode form, white space and case, uint64 (rows, 2). `prompt` and `whole`
        (unless only the user's words count): keys of the bands of MinHash signatures, then one bit of each of their
        values (b-bit minwise hashing; Li, König 2010), uint32 (rows, bands + SIGNS). And for texts just below the limit between short and long the second sketch, as `edge_prompt` and `edge_whole`, with the
        key `exact` of its row in `edge_prompt_of` and `edge_whole_of`: these have a length of their own.
    """
    exact = _exact_keys(texts)
    columns: dict[str, NDArray[Any]] = {"exact": exact}
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
    edges: dict[str, Any] = {name: [] for name in lengths}
    apart = word_hashes([t.apart for t in texts]).astype(np.uint32)
    for kind in KINDS:
        needs = {name: _needs(length, kind, config.threshold) for name, length in lengths.items()}
        used = np.flatnonzero(functools.reduce(np.logical_or, needs.values()))
        if len(used) == 0:
            continue
        signatures = {"prompt": _signatures([prompts[i] for i in used], kind, size, 0)}
        if "whole" in lengths:
            answer = _signatures([answers[i] for i in used], kind, size, 1)
            signatures["whole"] = np.minimum(signatures["prompt"], answer)
        for name, length in lengths.items():
            keys = np.concatenate(
                [_band_keys(signatures[name][: bands * rows], bands), _signs(signatures[name])], axis=1
            )
            if name == "whole":  # rows apart need not meet
                keys[:, :bands] ^= apart[used, None]
            own = needs[name][used] & ((length[used] > LONG) == (kind == "words"))
            columns[name][used[own]] = keys[own]
            second = needs[name][used] & ~own
            edges[name].append((exact[used[second]], keys[second]))
    for name, parts in edges.items():
        columns[f"edge_{name}_of"] = np.concatenate([exact[:0], *(of for of, _ in parts)])
        columns[f"edge_{name}"] = np.concatenate([columns[name][:0], *(keys for _, keys in parts)])
    return columns


def _needs(length: NDArray[Any], kind: Kind, threshold: float) -> NDArray[Any]:
    """Which texts can be part of a similar pair that is compared by this kind of shingles."""
    return length <= LONG if kind == "letters" else length > threshold * LONG


def _exact_keys(texts: Sequence[RowTexts]) -> NDArray[Any]:
    import hashlib

    digests = [
        hashlib.blake2b(
            f"{normalised(t.prompt)}\0{normalised(t.answer)}\0{t.apart}".encode("utf-8", "surrogatepass"),
            digest_size=16,
        ).digest()
        for t in texts
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


def windows(values: NDArray[Any], lengths: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A hash of every run of `size` values that stays within one text.

    Args:
        values: of all texts one after another, uint64.
        lengths: values of each text, at least `size`.

    Returns:
        the hashes, and how many there are of each text.
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


def word_hashes(words: Sequence[str]) -> NDArray[Any]:
    """A 32-bit hash of each word, as uint64."""
    return np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)


_AT_ONCE = 1024  # texts whose shingles fit the second-level cache


def _signatures(texts: Sequence[Sequence[str]], kind: Kind, size: int, side: int) -> NDArray[Any]:
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
        for number in range(size):
            np.minimum.reduceat(shingles * factors[number] + summands[number], starts, out=part[number])
    return signatures


def _hashed_shingles(texts: Sequence[Sequence[str]], kind: Kind) -> tuple[NDArray[Any], NDArray[Any]]:
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


def _band_keys(signatures: NDArray[Any], bands: int) -> NDArray[Any]:
    """One number of 32 bits for the values of each band: (texts, bands)."""
    keys = np.zeros((bands, signatures.shape[1]), dtype=np.uint64)
    for values in signatures.reshape(bands, -1, signatures.shape[1]).transpose(1, 0, 2):
        keys = (keys ^ values) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return (keys >> np.uint64(16)).astype(np.uint32).T


def _signs(signatures: NDArray[Any]) -> NDArray[Any]:
    """One bit of each value: (texts, SIGNS). Those of two texts agree for every value in common and half of the others."""
    bits = ((signatures >> np.uint32(12)) & np.uint32(1)).astype(np.uint8)
    packed = np.zeros((signatures.shape[1], 4 * SIGNS), dtype=np.uint8)
    found = np.packbits(bits.T, axis=1)
    packed[:, : found.shape[1]] = found
    return packed.view(np.uint32)


def most_apart(threshold: float) -> int:
    """Signs in which two texts at the threshold may differ: 3.1 standard deviations (one pair in 1,000) above the mean."""
    values, differ = signature_size(threshold), (1.0 - threshold) / 2
    return math.floor(values * differ + 3.1 * math.sqrt(values * differ * (1.0 - differ)))


# --- decisions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Duplicates:
    """Rows to drop, in rising order, and for each the row that stays in its place.

    Args:
        dropped: indices of the rows.
        of: of each, the row it is like. That one is kept; only the equal of an exact duplicate may itself be dropped,
            as a near duplicate of a kept row.
        similarity: Jaccard similarity or cosine; 1 for exact duplicates.
        exact: whether they are equal up to Unicode form, white space and case.
    """

    dropped: NDArray[Any]
    of: NDArray[Any]
    similarity: NDArray[Any]
    exact: NDArray[Any]


def preference(
    keep: str,
    *,
    count: int,
    characters: NDArray[Any] | None = None,
    time: NDArray[Any] | None = None,
    rating: NDArray[Any] | None = None,
    pinned: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """All rows, those that stay first.

    Args:
        keep: `first`, `longest`, `newest` or `best`; among equals, and where nothing is known, the earlier row.
        count: number of rows.
        characters: length of each row.
        time: seconds since 1970, NaN for none.
        rating: higher is better, NaN for none.
        pinned: rows that stay before all others, such as those of a frozen test set.
    """
    value = {"longest": characters, "newest": time, "best": rating}.get(keep)
    worth = np.zeros(count) if value is None else np.where(np.isnan(value), -np.inf, value)
    last = np.zeros(count, dtype=bool) if pinned is None else ~pinned
    order: NDArray[Any] = np.lexsort((np.arange(count), -worth, last))
    return order


def _shapes(texts: Texts) -> Callable[[int], Shape]:
    """Reads and folds the texts of a row, and remembers the latest."""
    known: dict[int, Shape] = {}
    held = 0

    def shape(row: int) -> Shape:
        nonlocal held
        found = known.get(row)
        if found is None:
            if held > CACHED:
                known.clear()
                held = 0
            cut = texts([row])[0]
            found = known[row] = shape_of(cut)
            held += len(cut.prompt) + len(cut.answer)
        return found

    return shape


_COMPARED: dict[str, tuple[Name, ...]] = {
    "row": ("whole",),
    "user": ("prompt",),
    "both": ("whole", "prompt"),
}


def find_duplicates(
    columns: Mapping[str, NDArray[Any]],
    texts: Texts,
    config: DuplicatesConfig,
    *,
    rows: NDArray[Any],
    order: NDArray[Any],
) -> Duplicates:
    """Rows that are the same as one that stays.

    Rows are taken in the order of preference; each is dropped if it is similar enough to one that has been kept, else it is
    kept. So every dropped row is similar to the row in its place (no chains), and no two kept ones are similar,
    but for pairs that the sketches miss (1 % of those just at the threshold, hardly any above) and crowds of more than
    `CROWD` rows that are nearly similar. Rows of different labels, system turns or tools are never near duplicates.

    Args:
        columns: of all rows, from `sketch`.
        texts: reads the texts of rows.
        config: the same as for the sketches.
        rows: indices of those that count.
        order: all rows, those that stay first; see `preference`.
    """
    rows = _in_order(rows, order)
    heads, copies, originals = _firsts(columns["exact"][rows])
    of = (
        {int(rows[c]): (int(rows[o]), 1.0, True) for c, o in zip(copies, originals, strict=True)}
        if config.exact
        else {}
    )
    kept = rows[heads]  # equal rows are left out of the near search even if they stay: that would be quadratic
    if config.near:
        candidates = _Candidates(columns, _COMPARED[config.on], kept, config.threshold)
        shape = _shapes(texts)

        def similarity(row: int, other: int) -> float:
            a, b = shape(row), shape(other)
            if a.texts.apart != b.texts.apart:
                return 0.0
            value = row_similarity(a, b) if config.on != "user" else 0.0
            return max(value, prompt_similarity(a, b)) if config.on != "row" else value

        for row, other, value in _leaders(candidates, similarity, config.threshold):
            of[row] = (other, value, False)
    dropped = np.array(sorted(of), dtype=np.int64)
    facts = [of[row] for row in dropped.tolist()]
    return Duplicates(
        dropped,
        np.array([fact[0] for fact in facts], dtype=np.int64),
        np.array([fact[1] for fact in facts], dtype=np.float32),
        np.array([fact[2] for fact in facts], dtype=bool),
    )


def find_links(
    columns: Mapping[str, NDArray[Any]],
    texts: Texts,
    threshold: float,
    *,
    rows: NDArray[Any],
    question: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs of rows whose questions are nearly equal, whatever their answers and labels: they belong in one split.

    Not all pairs, but enough that whoever follows them reaches every similar row. Those whose labels differ
    are the candidates for wrong labels.

    Args:
        columns: of all rows, from `sketch` with this threshold; without `prompt` there are no pairs.
        texts: reads the texts of rows.
        threshold: least Jaccard similarity of the questions.
        rows: indices of those that count.
        question: `key64` of each row's `prompt_key`; of rows with one question only the first is looked at.

    Returns:
        the pairs (pairs, 2), and their similarities.
    """
    found: list[tuple[int, int, float]] = []
    if "prompt" in columns and len(rows):
        rows = rows[np.sort(np.unique(question[rows], return_index=True)[1])]
        candidates = _Candidates(columns, ("prompt",), rows, threshold)
        shape = _shapes(texts)
        found = _linked(candidates, lambda a, b: prompt_similarity(shape(a), shape(b)), threshold)
    pairs = np.array([pair[:2] for pair in found], dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([pair[2] for pair in found], dtype=np.float32)


def find_conflicts(question: NDArray[Any], rows: NDArray[Any], order: NDArray[Any]) -> list[NDArray[Any]]:
    """Rows with one question that are left after copies are gone: their answers or labels differ.

    Args:
        question: `key64` of each row's `prompt_key`.
        rows: indices of those that count.
        order: all rows, those that stay first.

    Returns:
        groups of two rows and more, each with the preferred row first; in the order of these.
    """
    rows = _in_order(rows, order)
    places = np.argsort(question[rows], kind="stable")
    asked = question[rows[places]]
    again = np.zeros(len(asked), dtype=bool)
    again[1:] = asked[1:] == asked[:-1]
    shared = again.copy()
    shared[:-1] |= again[1:]
    places, first = places[shared], ~again[shared]
    groups = np.split(places, np.flatnonzero(first)[1:]) if len(places) else []
    return [rows[group] for group in sorted(groups, key=lambda group: int(group[0]))]


def _in_order(rows: NDArray[Any], order: NDArray[Any]) -> NDArray[Any]:
    """Rows in the order of preference."""
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    sorted_rows: NDArray[Any] = rows[np.argsort(rank[rows])]
    return sorted_rows


def _firsts(keys: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Places of the first of equal keys; places of the others, and for each the place of its first."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in their order
    new = np.ones(len(order), dtype=bool)
    one, other = keys[order, 0], keys[order, 1]
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    first = order[new][np.cumsum(new) - 1]
    return np.sort(order[new]), order[~new], first[~new]


def sketched(
    columns: Mapping[str, NDArray[Any]], name: Name, rows: NDArray[Any]
) -> tuple[NDArray[Any], Iterator[NDArray[Any]]]:
    """The keys of the sketches of rows, band by band, and before them the place in `rows` that each belongs to.

    Some rows have two sketches, so the first places are those of all rows in order, and others follow.
    """
    place, edge = _edges(columns, name, rows)
    keys, edge_keys = columns[name], columns[f"edge_{name}"]
    bands = (np.concatenate([keys[rows, band], edge_keys[edge, band]]) for band in range(keys.shape[1] - SIGNS))
    return np.concatenate([np.arange(len(rows)), place]), bands


def signs_of(
    columns: Mapping[str, NDArray[Any]], name: Name, rows: NDArray[Any], places: NDArray[Any]
) -> dict[int, list[int]]:
    """The signs of some rows, given by their places in `rows`: of each sketch one long number."""
    signs = {place: [sign] for place, sign in zip(places.tolist(), _long(columns[name][rows[places]]), strict=True)}
    owner, edge = _edges(columns, name, rows)
    for place, sign in zip(owner.tolist(), _long(columns[f"edge_{name}"][edge]), strict=True):
        if place in signs:
            signs[place].append(sign)
    return signs


def _long(sketches: NDArray[Any]) -> list[int]:
    pairs = np.ascontiguousarray(sketches[:, -SIGNS:]).view("<u8").tolist()
    return [low | high << 64 for low, high in pairs]


def distance(signs: Sequence[int], others: Sequence[int]) -> int:
    """Places in which the signs of two rows differ; of several sketches the least."""
    if len(signs) == len(others) == 1:
        return (signs[0] ^ others[0]).bit_count()
    return min((sign ^ other).bit_count() for sign in signs for other in others)


class _Candidates:
    """Rows that may be similar: they share a band, and their signs differ no more than those of similar rows.

    Args:
        columns: of all rows.
        names: of the sketches; rows may be similar by any of them.
        rows: indices of those that count, in the order in which they are taken.
        threshold: of the similarity.
    """

    def __init__(
        self, columns: Mapping[str, NDArray[Any]], names: Sequence[Name], rows: NDArray[Any], threshold: float
    ) -> None:
        owners, buckets = [], []
        count = 0
        for name in names:
            owner, bands = sketched(columns, name, rows)
            for keys in bands:
                order = np.argsort(keys)
                same = keys[order[1:]] == keys[order[:-1]]
                shared = np.zeros(len(keys), dtype=bool)
                shared[1:] = same
                shared[:-1] |= same
                numbers = np.cumsum(np.concatenate([[False], ~same]))[shared]
                numbers = np.unique(numbers, return_inverse=True)[1]
                owners.append(owner[order[shared]].astype(np.int32))
                buckets.append((numbers + count).astype(np.int32))
                count += int(numbers[-1]) + 1 if len(numbers) else 0
        owner, bucket = np.concatenate(owners), np.concatenate(buckets)
        order = np.argsort(owner, kind="stable")
        self._owners, self._buckets, self._rows = owner[order], bucket[order], rows
        room = np.minimum(np.bincount(bucket, minlength=count), BUCKET // banding(threshold)[1])
        ends = np.cumsum(room)
        self._start, self._end, self._limit = _array(ends - room), _array(ends - room), _array(ends)
        self._slots = _array(np.zeros(int(room.sum())))
        self._signs = [signs_of(columns, name, rows, np.unique(owner)) for name in names]
        self._most = most_apart(threshold)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Places of the rows that share bands, in order, and the numbers of these bands."""
        ends = np.append(np.flatnonzero(np.diff(self._owners)) + 1, len(self._owners)).tolist()
        begin = 0
        for end in ends:
            if end > begin:
                yield int(self._owners[begin]), self._buckets[begin:end].tolist()
            begin = end

    def row(self, place: int) -> int:
        """Index of the row at a place."""
        return int(self._rows[place])

    def add(self, place: int, bands: Sequence[int]) -> None:
        """From now on the row is found by others."""
        for band in bands:
            if (end := self._end[band]) < self._limit[band]:
                self._slots[end] = place
                self._end[band] = end + 1

    def near(self, place: int, bands: Sequence[int]) -> list[int]:
        """Places of rows added so far that may be similar, the likeliest first; at most CROWD."""
        shared: set[int] = set()
        for band in bands:
            shared.update(self._slots[self._start[band] : self._end[band]])
        shared.discard(place)
        found = []
        for other in shared:
            apart = min(distance(signs[place], signs[other]) for signs in self._signs)
            if apart <= self._most:
                found.append((apart, other))
        return [other for _, other in sorted(found)[:CROWD]]


def _edges(columns: Mapping[str, NDArray[Any]], name: str, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each second sketch of one of the rows: the row's place, and the sketch's index."""
    of = columns[f"edge_{name}_of"]
    if len(of) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    pair = np.dtype([("a", "<u8"), ("b", "<u8")])
    known = np.ascontiguousarray(columns["exact"][rows]).view(pair)[:, 0]
    wanted, index = np.unique(np.ascontiguousarray(of).view(pair)[:, 0], return_index=True)  # copies have one sketch
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(rows) - 1)
    there = known[order[at]] == wanted
    return order[at[there]], index[there]


def semantic_duplicates(
    embeddings: NDArray[Any],
    threshold: float,
    *,
    rows: NDArray[Any],
    order: NDArray[Any],
    apart: NDArray[Any] | None = None,
) -> Duplicates:
    """Rows whose embeddings are as similar as the threshold to those of a row that stays; in order of preference.

    Every row is compared with all kept rows: 100,000 rows take minutes. Beside the embeddings, those of the kept rows and
    a few blocks are held in memory.

    Args:
        embeddings: one unit vector for each of `rows` (rows, size).
        threshold: least cosine similarity.
        rows: indices of the rows that count.
        order: all rows, those that stay first; see `preference`.
        apart: for each of `rows` a number; rows of different numbers, such as labels, are no duplicates.
    """
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    places = np.argsort(rank[rows])
    apart = np.zeros(len(rows), dtype=np.int64) if apart is None else apart
    kept = np.empty(len(rows), dtype=np.int64)
    leaders = np.empty_like(embeddings)  # of the kept rows, one after another
    count = 0
    found: list[tuple[int, int, float]] = []
    for begin in range(0, len(places), _AT_ONCE):
        block = places[begin : begin + _AT_ONCE]
        best, of = np.full(len(block), -1.0), np.full(len(block), -1)
        for start in range(0, count, 8 * _AT_ONCE):
            some = kept[start : min(start + 8 * _AT_ONCE, count)]
            alike = embeddings[block] @ leaders[start : start + len(some)].T
            alike[apart[block, None] != apart[some]] = -1.0
            at = alike.argmax(axis=1)
            value = alike[np.arange(len(block)), at]
            better = value > best
            best[better], of[better] = value[better], some[at[better]]
        inside = embeddings[block] @ embeddings[block].T
        inside[apart[block, None] != apart[block]] = -1.0
        stays = np.zeros(len(block), dtype=bool)
        for number, place in enumerate(block.tolist()):
            near = np.where(stays[:number], inside[number, :number], -1.0)
            if number and near.max() > best[number]:
                best[number], of[number] = near.max(), block[near.argmax()]
            stays[number] = best[number] < threshold
            if not stays[number]:
                found.append((int(rows[place]), int(rows[of[number]]), float(best[number])))
        new = block[stays]
        kept[count : count + len(new)], leaders[count : count + len(new)] = new, embeddings[new]
        count += len(new)
    found.sort()
    columns = list(zip(*found, strict=True)) or [(), (), ()]
    return Duplicates(
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.int64),
        np.array(columns[2], dtype=np.float32),
        np.zeros(len(found), dtype=bool),
    )


def _array(numbers: NDArray[Any]) -> array[int]:
    """Numbers below 2^31 where single ones are read and written fast."""
    return array("i", numbers.astype(np.intc).tobytes())


Similarity = Callable[[int, int], float]


def _leaders(candidates: _Candidates, similarity: Similarity, threshold: float) -> list[tuple[int, int, float]]:
    """Rows in their order, each either kept or, if similar to a kept one, given with the most similar of these."""
    dropped = []
    for place, bands in candidates:
        row = candidates.row(place)
        best, of = 0.0, -1
        for other in map(candidates.row, candidates.near(place, bands)):
            value = similarity(row, other)
            if value > best:
                best, of = value, other
        if best >= threshold:
            dropped.append((row, of, best))
        else:
            candidates.add(place, bands)
    return dropped


def _linked(candidates: _Candidates, similarity: Similarity, threshold: float) -> list[tuple[int, int, float]]:
    """Similar pairs that connect all rows that a chain of similar pairs connects (union-find)."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (above := parent.setdefault(row, row)) != row:
            parent[row] = row = parent[above]
        return row

    pairs = []
    for place, bands in candidates:
        row = candidates.row(place)
        for other in map(candidates.row, candidates.near(place, bands)):
            if root(row) != root(other) and (value := similarity(row, other)) >= threshold:
                parent[root(row)] = root(other)
                pairs.append((other, row, value))
        candidates.add(place, bands)
    return pairs
