"""Which rows are similar: candidates by their sketches, each verified by exact Jaccard similarity, many pairs at once.

Candidates share a band of their MinHash signatures, and the signs behind it differ no more than those of similar rows do. Both
is arithmetic on whole columns; the texts of the candidates are read and compared in batches, which any process can do. A row
with more candidates than `MANY` is left to `Crowd`, which compares it with rows that are still there when its turn comes: in a
crowd of a thousand nearly equal rows that is one row instead of all.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.dedup.minhash import (
    BUCKET,
    CACHED,
    CROWD,
    LONG,
    MASKS,
    SIDE,
    SIGNS,
    Kind,
    Name,
    RowTexts,
    Shape,
    Sketched,
    among,
    banding,
    counted,
    distance,
    folded_words,
    long_signs,
    may_be_copies,
    most_apart,
    numbers_of,
    prompt_similarity,
    row_similarity,
    shape_of,
    sketched,
)
from tuneloop.data.dedup.short_texts import COMPARED, SHORT, short_similarity, without_courtesies
from tuneloop.data.split import Array, Columns
from tuneloop.data.workers import ordered_map

Texts = Callable[[Sequence[int]], Sequence[RowTexts]]
Carry = Callable[[Any], Any]  # from row indices to something with a function `texts` of them, that can be sent anywhere
Batch = Any  # row indices of candidate pairs, int64 (pairs, 2)
Verified = tuple[Any, Any, Any, Any]

BATCH = 2048  # pairs that are compared at once
MANY = 32  # candidates of a row up to which it is compared with all
FULL = 8 * BUCKET  # as BUCKET, of the rows of a bucket up to which all pairs in it are looked at
SLOT_BITS = 25  # of the table that looks for keys in common: 160 MiB at most
COMPARED_CHARACTERS = 16 * COMPARED  # from which on the meanings of similar texts are not compared
_AT_ONCE = 1 << 20  # candidates that are looked at at once


@dataclass(frozen=True)
class Comparing:
    """What a process needs to compare rows: how their texts are read, and the similarity from which pairs matter."""

    texts: Texts
    threshold: float


@dataclass(frozen=True)
class Alike:
    """Pairs of rows of which the questions are similar, or the whole.

    Args:
        rows: indices of the rows that were compared, in the order of preference; pairs are places in it.
        one, other: places of the pairs, `one` the earlier; sorted by `other`, then `one`.
        prompt: Jaccard similarity of the questions; whole: of the rows, see `row_similarity`.
        together: whether they may be copies: label, system turns and tools are equal, and short questions mean the same.
        crowded: by place, whether a row has so many candidates that it was not compared with all that stand before it.
    """

    rows: Array
    one: Array
    other: Array
    prompt: Array
    whole: Array
    together: Array
    crowded: Array


def find_alike(
    columns: Columns, texts: Texts, threshold: float, *, rows: Array, workers: int = 1, carry: Carry | None = None
) -> Alike:
    """Similar pairs, but for those that the sketches miss (1 % of those just at the threshold, hardly any above).

    Args:
        columns: of all rows, from `sketch` with this threshold.
        texts: reads the texts of rows.
        threshold: least Jaccard similarity, of the questions or the whole.
        rows: indices of those that count, in the order of preference.
        workers: processes that compare texts.
        carry: texts are compared on a Ray cluster, and this gives the rows that are sent there.
    """
    crowded = np.zeros(len(rows), dtype=bool)
    pairs = np.zeros(0, dtype=np.uint64)
    for name in _names(columns):
        if len(rows):
            for candidates in _sharing(columns, name, rows, threshold, crowded):
                pairs = _distinct(np.concatenate([pairs, candidates]))
                crowded |= np.bincount(_other(pairs), minlength=len(rows)) > MANY
                pairs = pairs[~crowded[_other(pairs)]]
    pairs = _distinct(np.concatenate([pairs, *_sharing_all_but_a_word(columns, rows)]))
    pairs = pairs[~crowded[_other(pairs)]]
    one, other = (pairs & np.uint64(2**32 - 1)).astype(np.int64), _other(pairs)
    batches = (
        np.stack([rows[one[begin : begin + BATCH]], rows[other[begin : begin + BATCH]]], axis=1)
        for begin in range(0, len(pairs), BATCH)
    )
    if carry is None:
        verified = list(ordered_map(verify, batches, Comparing(texts, threshold), workers=workers))
    else:
        sent = ((batch, carry(np.unique(batch))) for batch in batches)
        verified = list(ordered_map(verify_carried, sent, threshold, workers=workers, engine="ray"))
    places_of_batches = [number * BATCH + places for number, (places, *_) in enumerate(verified)]
    places = np.concatenate([np.zeros(0, dtype=np.int64), *places_of_batches])
    prompt_likeness, whole = (
        np.concatenate([np.zeros(0), *(candidates[i] for candidates in verified)]) for i in (1, 2)
    )
    together = np.concatenate([np.zeros(0, dtype=bool), *(candidates[3] for candidates in verified)])
    return Alike(rows, one[places], other[places], prompt_likeness, whole, together, crowded)


def _names(columns: Columns) -> tuple[Name, ...]:
    """The sketches to look at: where no row has an answer, as with labels, the whole is the question and finds nothing else."""
    if "whole" not in columns or np.array_equal(columns["whole"][:, -SIGNS:], columns["prompt"][:, -SIGNS:]):
        return ("prompt",)
    return ("whole", "prompt")


def _other(pairs: Array) -> Array:
    return (pairs >> np.uint64(32)).astype(np.int64)


def _sharing(columns: Columns, name: Name, rows: Array, threshold: float, crowded: Array) -> Iterator[Array]:
    """Pairs of places that may be similar, each `later << 32 | earlier`, band by band; marks rows in overfull buckets as crowded."""
    owner, signs, bands = sketched(columns, name, rows)
    in_order = np.argsort(owner, kind="stable")
    owner, signs = owner[in_order], signs[in_order]
    room, most = FULL // banding(threshold)[1], most_apart(threshold)
    for keys in bands:
        # Sorted by key and then by place: the rows of a bucket follow each other in their order.
        keys = keys[in_order]
        some = np.flatnonzero(_perhaps_shared(keys))
        entries = keys[some].astype(np.uint64)
        entries <<= np.uint64(32)
        entries |= some.astype(np.uint64)
        entries.sort()
        entries = entries[_in_company(entries)]
        key = (entries >> np.uint64(32)).astype(np.uint32)
        same = key[1:] == key[:-1]
        later = np.flatnonzero(same) + 1  # of a bucket all but the first
        if len(later) == 0:
            continue
        sketches = (entries & np.uint64(2**32 - 1)).astype(np.int64)
        first = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(key)), 0))[later]
        crowded[owner[sketches[later[later - first > room]]]] = True
        free = ~crowded[owner[sketches[later]]]
        later, first = later[free], first[free]
        counts = later - first
        pairs = []
        for block in _blocks(counts, _AT_ONCE):
            entry = np.repeat(np.arange(len(later))[block], counts[block])
            a, b = sketches[first[entry] + counted(counts[block])], sketches[later[entry]]
            near = np.bitwise_count(signs[a] ^ signs[b]).sum(axis=1) <= most
            near &= owner[a] != owner[b]  # two sketches of one row
            many = np.bincount(entry[near], minlength=len(later)) > MANY
            crowded[owner[sketches[later[many]]]] = True
            near &= ~many[entry]
            a, b = owner[a[near]], owner[b[near]]
            pairs.append(b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64))
        if pairs:
            yield np.concatenate(pairs)


def _sharing_all_but_a_word(columns: Columns, rows: Array) -> Iterator[Array]:
    """Pairs of places, as in `_sharing`, of short texts that are equal but for masked words.

    Where more than MANY rows share all other words, the masked one is a slot of a template, and its values are no typos.
    """
    for mask in range(MASKS):
        keys = columns["masked"][rows, mask]
        some = np.flatnonzero(keys)
        entries = np.sort(keys[some].astype(np.uint64) << np.uint64(32) | some.astype(np.uint64))
        _, first, size = np.unique(entries >> np.uint64(32), return_index=True, return_counts=True)
        few = (size > 1) & (size <= MANY)
        first, size = np.repeat(first[few], size[few]), np.repeat(size[few], size[few])
        later = first + (np.arange(len(first)) - np.searchsorted(first, first))
        before = later - first
        place = entries & np.uint64(2**32 - 1)
        yield place[np.repeat(later, before)] << np.uint64(32) | place[np.repeat(first, before) + counted(before)]


def _perhaps_shared(keys: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which keys may stand there more than once: all that do and one in eight of the others, found in a fifth of the time of sorting."""
    bits = min(len(keys).bit_length() + 3, SLOT_BITS)
    slot = keys >> np.uint32(32 - bits)
    place = np.arange(len(keys), dtype=np.int32)
    holder = np.empty(1 << bits, dtype=np.int32)  # of the keys in a slot one stays
    holder[slot] = place
    full = np.zeros(1 << bits, dtype=np.bool_)
    full[slot[holder[slot] != place]] = True
    shared: Array = full[slot]
    return shared


def _in_company(entries: Array) -> Array:
    """Which of the sorted entries share their key, the upper half, with a neighbour: seldom many, so the rest is soon forgotten."""
    same = entries[1:] >> np.uint64(32) == entries[:-1] >> np.uint64(32)
    shared = np.zeros(len(entries), dtype=bool)
    shared[1:] = same
    shared[:-1] |= same
    return shared


def _distinct(numbers: Array) -> Array:
    """Numbers in order, each once; sorting is several times faster here than what `np.unique` does."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _blocks(counts: Array, most: int) -> Iterator[slice]:
    """Slices of about `most` in sum."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.searchsorted(ends, np.arange(most, total, most), side="right")
    begin = 0
    for end in [*cuts.tolist(), len(counts)]:
        if end > begin:
            yield slice(begin, end)
        begin = end


def verify(batch: Batch, comparing: Comparing) -> Verified:
    """Places of the pairs that are similar, and of these `prompt_likeness`, `whole` and `together` as in `Alike`."""
    rows, place = np.unique(batch, return_inverse=True)
    place = place.reshape(-1, 2)
    texts = comparing.texts(rows.tolist())
    prompt_likeness, whole = similarities(texts, place[:, 0], place[:, 1])
    similar = np.flatnonzero((prompt_likeness >= comparing.threshold) | (whole >= comparing.threshold))
    numbers: dict[str, int] = {}
    apart = np.array([numbers.setdefault(t.apart, len(numbers)) for t in texts], dtype=np.int64)
    together = apart[place[similar, 0]] == apart[place[similar, 1]]
    compared = np.array([len(t.prompt) <= COMPARED_CHARACTERS for t in texts], dtype=bool)
    shapes = _Shapes(texts)
    for pair in np.flatnonzero(together & compared[place[similar]].all(axis=1)).tolist():
        a, b = (shapes[i] for i in place[similar[pair]].tolist())
        together[pair] = may_be_copies(a, b)
    return similar, prompt_likeness[similar], whole[similar], together


def verify_carried(work: tuple[Batch, Any], threshold: float) -> Verified:
    """`verify` where the rows' file is not."""
    batch, rows = work
    return verify(batch, Comparing(rows.texts, threshold))


class _Shapes(dict[int, Shape]):
    """Texts of a batch made ready to be compared, each when it is first needed."""

    def __init__(self, texts: Sequence[RowTexts]) -> None:
        super().__init__()
        self._texts = texts

    def __missing__(self, place: int) -> Shape:
        self[place] = shape = shape_of(self._texts[place])
        return shape


def similarities(texts: Sequence[RowTexts], one: Array, other: Array) -> tuple[Array, Array]:
    """`prompt_similarity` and `row_similarity` of many pairs.

    Args:
        texts: of rows.
        one, other: places in `texts` of the rows of each pair.
    """
    prompts, answers = [folded_words(t.prompt) for t in texts], [folded_words(t.answer) for t in texts]
    asks, says = (np.array([len(words) for words in side], dtype=np.int64) for side in (prompts, answers))
    both, either = _overlaps(prompts, one, other, np.maximum(asks[one], asks[other]) > LONG)
    short = _short_similarities(texts, prompts, one, other, both < either)
    prompt_likeness = _ratio(np.maximum(both, either * short), either)
    whole = np.where((says[one] == 0) & (says[other] == 0), prompt_likeness, 0.0)
    open_ = np.flatnonzero(((says[one] > 0) | (says[other] > 0)) & (prompt_likeness >= SIDE))
    if len(open_):
        numbers = {i: numbers_of(texts[i]) for i in {*one[open_].tolist(), *other[open_].tolist()}}
        open_ = open_[
            [numbers[i] == numbers[j] for i, j in zip(one[open_].tolist(), other[open_].tolist(), strict=True)]
        ]
    if len(open_):
        a, b = one[open_], other[open_]
        both, either = _overlaps(answers, a, b, np.maximum(says[a], says[b]) > LONG)
        near = both >= SIDE * either
        open_, a, b = open_[near], a[near], b[near]
        long = np.maximum(asks[a] + says[a], asks[b] + says[b]) > LONG
        sides = [_overlaps(side, a, b, long) for side in (prompts, answers)]
        in_both = np.maximum(sides[0][0], sides[0][1] * short[open_])
        whole[open_] = _ratio(in_both + sides[1][0], sides[0][1] + sides[1][1])
    return prompt_likeness, whole


def _short_similarities(
    texts: Sequence[RowTexts], words: Sequence[list[str]], one: Array, other: Array, which: Array
) -> Array:
    """`short_similarity` of some pairs; most have none, as their lengths tell."""
    likeness = np.zeros(len(one))
    core = np.array([len(without_courtesies(w)) if len(w) <= SHORT else 0 for w in words], dtype=np.int64)
    for pair in np.flatnonzero(which & (core[one] == core[other]) & (core[one] > 0)).tolist():
        i, j = int(one[pair]), int(other[pair])
        likeness[pair] = short_similarity(words[i], words[j], (texts[i].prompt, texts[j].prompt))
    return likeness


def _ratio(both: Array, either: Array) -> Array:
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def _overlaps(words: Sequence[Sequence[str]], one: Array, other: Array, long: Array) -> tuple[Array, Array]:
    """By pair, shingles that both texts have and that either has; those of long texts are pairs of words."""
    both, either = np.zeros(len(one), dtype=np.int64), np.zeros(len(one), dtype=np.int64)
    kinds: tuple[tuple[Kind, Array], ...] = (("letters", ~long), ("words", long))
    for kind, which in kinds:
        some = np.flatnonzero(which)
        if len(some):
            both[some], either[some] = _overlap(words, one[some], other[some], kind)
    return both, either


def _overlap(words: Sequence[Sequence[str]], one: Array, other: Array, kind: Kind) -> tuple[Array, Array]:
    used, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    codes, counts = _coded([words[i] for i in used.tolist()], kind)
    shift, low = np.uint64(32), np.uint64(2**32 - 1)
    distinct = _distinct(np.repeat(np.arange(len(used), dtype=np.uint64), counts) << shift | codes)
    size = np.bincount((distinct >> shift).astype(np.int64), minlength=len(used))
    start = np.cumsum(size) - size
    # Of each pair the shingles of both texts side by side: what stands there twice is in both.
    taken = distinct[np.repeat(start[place], size[place]) + counted(size[place])] & low
    pair = np.tile(np.arange(len(one), dtype=np.uint64), 2)
    listed = np.sort(np.repeat(pair, size[place]) << shift | taken)
    twice = listed[1:][listed[1:] == listed[:-1]]
    both = np.bincount((twice >> shift).astype(np.int64), minlength=len(one))
    return both, size[place[: len(one)]] + size[place[len(one) :]] - both


def _coded(texts: Sequence[Sequence[str]], kind: Kind) -> tuple[Array, Array]:
    """The shingles of all texts as numbers below 2^32, equal for equal ones, and how many there are of each text.

    The same shingles as those of `prompt_similarity`, numbered instead of hashed: what is compared is exact.
    """
    if kind == "words":
        ids: dict[str, int] = {}
        lengths = np.array([len(words) for words in texts], dtype=np.int64)
        numbers = np.array([ids.setdefault(word, len(ids)) for words in texts for word in words], dtype=np.uint64)
        size, wide = 2, len(ids) + 1
    else:
        letters = ["".join(words) for words in texts]
        lengths = np.array([len(text) for text in letters], dtype=np.int64)
        joined = "".join(letters)
        if joined.isascii():
            numbers = np.frombuffer(joined.encode("ascii"), dtype=np.uint8).astype(np.uint64)
        else:
            points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            used = np.bincount(points) > 0
            numbers = (np.cumsum(used) - 1).astype(np.uint64)[points]  # 0, 1, ... for the characters that occur
        size, wide = 3, int(numbers.max(initial=0)) + 2
    # A text shorter than a shingle is a single one, filled up with the number `wide - 1` that nothing else has.
    counts = np.where(lengths > 0, np.maximum(lengths - size + 1, 1), 0)
    start = np.repeat(np.cumsum(lengths) - lengths, counts) + counted(counts)
    end = np.repeat(np.cumsum(lengths), counts)
    padded = np.append(numbers, np.uint64(wide - 1))
    codes = np.zeros(len(start), dtype=np.uint64)
    for offset in range(size):
        codes = codes * np.uint64(wide) + padded[np.where(start + offset < end, start + offset, len(numbers))]
    if wide**size > 2**32:
        codes = np.unique(codes, return_inverse=True)[1].astype(np.uint64)
    return codes, counts


class Crowd:
    """Crowded rows and those that share bands with them, taken one after another.

    Args:
        columns: of all rows.
        names: of the sketches by which rows may be similar.
        rows: indices of those that count, in the order in which they are taken.
        crowded: by place in `rows`, which are looked for; the others are only found.
        comparing: reads texts, and the threshold.
    """

    def __init__(
        self, columns: Columns, names: Sequence[Name], rows: Array, crowded: Array, comparing: Comparing
    ) -> None:
        self.crowded, self.rows, self._shape = crowded, rows, _shapes(comparing.texts)
        self._bands: dict[int, list[int]] = {}
        self._most = most_apart(comparing.threshold)
        sketches = [sketched(columns, name, rows) for name in names] if crowded.any() else []
        owner, bucket, count = self._buckets(sketches)
        for place, number in zip(owner.tolist(), bucket.tolist(), strict=True):
            self._bands.setdefault(place, []).append(number)
        room = np.minimum(np.bincount(bucket, minlength=count), BUCKET // banding(comparing.threshold)[1])
        ends = np.cumsum(room)
        self._start, self._end, self._limit = _array(ends - room), _array(ends - room), _array(ends)
        self._slots = _array(np.zeros(int(room.sum())))
        self._signs = [long_signs(some, self._bands) for some in sketches]

    def _buckets(self, sketches: Sequence[Sketched]) -> tuple[Array, Array, int]:
        """Places and the numbers of their buckets, of those with a crowded row in them."""
        none = np.zeros(0, dtype=np.int64)
        owners, buckets, count = [none], [none], 0
        for owner, _, bands in sketches:
            of_crowded = self.crowded[owner]
            for keys in bands:
                shared = among(keys, keys[of_crowded])
                different, numbers = np.unique(keys[shared], return_inverse=True)
                owners.append(owner[shared])
                buckets.append(numbers + count)
                count += len(different)
        return np.concatenate(owners), np.concatenate(buckets), count

    @property
    def places(self) -> list[int]:
        """Places to be taken, in order."""
        return sorted(self._bands)

    def add(self, place: int) -> None:
        """From now on the row is found by others."""
        for band in self._bands.get(place, ()):
            if (end := self._end[band]) < self._limit[band]:
                self._slots[end] = place
                self._end[band] = end + 1

    def near(self, place: int) -> list[int]:
        """Places of rows added so far that may be similar, the likeliest first; at most CROWD."""
        shared: set[int] = set()
        for band in self._bands[place]:
            shared.update(self._slots[self._start[band] : self._end[band]])
        shared.discard(place)
        by_distance = []
        for other in shared:
            apart = min(distance(signs[place], signs[other]) for signs in self._signs)
            if apart <= self._most:
                by_distance.append((apart, other))
        return [other for _, other in sorted(by_distance)[:CROWD]]

    def similarities(self, one: int, other: int) -> tuple[float, float, bool]:
        """`prompt`, `whole` and `together` of two places, as in `Alike`; (0, 0, False) where they can't be copies."""
        a, b = self._shape(int(self.rows[one])), self._shape(int(self.rows[other]))
        if a.texts.apart != b.texts.apart or not may_be_copies(a, b):
            return 0.0, 0.0, False
        return prompt_similarity(a, b), row_similarity(a, b), True

    def prompt_similarity(self, one: int, other: int) -> float:
        """How similar the questions of two places are, whatever else they are."""
        return prompt_similarity(self._shape(int(self.rows[one])), self._shape(int(self.rows[other])))


def _shapes(texts: Texts) -> Callable[[int], Shape]:
    """Reads and folds the texts of a row, and remembers the latest."""
    cache: dict[int, Shape] = {}
    held = 0

    def shape(row: int) -> Shape:
        nonlocal held
        shape_of_row = cache.get(row)
        if shape_of_row is None:
            if held > CACHED:
                cache.clear()
                held = 0
            cut = texts([row])[0]
            shape_of_row = cache[row] = shape_of(cut)
            held += len(cut.prompt) + len(cut.answer)
        return shape_of_row

    return shape


def _array(numbers: Array) -> array[int]:
    """Numbers below 2^31 where single ones are read and written fast."""
    return array("i", numbers.astype(np.intc).tobytes())
