"""Rows that are the same as others: candidates by their sketches, each verified by exact Jaccard similarity.

Candidates share a band, and their signs differ no more than those of similar rows do. A row with more than `MANY` is
left to `Crowd`, which compares it with rows that are still there when its turn comes: in a crowd one row, not all.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dataset import Array, Columns
from tuneloop.data.dedup import minhash
from tuneloop.data.dedup.minhash import Name
from tuneloop.data.workers import ordered_map

Texts = Callable[[Sequence[int]], Sequence[minhash.RowTexts]]
Carry = Callable[[Any], Any]  # from row indices to something with a function `texts` of them, that can be sent anywhere
Batch = Any  # row indices of candidate pairs, int64 (pairs, 2)
Verified = list[Array]

BATCH = 2048  # pairs that are compared at once
MANY = 32  # candidates of a row up to which it is compared with all
FULL = 8 * minhash.BUCKET  # as BUCKET, of the rows of a bucket up to which all pairs in it are looked at
SLOT_BITS = 25  # of the table that looks for keys in common: 160 MiB at most
COMPARED_CHARACTERS = 16 * minhash.COMPARED  # from which on the meanings of similar texts are not compared
_CANDIDATES_AT_ONCE = 1 << 20  # candidates that are looked at at once


@dataclass(frozen=True)
class Comparing:
    """What a process needs to compare rows: how their texts are read, and the similarity from which pairs matter."""

    texts: Texts
    threshold: float


@dataclass(frozen=True)
class Alike:
    """Pairs of rows of which the questions are similar, or the whole."""

    rows: Array  # indices of the rows that were compared, in the order of preference; pairs are places in it
    one: Array  # places of the pairs: the earlier row, and the other; sorted by `other`, then `one`
    other: Array
    prompt: Array  # Jaccard similarity of the questions; whole: of the rows, see `similarities`
    whole: Array
    together: (
        Array  # whether they may be copies: equal label, system turns and tools, and short questions of one meaning
    )
    crowded: Array  # by place, whether a row has too many candidates to be compared with all before it


def find_alike(
    columns: Columns, texts: Texts, threshold: float, *, rows: Array, workers: int = 1, carry: Carry | None = None
) -> Alike:
    """Similar pairs, but for those that the sketches miss (1 % of those just at the threshold, hardly any above).

    Args:
        threshold: least Jaccard similarity, of the questions or the whole.
        rows: indices of those that count, in the order of preference.
        workers: processes that compare texts.
        carry: texts are compared on a Ray cluster, and this gives the rows that are sent there.
    """
    crowded = np.zeros(len(rows), dtype=bool)
    pairs = np.zeros(0, dtype=np.uint64)
    for name in _sketch_names(columns):
        if len(rows):
            for candidates in _pairs_by_band(columns, name, rows, threshold, crowded):
                pairs = _distinct(np.concatenate([pairs, candidates]))
                crowded |= np.bincount(_later_place(pairs), minlength=len(rows)) > MANY
                pairs = pairs[~crowded[_later_place(pairs)]]
    pairs = _distinct(np.concatenate([pairs, *_pairs_but_for_a_word(columns, rows)]))
    pairs = pairs[~crowded[_later_place(pairs)]]
    earlier, other = (pairs & np.uint64(2**32 - 1)).astype(np.int64), _later_place(pairs)
    batches = (
        np.stack([rows[earlier[begin : begin + BATCH]], rows[other[begin : begin + BATCH]]], axis=1)
        for begin in range(0, len(pairs), BATCH)
    )
    if carry is None:
        verified = list(ordered_map(verify, batches, Comparing(texts, threshold), workers=workers))
    else:
        carried = ((batch, carry(np.unique(batch))) for batch in batches)
        verified = list(ordered_map(verify_carried, carried, threshold, workers=workers, engine="ray"))
    for number, batch in enumerate(verified):
        batch[0] = batch[0] + BATCH * number
    places, *values = (np.concatenate(column) for column in zip(_arrays([]), *verified, strict=True))
    return Alike(rows, earlier[places], other[places], values[0], values[1], values[2], crowded)


def _sketch_names(columns: Columns) -> tuple[minhash.Name, ...]:
    """The sketches to look at: where no row has an answer, as with labels, the whole is the question."""
    if "whole" not in columns or np.array_equal(
        columns["whole"][:, -minhash.SIGNS :], columns["prompt"][:, -minhash.SIGNS :]
    ):
        return ("prompt",)
    return ("whole", "prompt")


def _later_place(pairs: Array) -> Array:
    return (pairs >> np.uint64(32)).astype(np.int64)


def _pairs_by_band(
    columns: Columns, name: minhash.Name, rows: Array, threshold: float, crowded: Array
) -> Iterator[Array]:
    """Pairs of places that may be similar, `later << 32 | earlier`, by band; marks rows in overfull buckets."""
    owner, signs, bands = minhash.sketched(columns, name, rows)
    in_order = np.argsort(owner, kind="stable")
    owner, signs = owner[in_order], signs[in_order]
    room, most = FULL // minhash.banding(threshold)[1], minhash.most_apart(threshold)
    for keys in bands:
        # Sorted by key and then by place: the rows of a bucket follow each other in their order.
        keys = keys[in_order]
        some = np.flatnonzero(_maybe_shared(keys))
        entries = keys[some].astype(np.uint64)
        entries <<= np.uint64(32)
        entries |= some.astype(np.uint64)
        entries.sort()
        # Seldom many share their key with a neighbour, so the rest is soon forgotten.
        same = entries[1:] >> np.uint64(32) == entries[:-1] >> np.uint64(32)
        shared = np.zeros(len(entries), dtype=bool)
        shared[1:] = same
        shared[:-1] |= same
        entries = entries[shared]
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
        for block in _blocks(counts, _CANDIDATES_AT_ONCE):
            entry = np.repeat(np.arange(len(later))[block], counts[block])
            a, b = sketches[first[entry] + minhash.counted(counts[block])], sketches[later[entry]]
            near = np.bitwise_count(signs[a] ^ signs[b]).sum(axis=1) <= most
            near &= owner[a] != owner[b]  # two sketches of one row
            many = np.bincount(entry[near], minlength=len(later)) > MANY
            crowded[owner[sketches[later[many]]]] = True
            near &= ~many[entry]
            a, b = owner[a[near]], owner[b[near]]
            pairs.append(b.astype(np.uint64) << np.uint64(32) | a.astype(np.uint64))
        if pairs:
            yield np.concatenate(pairs)


def _pairs_but_for_a_word(columns: Columns, rows: Array) -> Iterator[Array]:
    """Pairs of places, as in `_pairs_by_band`, of short texts that are equal but for masked words.

    Where more than MANY rows share all other words, the masked one is a slot of a template, and its values are no
    typos.
    """
    for mask in range(minhash.MASKS):
        keys = columns["masked"][rows, mask]
        some = np.flatnonzero(keys)
        entries = np.sort(keys[some].astype(np.uint64) << np.uint64(32) | some.astype(np.uint64))
        _, first, size = np.unique(entries >> np.uint64(32), return_index=True, return_counts=True)
        few = (size > 1) & (size <= MANY)
        first, size = np.repeat(first[few], size[few]), np.repeat(size[few], size[few])
        later = first + (np.arange(len(first)) - np.searchsorted(first, first))
        before = later - first
        positions = entries & np.uint64(2**32 - 1)
        yield (
            positions[np.repeat(later, before)] << np.uint64(32)
            | positions[np.repeat(first, before) + minhash.counted(before)]
        )


def _maybe_shared(keys: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which keys may be there more than once: all that are and an eighth of the others, in a fifth of a sort's time."""
    bits = min(len(keys).bit_length() + 3, SLOT_BITS)
    slot = keys >> np.uint32(32 - bits)
    positions = np.arange(len(keys), dtype=np.int32)
    holder = np.empty(1 << bits, dtype=np.int32)  # of the keys in a slot one stays
    holder[slot] = positions
    full = np.zeros(1 << bits, dtype=np.bool_)
    full[slot[holder[slot] != positions]] = True
    shared: Array = full[slot]
    return shared


def _distinct(numbers: Array) -> Array:
    """Numbers in order, each once; sorting is several times faster here than what `np.unique` does."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _blocks(counts: Array, most: int) -> list[slice]:
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(most, ends[-1] if len(ends) else 0, most), side="right").tolist()
    return [slice(begin, end) for begin, end in itertools.pairwise([0, *cuts, len(counts)]) if end > begin]


def verify(batch: Batch, comparing: Comparing) -> Verified:
    """Places of the pairs that are similar, and of these `prompt`, `whole` and `together` as in `Alike`."""
    rows, inverse = np.unique(batch, return_inverse=True)
    shapes = [minhash.shape_of(texts) for texts in comparing.texts(rows.tolist())]
    similar = []
    for pair, (i, j) in enumerate(inverse.reshape(-1, 2).tolist()):
        a, b = shapes[i], shapes[j]
        prompt, whole = minhash.similarities(a, b)
        if max(prompt, whole) >= comparing.threshold:
            long = max(len(a.texts.prompt), len(b.texts.prompt)) > COMPARED_CHARACTERS
            together = a.texts.apart == b.texts.apart and (long or minhash.may_be_copies(a, b))
            similar.append((pair, prompt, whole, together))
    return _arrays(similar)


def _arrays(similar: list[tuple[int, float, float, bool]]) -> Verified:
    facts = zip(*similar, strict=True) if similar else ((),) * 4
    return list(map(np.array, facts, (np.int64, np.float64, np.float64, np.bool_)))


def verify_carried(work: tuple[Batch, Any], threshold: float) -> Verified:
    """`verify` where the rows' file is not."""
    batch, rows = work
    return verify(batch, Comparing(rows.texts, threshold))


class Crowd:
    """Crowded rows and those that share bands with them, taken one after another.

    `names`: of the sketches by which rows may be similar; `rows`: indices of those that count, in the order in which
    they are taken; `crowded`: by place in `rows`, which are looked for; the others are only found.
    """

    def __init__(
        self, columns: Columns, names: Sequence[minhash.Name], rows: Array, crowded: Array, comparing: Comparing
    ) -> None:
        self.crowded, self.rows, self._shape = crowded, rows, _shapes(comparing.texts)
        self._bands: dict[int, list[int]] = {}
        self._most = minhash.most_apart(comparing.threshold)
        sketches = [minhash.sketched(columns, name, rows) for name in names] if crowded.any() else []
        owner, bucket, count = self._buckets(sketches)
        for position, number in zip(owner.tolist(), bucket.tolist(), strict=True):
            self._bands.setdefault(position, []).append(number)
        room = np.minimum(
            np.bincount(bucket, minlength=count), minhash.BUCKET // minhash.banding(comparing.threshold)[1]
        )
        ends = np.cumsum(room)
        self._start, self._end, self._limit = _array(ends - room), _array(ends - room), _array(ends)
        self._slots = _array(np.zeros(int(room.sum())))
        self._signs = [minhash.long_signs(some, self._bands) for some in sketches]

    def _buckets(self, sketches: Sequence[minhash.Sketched]) -> tuple[Array, Array, int]:
        """Places and the numbers of their buckets, of those with a crowded row in them."""
        none = np.zeros(0, dtype=np.int64)
        owners, buckets, count = [none], [none], 0
        for owner, _, bands in sketches:
            of_crowded = self.crowded[owner]
            for keys in bands:
                shared = minhash.among(keys, keys[of_crowded])
                different, numbers = np.unique(keys[shared], return_inverse=True)
                owners.append(owner[shared])
                buckets.append(numbers + count)
                count += len(different)
        return np.concatenate(owners), np.concatenate(buckets), count

    @property
    def places(self) -> list[int]:
        """Places to be taken, in order."""
        return sorted(self._bands)

    def add(self, position: int) -> None:
        """From now on the row is found by others."""
        for band in self._bands.get(position, ()):
            if (end := self._end[band]) < self._limit[band]:
                self._slots[end] = position
                self._end[band] = end + 1

    def near(self, position: int) -> list[int]:
        """Places of rows added so far that may be similar, the likeliest first; at most CROWD."""
        shared: set[int] = set()
        for band in self._bands[position]:
            shared.update(self._slots[self._start[band] : self._end[band]])
        shared.discard(position)
        ranked = sorted((min(minhash.distance(s[position], s[other]) for s in self._signs), other) for other in shared)
        return [other for apart, other in ranked[: minhash.CROWD] if apart <= self._most]

    def compare(self, position: int, other: int) -> tuple[float, float, bool]:
        """`prompt`, `whole` and `together` of two places, as in `Alike`; (0, 0, False) where they can't be copies."""
        a, b = self._shape(int(self.rows[position])), self._shape(int(self.rows[other]))
        if a.texts.apart != b.texts.apart or not minhash.may_be_copies(a, b):
            return 0.0, 0.0, False
        return *minhash.similarities(a, b), True

    def prompt_similarity(self, position: int, other: int) -> float:
        """How similar the questions of two places are, whatever else they are."""
        return minhash.prompt_similarity(self._shape(int(self.rows[position])), self._shape(int(self.rows[other])))


def _shapes(texts: Texts) -> Callable[[int], minhash.Shape]:
    cache: dict[int, minhash.Shape] = {}
    size = 0  # characters in the cache

    def shape(row: int) -> minhash.Shape:
        nonlocal size
        if row not in cache:
            if size > minhash.CACHED:
                cache.clear()
                size = 0
            texts_of_row = texts([row])[0]
            cache[row] = minhash.shape_of(texts_of_row)
            size += len(texts_of_row.prompt) + len(texts_of_row.answer)
        return cache[row]

    return shape


def _array(numbers: Array) -> array[int]:
    """Numbers below 2^31 where single ones are read and written fast."""
    return array("i", numbers.astype(np.intc).tobytes())


_ROWS_AT_ONCE = 1024  # rows whose embeddings are compared with all others at once
_COMPARED: dict[str, tuple[Name, ...]] = {"row": ("whole",), "user": ("prompt",), "both": ("whole", "prompt")}


@dataclass(frozen=True)
class Duplicates:
    """Rows to drop, in rising order, and for each the row that stays in its place."""

    dropped: Array  # indices of the rows
    of: Array  # the row that each is like; it is kept, but the equal of an exact duplicate may be a near one itself
    similarity: Array  # Jaccard similarity or cosine; 1 for exact duplicates
    exact: Array  # whether they are equal up to Unicode form, white space and case


def preference(keep: str, *, count: int, pinned: Array | None = None, **worth: Array) -> Array:
    """All rows, those that stay first: by `keep` (`first`, `longest`, `newest`, `best`), then the earlier row.

    `pinned` rows, such as those of a frozen test set, come before all others; `worth`: what policies go by, as far as
    it is known: `characters`, `time`, `rating`.
    """
    value = worth.get({"longest": "characters", "newest": "time", "best": "rating"}.get(keep, ""))
    ranked = np.zeros(count) if value is None else np.where(np.isnan(value), -np.inf, value)
    last = np.zeros(count, dtype=bool) if pinned is None else ~pinned
    return np.lexsort((np.arange(count), -ranked, last))


def find_duplicates(
    columns: Columns, texts: Texts, config: DuplicatesConfig, *, rows: Array, order: Array, alike: Alike | None = None
) -> Duplicates:
    """Rows that are the same as one that stays.

    In the order of preference, each row is dropped if it is similar enough to one that has been kept. So every dropped
    row is similar to the row in its place (no chains), and no two kept ones are similar, but for pairs that the
    sketches miss (1 % of those just at the threshold, hardly any above) and crowds of more than `CROWD` rows that are
    nearly similar. Rows of different labels, system turns or tools are never near duplicates.

    Args:
        config: the same as for the sketches.
        rows: indices of those that count.
        order: all rows, those that stay first; see `preference`.
        alike: the similar pairs of `distinct(columns, rows, order)`; default: looked for here.
    """
    rows = rows[_places_in_order(rows, order)]
    heads, copies, originals = _first_of_equal(columns["exact"][rows])
    exact = zip(copies, originals, strict=True) if config.exact else ()
    of = {int(rows[copy]): (int(rows[original]), 1.0, True) for copy, original in exact}
    if config.near:
        # Equal rows are left out of the near search even if they stay: that would be quadratic.
        distinct_rows = rows[heads]
        if alike is None:
            alike = find_alike(columns, texts, config.threshold, rows=distinct_rows)
        crowd = Crowd(columns, _COMPARED[config.on], distinct_rows, alike.crowded, Comparing(texts, config.threshold))
        for position, (other, value) in _near_copies(alike, crowd, config).items():
            of[int(distinct_rows[position])] = (int(distinct_rows[other]), value, False)
    return _duplicates((row, *facts) for row, facts in of.items())


def _duplicates(facts: Iterable[tuple[int, int, float, bool]]) -> Duplicates:
    values = zip(*ordered, strict=True) if (ordered := sorted(facts)) else ((),) * 4
    return Duplicates(*map(np.array, values, (np.int64, np.int64, np.float32, np.bool_)))


def distinct(columns: Columns, rows: Array, order: Array) -> Array:
    """Of equal rows the one that stays, in the order of preference: those that are compared for near duplicates."""
    rows = rows[_places_in_order(rows, order)]
    firsts: Array = rows[_first_of_equal(columns["exact"][rows])[0]]
    return firsts


def _near_copies(alike: Alike, crowd: Crowd, config: DuplicatesConfig) -> dict[int, tuple[int, float]]:
    """Places that are similar to a kept one: the most similar of these, and how similar it is."""

    def value(prompt: Any, whole: Any, together: Any) -> Any:
        of = {"user": prompt, "row": whole, "both": np.maximum(prompt, whole)}
        return np.where(together, of[config.on], 0.0)

    values = value(alike.prompt, alike.whole, alike.together)
    similar = values >= config.threshold
    columns = (column[similar].tolist() for column in (alike.other, alike.one, values))
    similar_to: dict[int, list[tuple[float, int]]] = {}
    for other, earlier, similarity in zip(*columns, strict=True):
        similar_to.setdefault(other, []).append((similarity, -earlier))
    copies: dict[int, tuple[int, float]] = {}
    for position in sorted({*similar_to, *crowd.places}):
        if alike.crowded[position]:
            candidates = [(float(value(*crowd.compare(position, other))), -other) for other in crowd.near(position)]
        else:
            candidates = [pair for pair in similar_to.get(position, ()) if -pair[1] not in copies]
        best, other = max(candidates, default=(0.0, 0))
        if best >= config.threshold:
            copies[position] = (-other, best)
        else:
            crowd.add(position)
    return copies


def find_links(
    columns: Columns, texts: Texts, threshold: float, *, rows: Array, question: Array, alike: Alike | None = None
) -> tuple[Array, Array]:
    """Pairs of rows (pairs, 2) whose questions are nearly equal, whatever their answers, and how similar: they belong
    in one split. Not all, but enough that following them reaches every similar row.

    Args:
        threshold: least Jaccard similarity of the questions.
        rows: indices of those that count.
        question: `key64` of each row's `prompt_key`; of rows with one question only the first is looked at.
        alike: similar pairs among at least one row of each of these questions, if they are known already.
    """
    if "prompt" not in columns or len(rows) == 0:
        return np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=np.float32)
    questions, first = np.unique(question[rows], return_index=True)
    row_of = rows[first]
    if alike is None:
        alike = find_alike(columns, texts, threshold, rows=np.sort(row_of))
    # Of a row that was dropped, another one with its question may still be there.
    positions = np.minimum(np.searchsorted(questions, question[alike.rows]), len(questions) - 1)
    there = questions[positions] == question[alike.rows]
    linked = (alike.prompt >= threshold) & there[alike.one] & there[alike.other] & ~alike.crowded[alike.other]
    earlier, other = row_of[positions[alike.one[linked]]], row_of[positions[alike.other[linked]]]
    pairs = list(zip(earlier.tolist(), other.tolist(), alike.prompt[linked].tolist(), strict=True))
    crowded = np.zeros(len(questions), dtype=bool)
    crowded[positions[there & alike.crowded]] = True
    in_order = np.argsort(row_of)
    crowd = Crowd(columns, ("prompt",), row_of[in_order], crowded[in_order], Comparing(texts, threshold))
    pairs += [(int(crowd.rows[a]), int(crowd.rows[b]), value) for a, b, value in _connecting_pairs(crowd, threshold)]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    links = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    return links, np.array([pair[2] for pair in pairs], dtype=np.float32)


def _connecting_pairs(crowd: Crowd, threshold: float) -> list[tuple[int, int, float]]:
    """Similar pairs that connect all places that a chain of them through crowded ones connects (union-find)."""
    parent: dict[int, int] = {}

    def root(index: int) -> int:
        while (above := parent.setdefault(index, index)) != index:
            parent[index] = index = parent[above]
        return index

    pairs = []
    for position in crowd.places:
        for other in crowd.near(position) if crowd.crowded[position] else ():
            if root(position) != root(other) and (value := crowd.prompt_similarity(position, other)) >= threshold:
                parent[root(position)] = root(other)
                pairs.append((other, position, value))
        crowd.add(position)
    return pairs


def find_conflicts(question: Array, rows: Array, order: Array) -> list[Array]:
    """Rows with one question that are left when copies are dropped: their answers or labels differ. Groups of two rows
    and more, the preferred row first, in this order. `question`: `key64` of each row's `prompt_key`; `order`: as in
    `preference`.
    """
    rows = rows[_places_in_order(rows, order)]
    places = np.argsort(question[rows], kind="stable")
    questions = question[rows[places]]
    groups = np.split(places, np.flatnonzero(questions[1:] != questions[:-1]) + 1)
    shared = (group for group in groups if len(group) > 1)
    return [rows[group] for group in sorted(shared, key=lambda group: int(group[0]))]


def _places_in_order(rows: Array, order: Array) -> Array:
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[rows])


def _first_of_equal(keys: Array) -> tuple[Array, Array, Array]:
    """Places of the first of equal keys; places of the others, and for each the place of its first."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in their order
    new = np.ones(len(order), dtype=bool)
    half, other = keys[order, 0], keys[order, 1]
    new[1:] = (half[1:] != half[:-1]) | (other[1:] != other[:-1])
    first = order[new][np.cumsum(new) - 1]
    return np.sort(order[new]), order[~new], first[~new]


def semantic_duplicates(
    embeddings: Array, threshold: float, *, rows: Array, order: Array, apart: Array | None = None
) -> Duplicates:
    """Rows whose embeddings are as similar as the threshold to those of a row that stays; in order of preference. Every
    row is compared with all kept rows: 100,000 rows take minutes.

    Args:
        embeddings: one unit vector for each of `rows` (rows, size); as much again is held in memory.
        threshold: least cosine similarity.
        rows: indices of the rows that count.
        order: all rows, those that stay first; see `preference`.
        apart: for each of `rows` a number; rows of different numbers, such as labels, are no duplicates.
    """
    places = _places_in_order(rows, order)
    apart = np.zeros(len(rows), dtype=np.int64) if apart is None else apart
    leader_places = np.empty(len(rows), dtype=np.int64)
    leaders = np.empty_like(embeddings)  # of the kept rows, one after another
    count = 0
    copies: list[tuple[int, int, float]] = []
    for begin in range(0, len(places), _ROWS_AT_ONCE):
        block = places[begin : begin + _ROWS_AT_ONCE]
        best, of = np.full(len(block), -1.0), np.full(len(block), -1)
        for start in range(0, count, 8 * _ROWS_AT_ONCE):
            some = leader_places[start : min(start + 8 * _ROWS_AT_ONCE, count)]
            alike = embeddings[block] @ leaders[start : start + len(some)].T
            alike[apart[block, None] != apart[some]] = -1.0
            at = alike.argmax(axis=1)
            value = alike[np.arange(len(block)), at]
            better = value > best
            best[better], of[better] = value[better], some[at[better]]
        inside = embeddings[block] @ embeddings[block].T
        inside[apart[block, None] != apart[block]] = -1.0
        stays = np.zeros(len(block), dtype=bool)
        for number, position in enumerate(block.tolist()):
            near = np.where(stays[:number], inside[number, :number], -1.0)
            if number and near.max() > best[number]:
                best[number], of[number] = near.max(), block[near.argmax()]
            stays[number] = best[number] < threshold
            if not stays[number]:
                copies.append((int(rows[position]), int(rows[of[number]]), float(best[number])))
        new = block[stays]
        leader_places[count : count + len(new)], leaders[count : count + len(new)] = new, embeddings[new]
        count += len(new)
    return _duplicates((copy, original, similarity, False) for copy, original, similarity in copies)
