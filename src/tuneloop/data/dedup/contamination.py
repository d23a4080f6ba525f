"""Rows that give a test away: they ask the same, nearly the same, or hold long passages of a question.

An index of the test set is built once and sent to the workers, which query it for whole chunks of rows, whose sketches
they have anyway: a short row takes a few microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tuneloop.data.config import DuplicatesConfig
from tuneloop.data.dataset import Array, Columns, normalised
from tuneloop.data.dedup import minhash
from tuneloop.records.rows import Dataset, Row

GRAM = 13  # words of a passage (Brown et al. 2020, appendix C)
OVERLAP = 0.5  # share of the passages of a test question from which a row gives it away
COMMON, COMMON_SHARE = 3, 0.01  # test rows, and share of them, that may share a passage; more, and it is an instruction


@dataclass(frozen=True)
class Leak:
    """Why a row must not be trained on."""

    how: Literal["exact", "near", "overlap"]  # the question is equal up to form, nearly equal, or passages are shared
    test_row: int  # index of the test row
    similarity: float  # Jaccard similarity of the questions; for `overlap` the share of the question's passages


class _Keys(NamedTuple):
    """Keys in rising order, and the test row of each."""

    keys: Array
    rows: Array

    @staticmethod
    def of(keys: Array, rows: Array) -> _Keys:
        order = np.argsort(keys, kind="stable")
        return _Keys(keys[order], rows[order])


@dataclass(frozen=True)
class TestIndex:
    """A test set made ready for queries by `index_of`."""

    __test__ = False  # no test case, whatever pytest makes of the name

    config: DuplicatesConfig  # of the duplicates; the rows compared with it must be sketched with it
    shapes: Sequence[minhash.Shape]  # of the test rows
    bands: _Keys  # number and key of each band of their sketches
    signs: dict[int, list[int]]  # of the rows
    masked: _Keys  # number and key of short questions with words left out
    passages: _Keys  # hashes of their passages
    passage_counts: Array  # passages of each test row that count


def index_of(test: Sequence[minhash.RowTexts], config: DuplicatesConfig) -> TestIndex:
    """The index of a test set, of the texts of its rows."""
    shapes = [minhash.shape_of(texts) for texts in test]
    columns = minhash.sketch(test, sketch_config(config))
    sketches = minhash.sketched(columns, "prompt", np.arange(len(test)))
    bands = np.concatenate(_keys_by_band(sketches.bands))
    masked = _Keys.of(*_masked(columns))
    rows, passages = _different(*_passages([shape.prompt for shape in shapes]))
    _, inverse, counts = np.unique(passages, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= max(COMMON, COMMON_SHARE * len(test))
    rows, passages = rows[rare], passages[rare]
    signs, counts = minhash.long_signs(sketches, range(len(test))), np.bincount(rows, minlength=len(test))
    all_bands = _Keys.of(bands, np.resize(sketches.owner, len(bands)))
    return TestIndex(config, shapes, all_bands, signs, masked, _Keys.of(passages, rows), counts)


def find_contamination(
    texts: Sequence[minhash.RowTexts], index: TestIndex, columns: Columns | None = None
) -> list[Leak | None]:
    """For each row why it gives the test away, or None; of several test rows the one that it is most similar to.

    `columns`: sketches of the rows with the index's config, if they are there already.
    """
    if columns is None or "prompt" not in columns:
        columns = minhash.sketch(texts, sketch_config(index.config))
    leaks: list[Leak | None] = [None] * len(texts)
    for row, share, test_row in _overlaps(texts, index):
        leaks[row] = Leak("overlap", test_row, share)
    for row, tests in _candidates(columns, index, len(texts)).items():
        shape = minhash.shape_of(texts[row])
        ranked = sorted(((minhash.prompt_similarity(shape, index.shapes[test]), -test) for test in tests), reverse=True)
        for similarity, nearest in ranked:
            if similarity < index.config.threshold:
                break
            if minhash.may_be_copies(shape, test_shape := index.shapes[-nearest]):
                same = normalised(texts[row].prompt) == normalised(test_shape.texts.prompt)
                leaks[row] = Leak("exact" if same else "near", -nearest, similarity)
                break
    return leaks


def sketch_config(config: DuplicatesConfig) -> DuplicatesConfig:
    """Settings under which a sketch of the questions is made, whatever else is configured."""
    return config.model_copy(update={"near": True, "on": "user"})


def _keys_by_band(bands: Iterable[Array]) -> list[Array]:
    return [keys.astype(np.uint64) | np.uint64(number << 32) for number, keys in enumerate(bands)]


def _masked(columns: Columns) -> tuple[Array, Array]:
    """Keys of short questions that differ between masks, and the row of each."""
    keys = np.concatenate(_keys_by_band(columns["masked"].T))
    there = columns["masked"].T.ravel() > 0
    return keys[there], np.resize(np.arange(len(columns["masked"])), len(keys))[there]


def _candidates(columns: Columns, index: TestIndex, count: int) -> dict[int, list[int]]:
    """Test rows that may be similar to a row, the likeliest first; rows without any are left out."""
    sketches = minhash.sketched(columns, "prompt", np.arange(count))
    room = minhash.BUCKET // minhash.banding(index.config.threshold)[1]
    shared: dict[int, set[int]] = {}
    for band in _keys_by_band(sketches.bands):
        _add_matches(shared, sketches.owner, band, index.bands, room)
    signs = minhash.long_signs(sketches, shared)
    most = minhash.most_apart(index.config.threshold)
    candidates = {}
    for row, tests in shared.items():
        near = sorted((minhash.distance(signs[row], index.signs[test_row]), test_row) for test_row in tests)
        if near[0][0] <= most:
            candidates[row] = [test_row for apart, test_row in near[: minhash.CROWD] if apart <= most]
    shared.clear()
    masked, rows = _masked(columns)
    _add_matches(shared, rows, masked, index.masked, room)
    for row, tests in shared.items():
        candidates[row] = [*(first := candidates.get(row, [])), *sorted(tests.difference(first))]
    return candidates


def _add_matches(shared: dict[int, set[int]], rows: Array, keys: Array, test: _Keys, room: int) -> None:
    """Add to each row's test rows those with its key, at most `room` of them."""
    if len(test.keys) == 0:
        return
    begin = np.searchsorted(test.keys, keys)
    there = np.flatnonzero(test.keys[np.minimum(begin, len(test.keys) - 1)] == keys)
    end = np.minimum(np.searchsorted(test.keys, keys[there], side="right"), begin[there] + room)
    for row, low, high in zip(rows[there].tolist(), begin[there].tolist(), end.tolist(), strict=True):
        shared.setdefault(row, set()).update(test.rows[low:high].tolist())


def _passages(texts: Sequence[Sequence[str]]) -> tuple[Array, Array]:
    long = [number for number, words in enumerate(texts) if len(words) >= GRAM]
    if not long:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    lengths = np.array([len(texts[number]) for number in long], dtype=np.int64)
    words = [word for number in long for word in texts[number]]
    hashed, counts = minhash.windows(minhash.word_hashes(words), lengths, GRAM)
    return np.repeat(np.array(long, dtype=np.int64), counts), hashed


def _different(owners: Array, hashes: Array) -> tuple[Array, Array]:
    order = np.lexsort((hashes, owners))
    owners, hashes = owners[order], hashes[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (owners[1:] != owners[:-1]) | (hashes[1:] != hashes[:-1])
    return owners[new], hashes[new]


def _overlaps(texts: Sequence[minhash.RowTexts], index: TestIndex) -> list[tuple[int, float, int]]:
    """Rows that hold enough passages of a test question, the share, and the test row with the largest one."""
    passages = index.passages.keys
    if len(passages) == 0:
        return []
    sides = [side for t in texts for side in (t.prompt, t.answer)]
    # a space more than words between them at most: a cheap way to leave out the short ones
    words = [minhash.folded_words(side) if len(side) > 2 * GRAM else [] for side in sides]
    owners, hashes = _passages(words)
    first = np.minimum(np.searchsorted(passages, hashes), len(passages) - 1)
    hit = passages[first] == hashes
    owners, hashes = _different(owners[hit] // 2, hashes[hit])
    begin, end = np.searchsorted(passages, hashes), np.searchsorted(passages, hashes, side="right")
    rows = np.repeat(owners, end - begin)
    test_rows = index.passages.rows[np.repeat(begin, end - begin) + minhash.counted(end - begin)]
    pairs, counts = np.unique(rows * len(index.shapes) + test_rows, return_counts=True)
    row, test_row = np.divmod(pairs, max(len(index.shapes), 1))
    share = counts / index.passage_counts[test_row]
    best = np.lexsort((test_row, -share, row))
    best = best[np.flatnonzero(np.diff(row[best], prepend=-1))]
    best = best[share[best] >= OVERLAP]
    return list(zip(row[best].tolist(), share[best].tolist(), test_row[best].tolist(), strict=True))


def uncontaminated(rows: list[Row], dataset: Dataset) -> list[Row]:
    """The rows that give no validation or test row of a data set away, by its own settings of what is near."""
    judging = [*dataset.val, *dataset.test]
    if not judging or not rows:
        return rows
    config = DuplicatesConfig(**dataset.manifest.config.get("duplicates", {}))
    index = index_of([minhash.texts_of(row) for row in judging], config)
    leaks = find_contamination([minhash.texts_of(row) for row in rows], index)
    return [row for row, leak in zip(rows, leaks, strict=True) if leak is None]
