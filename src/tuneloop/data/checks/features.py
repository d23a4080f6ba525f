"""Texts as numbers, fast: hashed TF-IDF of words, word pairs and n-grams, for the checks that learn from rows.

Everything is computed over one long array of code points, so that 10,000 short texts take about 0.2 s of one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tuneloop.data.split import keyed_hash, mixed_bits, normalised

LONGEST = 1_000  # characters of a text that count: more adds time, hardly evidence
CHARACTER_NGRAMS = (3, 4, 5)
BITS = 20  # of the hash of a word or n-gram
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


def one_thread() -> Any:
    """While it is open, matrix products use one thread: with more, the last digits depend on the number of cores."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def tfidf(texts: Sequence[str]) -> Any:
    """A `scipy.sparse.csr_matrix`: rows of unit length, half of it on words and word pairs, half on 3-, 4- and 5-grams.

    Counts are damped (1 + log) and weighted with the smoothed inverse document frequency. What only one text has is
    left out: it says nothing about another one.
    """
    from scipy import sparse

    rarity = np.log((1 + len(texts)) / (1 + np.arange(len(texts) + 1))) + 1.0
    rows, columns, values = [], [], []
    for number, (row, feature) in enumerate(_features(texts)):
        key, count = np.unique((row.astype(np.uint64) << np.uint64(BITS)) | feature, return_counts=True)
        column = (key & np.uint64(2**BITS - 1)).astype(np.int64)
        documents = np.bincount(column, minlength=2**BITS)[column]
        shared = documents > 1
        row, column = (key[shared] >> np.uint64(BITS)).astype(np.int64), column[shared]
        weight = (1.0 + np.log(count[shared])) * rarity[documents[shared]]
        length = np.sqrt(np.bincount(row, weight * weight, minlength=len(texts)))
        rows.append(row)
        columns.append(column + number * 2**BITS)
        values.append(weight / length[row] * 0.5**0.5)
    seen = np.zeros(2 * 2**BITS, dtype=bool)
    column = np.concatenate(columns)
    seen[column] = True
    place = np.cumsum(seen) - 1
    return sparse.csr_matrix(
        (np.concatenate(values).astype(np.float32), (np.concatenate(rows), place[column])),
        shape=(len(texts), int(seen.sum())),
    )


def sketch(table: Any, dimensions: int) -> Any:
    """A count sketch (Charikar et al. 2002): a dense array whose inner products estimate those of `table`."""
    from scipy import sparse

    mixed = mixed_bits(np.arange(1, table.shape[1] + 1, dtype=np.uint64) * np.uint64(_BASE))
    sign = np.where(mixed & np.uint64(1), np.float32(1), np.float32(-1))
    place = ((mixed >> np.uint64(33)) % np.uint64(dimensions)).astype(np.int64)
    fold = sparse.csr_matrix((sign, (np.arange(len(place)), place)), shape=(len(place), dimensions))
    return (table @ fold).toarray()


def groups(texts: Sequence[str]) -> Any:
    """A number for each text, the same for texts that are equal up to Unicode form, white space and case."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(normalised(text), len(number)) for text in texts], dtype=np.int64)


def folds(texts: Sequence[str], count: int, seed: int) -> Any:
    """The fold of each text for cross-validation; equal texts are in one fold, wherever they stand."""
    return np.array([keyed_hash(normalised(text), seed)[0] % count for text in texts], dtype=np.int64)


def sample(texts: Sequence[str], size: int, seed: int) -> list[int]:
    """Indices of at most `size` texts, chosen by their hashes, in their order: the same texts give the same ones."""
    if len(texts) <= size:
        return list(range(len(texts)))
    order = sorted(range(len(texts)), key=lambda index: (keyed_hash(texts[index], seed), index))
    return sorted(order[:size])


def _features(texts: Sequence[str]) -> Iterator[tuple[Any, Any]]:
    clean = [" ".join(text[:LONGEST].lower().split()) for text in texts]
    code = np.frombuffer(("\n " + " \n ".join(clean) + " ").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    row = np.cumsum(code == 10) - 1  # a line feed begins each text: `clean` holds none
    powers, inverse = _powers(_BASE, len(code)), _powers(_INVERSE, len(code) + 1)
    sums = np.zeros(len(code) + 1, dtype=np.uint64)  # polynomial hash of every prefix, modulo 2^64
    np.cumsum((code.astype(np.uint64) + np.uint64(1)) * powers, out=sums[1:])

    def spans(start: Any, end: Any) -> Any:
        return mixed_bits((sums[end] - sums[start]) * inverse[start] + (end - start).astype(np.uint64))

    shift = np.uint64(64 - BITS)
    letter = ((code >= 97) & (code <= 122)) | ((code >= 48) & (code <= 57)) | (code > 127)
    edge = np.diff(np.concatenate([[False], letter, [False]]).astype(np.int8))
    start, end = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    word, row_of_word = spans(start, end), row[start]
    neighbours = row_of_word[1:] == row_of_word[:-1]
    pair = mixed_bits(word[:-1] * np.uint64(31) + word[1:])[neighbours]
    yield np.concatenate([row_of_word, row_of_word[1:][neighbours]]), np.concatenate([word, pair]) >> shift

    places, ngrams = [], []
    for size in CHARACTER_NGRAMS:
        start = np.arange(max(len(code) - size + 1, 0))
        start = start[(row[start] == row[start + size - 1]) & (code[start] != 10)]
        places.append(row[start])
        ngrams.append(spans(start, start + size) >> shift)
    yield np.concatenate(places), np.concatenate(ngrams)


def _powers(base: int, count: int) -> Any:
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
