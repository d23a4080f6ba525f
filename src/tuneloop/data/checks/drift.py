"""Whether two sets of texts come from the same source: training data and production, or train and test.

The main metric is the AUC of a classifier that tells them apart on texts that it was not trained on (a classifier
two-sample test, Lopez-Paz and Oquab 2017, arXiv 1610.06545): 0.5 means it can't, 1 that it always can.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tuneloop.data.checks.features import folds, one_thread, sample, sketch, tfidf
from tuneloop.data.split import normalised
from tuneloop.records.evaluation import Estimate

WARN_AUC, WARN_LOW = 0.65, 0.55  # a difference that a user notices, and that is no accident of the sample
# Most texts show which side they are from: measured on one, nothing holds on the other.
ERROR_AUC, ERROR_LOW = (0.85, 0.75)
FEW = 20  # distinct texts a side below which nothing is said
MOST = 2000  # distinct texts a side that are looked at
DIMENSIONS = 512
RIDGE = 1.0
FOLDS = 5
# The classifiers of the folds share most of their texts, so their errors hang together: the correction of Nadeau and
# Bengio (2003, doi 10.1023/A:1024068626366), 1/k + 1/(k-1) for 1/k, of the variance. On halves of one set of 200 and
# 800 texts it raises the share of intervals that hold 0.5 from 70 and 90 % to 95 %.
FOLDS_SHARE = ((1 / FOLDS + 1 / (FOLDS - 1)) * FOLDS) ** 0.5
MOST_SHOWN = 10  # words and examples shown
_WORD = re.compile(r"[^\W\d_]{2,}(?:['’][^\W\d_]+)?")


@dataclass(frozen=True)
class Drift:
    """How b differs from a."""

    level: Literal["ok", "warn", "error"]  # `warn` from an AUC of 0.65 (low end above 0.55), `error` from 0.85 (0.75)
    auc: Estimate  # with its 95 % interval (DeLong et al. 1988, widened by FOLDS_SHARE; NaN below 20 texts a side)
    rows: tuple[int, int]  # distinct texts of a and b that were looked at
    length_ratio: float  # median characters of b over those of a
    label_distance: float | None  # total variation distance of the label shares, 0 to 1; None without labels
    new_words: float  # share of b's words that a never uses; `usual_new_words`: the same for a tenth of a and the rest
    usual_new_words: float
    words_a: list[str]  # those that are typical of either side, the most typical first
    words_b: list[str]
    examples: list[int]  # indices of texts of b that a has nothing like, the most foreign first


def compare_with(
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    labels_a: Sequence[str] | None = None,
    labels_b: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Drift:
    """Compare texts b (production, test) with texts a (train).

    Texts that are equal up to case and white space count once a side and are in one fold: copies neither sharpen the
    interval nor give a side away. Of more than 2,000 texts a side a sample is taken, by their hashes.
    """
    chosen_a, chosen_b = _distinct(texts_a, seed), _distinct(texts_b, seed)
    a, b = [texts_a[i] for i in chosen_a], [texts_b[i] for i in chosen_b]
    lengths_a, lengths_b = np.array([len(t) for t in a] or [0]), np.array([len(t) for t in b] or [0])
    auc = Estimate(0.5, float("nan"), float("nan"))
    examples: list[int] = []
    if min(len(a), len(b)) >= FEW:
        auc, score, vectors = tell_apart(a, b, seed)
        with one_thread():
            nearest = (vectors[len(a) :] @ vectors[: len(a)].T).max(axis=1)
        likely = np.flatnonzero(score[len(a) :] >= np.quantile(score[len(a) :], 0.75))
        examples = likely[np.lexsort((likely, nearest[likely]))][:MOST_SHOWN].tolist()
    counts_a, counts_b = _words(a), _words(b)
    others = _words([text for place, text in enumerate(a) if place % 10])
    return Drift(
        level=level_of(auc),
        auc=auc,
        rows=(len(a), len(b)),
        length_ratio=float(np.median(lengths_b) / max(np.median(lengths_a), 1)),
        label_distance=total_variation(Counter(labels_a), Counter(labels_b)) if labels_a and labels_b else None,
        new_words=_new_word_share(b, counts_a),
        usual_new_words=_new_word_share(a[::10], others),
        words_a=_typical_words(counts_a, counts_b, len(a), len(b)),
        words_b=_typical_words(counts_b, counts_a, len(b), len(a)),
        examples=[chosen_b[i] for i in examples],
    )


def level_of(auc: Estimate) -> Literal["ok", "warn", "error"]:
    """What an AUC between two sides means; see the constants."""
    if auc.value >= ERROR_AUC and auc.low > ERROR_LOW:
        return "error"
    return "warn" if auc.value >= WARN_AUC and auc.low > WARN_LOW else "ok"


def auc_estimate(of_a: Any, of_b: Any) -> Estimate:
    """The probability that a score of b is above one of a (ties: half), with the interval of DeLong et al. 1988."""
    sorted_a, sorted_b = np.sort(of_a), np.sort(of_b)
    # by row: the share of the other side that it is right about
    right_b = (np.searchsorted(sorted_a, of_b, "left") + np.searchsorted(sorted_a, of_b, "right")) / (2 * len(of_a))
    wrong_a = (np.searchsorted(sorted_b, of_a, "left") + np.searchsorted(sorted_b, of_a, "right")) / (2 * len(of_b))
    value = float(right_b.mean())
    half = 1.96 * float(np.sqrt(right_b.var(ddof=1) / len(of_b) + wrong_a.var(ddof=1) / len(of_a)))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def kolmogorov_smirnov(a: Any, b: Any) -> tuple[float, float]:
    """The largest distance of two distribution functions, and its asymptotic p-value (Smirnov 1948)."""
    everything = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), everything, "right") / len(a)
    below_b = np.searchsorted(np.sort(b), everything, "right") / len(b)
    distance = float(np.abs(below_a - below_b).max())
    x = distance * (len(a) * len(b) / (len(a) + len(b))) ** 0.5
    if x < 0.3:  # the series below converges slowly, and the p-value is 1 to five digits
        return distance, 1.0
    terms = [(-1) ** (j - 1) * np.exp(-2 * j * j * x * x) for j in range(1, 50)]
    return distance, float(min(max(2 * sum(terms), 0.0), 1.0))


def chi_square(a: Any, b: Any) -> tuple[float, float]:
    """Whether counts by category have the same shares: p-value of Pearson's test, and Cramér's V as size, 0 to 1."""
    from scipy.special import chdtrc

    table = np.array([a, b], dtype=float)
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2 or not table.sum(axis=1).all():
        return 1.0, 0.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(chdtrc(table.shape[1] - 1, statistic)), float((statistic / table.sum()) ** 0.5)


def total_variation(a: Counter[str], b: Counter[str]) -> float:
    """Half the sum of the differences of all shares: the share of rows that would have to change their label."""
    of_a, of_b = max(a.total(), 1), max(b.total(), 1)
    return 0.5 * sum(abs(a[name] / of_a - b[name] / of_b) for name in a.keys() | b.keys())


def _distinct(texts: Sequence[str], seed: int) -> list[int]:
    first: dict[str, int] = {}
    for index in sample(texts, 4 * MOST, seed):
        first.setdefault(normalised(texts[index]), index)
    indices = [index for text, index in first.items() if text]
    return [indices[i] for i in sample([texts[index] for index in indices], MOST, seed)]


def tell_apart(a: Sequence[str], b: Sequence[str], seed: int = 0) -> tuple[Estimate, Any, Any]:
    """Learn to tell texts b from a, at least two each: ridge regression on TF-IDF, by folds; equal texts are in one.

    Returns the AUC on texts that were not trained on, with its 95 % interval (DeLong et al. 1988, widened by
    FOLDS_SHARE); the score of each text of a, then of b, above 0 where it looks like b; the texts' vectors.
    """
    texts = [*a, *b]
    is_b = np.arange(len(texts)) >= len(a)
    fold = folds(texts, FOLDS, seed)
    score = np.zeros(len(texts), dtype=np.float32)
    with one_thread():
        vectors = sketch(tfidf(texts), DIMENSIONS)
        with_bias = np.concatenate([vectors, np.full((len(texts), 1), 0.5, dtype=np.float32)], axis=1)

        def moments(rows: Any) -> tuple[Any, Any, int]:
            some = with_bias[rows]
            return some.T @ some, some.sum(axis=0), len(some)

        of_fold = [[moments((fold == number) & (is_b == side)) for side in (False, True)] for number in range(FOLDS)]
        for number in range(FOLDS):
            matrix, target = RIDGE * np.eye(DIMENSIONS + 1, dtype=np.float32), 0.0
            for side, sign in ((0, -1.0), (1, 1.0)):
                others = [of_fold[other][side] for other in range(FOLDS) if other != number]
                # both sides weigh the same in each training set, or the scores of a fold would lean against its
                # majority
                weight = np.float32(len(texts) / 2 / max(sum(count for *_, count in others), 1))
                matrix = matrix + weight * sum(square for square, *_ in others)
                target = target + sign * weight * sum(total for _, total, _ in others)
            inside = fold == number
            score[inside] = with_bias[inside] @ np.linalg.solve(matrix, target)
    auc = auc_estimate(score[: len(a)], score[len(a) :])
    low, high = (auc.value + FOLDS_SHARE * (end - auc.value) for end in (auc.low, auc.high))
    return Estimate(auc.value, max(low, 0.0), min(high, 1.0)), score, vectors


def _words(texts: Sequence[str]) -> Counter[str]:
    return Counter(word for text in texts for word in set(_WORD.findall(text.lower())))


def _new_word_share(texts: Sequence[str], vocabulary: Collection[str]) -> float:
    words = [word for text in texts for word in _WORD.findall(text.lower())]
    return sum(word not in vocabulary for word in words) / len(words) if words else 0.0


def _typical_words(counts: Counter[str], other: Counter[str], rows: int, other_rows: int) -> list[str]:
    """Words of more texts of one side than chance allows: z-scores of log odds ratios (Woolf 1955)."""
    scores = {}
    for word, count in counts.items():
        if count < 3:  # hardly telling, and rare words may be names
            continue
        cells = (count + 0.5, rows - count + 0.5, other[word] + 0.5, other_rows - other[word] + 0.5)
        odds_ratio = cells[0] * cells[3] / (cells[1] * cells[2])
        scores[word] = math.log(odds_ratio) / math.sqrt(sum(1 / cell for cell in cells))
    words = [word for word, score in scores.items() if score > 3.0]
    return sorted(words, key=lambda word: (-scores[word], word))[:MOST_SHOWN]
