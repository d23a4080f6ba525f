"""Rows that say the same: exactly, nearly, or in other words; which of them stay, and which belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dedup.candidate_pairs import Alike, Comparing, Crowd, Texts, find_alike
from tuneloop.data.dedup.minhash import Name
from tuneloop.data.split import Array, Columns

_AT_ONCE = 1024  # rows whose embeddings are compared with all others at once
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
        for place, (other, value) in _near_copies(alike, crowd, config).items():
            of[int(distinct_rows[place])] = (int(distinct_rows[other]), value, False)
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
    for other, one, similarity in zip(*columns, strict=True):
        similar_to.setdefault(other, []).append((similarity, -one))
    copies: dict[int, tuple[int, float]] = {}
    for place in sorted({*similar_to, *crowd.places}):
        if alike.crowded[place]:
            candidates = [(float(value(*crowd.compare(place, other))), -other) for other in crowd.near(place)]
        else:
            candidates = [pair for pair in similar_to.get(place, ()) if -pair[1] not in copies]
        best, other = max(candidates, default=(0.0, 0))
        if best >= config.threshold:
            copies[place] = (-other, best)
        else:
            crowd.add(place)
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
    place = np.minimum(np.searchsorted(questions, question[alike.rows]), len(questions) - 1)
    there = questions[place] == question[alike.rows]
    linked = (alike.prompt >= threshold) & there[alike.one] & there[alike.other] & ~alike.crowded[alike.other]
    one, other = row_of[place[alike.one[linked]]], row_of[place[alike.other[linked]]]
    pairs = list(zip(one.tolist(), other.tolist(), alike.prompt[linked].tolist(), strict=True))
    crowded = np.zeros(len(questions), dtype=bool)
    crowded[place[there & alike.crowded]] = True
    in_order = np.argsort(row_of)
    crowd = Crowd(columns, ("prompt",), row_of[in_order], crowded[in_order], Comparing(texts, threshold))
    pairs += [(int(crowd.rows[a]), int(crowd.rows[b]), value) for a, b, value in _connecting_pairs(crowd, threshold)]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    links = np.array([pair[:2] for pair in pairs], dtype=np.int64).reshape(-1, 2)
    return links, np.array([pair[2] for pair in pairs], dtype=np.float32)


def _connecting_pairs(crowd: Crowd, threshold: float) -> list[tuple[int, int, float]]:
    """Similar pairs that connect all places that a chain of them through crowded ones connects (union-find)."""
    parent: dict[int, int] = {}

    def root(place: int) -> int:
        while (above := parent.setdefault(place, place)) != place:
            parent[place] = place = parent[above]
        return place

    pairs = []
    for place in crowd.places:
        for other in crowd.near(place) if crowd.crowded[place] else ():
            if root(place) != root(other) and (value := crowd.prompt_similarity(place, other)) >= threshold:
                parent[root(place)] = root(other)
                pairs.append((other, place, value))
        crowd.add(place)
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
    one, other = keys[order, 0], keys[order, 1]
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
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
    for begin in range(0, len(places), _AT_ONCE):
        block = places[begin : begin + _AT_ONCE]
        best, of = np.full(len(block), -1.0), np.full(len(block), -1)
        for start in range(0, count, 8 * _AT_ONCE):
            some = leader_places[start : min(start + 8 * _AT_ONCE, count)]
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
                copies.append((int(rows[place]), int(rows[of[number]]), float(best[number])))
        new = block[stays]
        leader_places[count : count + len(new)], leaders[count : count + len(new)] = new, embeddings[new]
        count += len(new)
    return _duplicates((copy, original, similarity, False) for copy, original, similarity in copies)
