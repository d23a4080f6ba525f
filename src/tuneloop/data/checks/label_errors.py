"""Labels that look wrong: confident learning (Northcutt et al. 2021, arXiv 1911.00068) on out-of-sample probabilities.

Two classifiers vote, each on rows that it was not trained on:

- kernel ridge regression on latent semantic analysis of TF-IDF (and on sentence embeddings, where there are any), with
  leave-one-out predictions in closed form;
- multinomial naive Bayes on TF-IDF (Rennie et al. 2003), with leave-one-out predictions, too.

Their log probabilities are averaged after each got the temperature that fits it best. Rows with the same text are left
out together, so that a copy with another label does not testify against the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.data.checks.drift import groups, one_thread, sketch, tfidf

Embed = Callable[[Sequence[str]], Any]  # texts -> float array, one row a text

LARGE = 5_000  # rows from which fewer landmarks do: there is evidence enough, and time counts
LANDMARKS, LANDMARKS_OF_LARGE = 1536, 768  # rows that represent all in the kernel (Nyström's method)
LOOKED_AT = 2_000  # rows that tell which temperature and smoothing fit best, and what the topics are
TOPICS = 128  # dimensions of the latent semantic analysis
SKETCH, SKETCH_OF_LARGE = 4096, 1024
SHARPNESS = 2.0  # of the kernel exp(SHARPNESS * (cosine - 1)): likes of a few words count, not only whole texts
RIDGE = 0.5
SMOOTHINGS = (0.005, 0.01, 0.02, 0.04)  # of naive Bayes; the one under which held-out labels are likeliest is taken
# Of the likeliest label's probability: up to there a confident error is mostly an error, beyond a hard row.
CLEARLY_WRONG = 0.05


@dataclass(frozen=True)
class LabelError:
    """A row whose label looks wrong."""

    index: int  # place of the row in what was given
    label: str  # the label it has
    suggested: str  # the label that is likeliest without having seen this row
    score: float  # probability that the label is right, 0 to 1: low is suspicious
    confident: bool  # whether confident learning counts the row as an error, and its label is clearly unlikely


def find_label_errors(
    texts: Sequence[str], labels: Sequence[str], *, seed: int = 0, embed: Embed | None = None
) -> list[LabelError]:
    """All rows, the most suspicious first; none where there are fewer than two labels.

    Args:
        labels: the class of each text.
        seed: of the landmarks.
        embed: sentence embeddings; with them the ranking is clearly better.
    """
    names = sorted(set(labels))
    if len(names) < 2:
        return []
    numbers = {name: number for number, name in enumerate(names)}
    label = np.array([numbers[name] for name in labels])
    with one_thread():
        probability = _probabilities(texts, label, len(names), seed, embed)
    label_probability = probability[np.arange(len(label)), label]
    confident = confident_errors(probability, label) & (label_probability < CLEARLY_WRONG * probability.max(axis=1))
    best = probability.argmax(axis=1)
    order = np.lexsort((np.arange(len(label)), label_probability))
    return [
        LabelError(i, names[label[i]], names[best[i]], round(float(label_probability[i]), 6), bool(confident[i]))
        for i in order.tolist()
    ]


def confident_errors(probability: Any, label: Any) -> Any:
    """The off-diagonal of the confident joint: rows that belong to another class with confidence.

    A class's threshold is the mean probability that its own rows give it (section 3.1 of the paper); a row counts for
    the likeliest of the classes whose threshold it reaches. As its label is then not the likeliest class, rows that
    merely resemble a class with a low threshold are left out. `probability`: out of sample, rows x classes.
    """
    classes = probability.shape[1]
    label_probability = probability[np.arange(len(label)), label]
    count = np.bincount(label, minlength=classes)
    threshold = np.bincount(label, label_probability, minlength=classes) / np.maximum(count, 1)
    threshold[count == 0] = np.inf
    reached = np.where(probability >= threshold, probability, -1.0)
    best = reached.argmax(axis=1)
    return (reached.max(axis=1) >= 0) & (best != label) & (probability.argmax(axis=1) != label)


def _probabilities(texts: Sequence[str], label: Any, classes: int, seed: int, embed: Embed | None) -> Any:
    table, members = tfidf(texts), groups(texts)
    with ThreadPoolExecutor(1) as pool:  # each adds up for itself, so a thread more changes no digit
        bayes = pool.submit(lambda: _tempered(_naive_bayes(table, label, classes, members), label))
        views = [_topics(table, seed)]
        views += [] if embed is None else [_unit(np.asarray(embed(texts), dtype=np.float32))]
        ridge = _tempered(_kernel_ridge(views, label, classes, members, seed), label)
        votes = [ridge, bayes.result()]
    weights = (0.4, 0.6) if embed is None else (0.75, 0.25)
    return np.exp(_log_softmax(sum(weight * vote for weight, vote in zip(weights, votes, strict=True))))


def _topics(table: Any, seed: int) -> Any:
    size = SKETCH if table.shape[0] < LARGE else SKETCH_OF_LARGE
    dense = sketch(table, size)  # latent semantic analysis: unit vectors in the space of its largest singular vectors
    rng = np.random.default_rng(seed)
    some = dense if len(dense) <= LOOKED_AT else dense[rng.choice(len(dense), LOOKED_AT, replace=False)]
    topics = min(TOPICS, max(len(some) // 4, 2), size)
    basis = rng.standard_normal((size, min(topics + 32, size)), dtype=np.float32)
    for _ in range(2):  # subspace iteration (Halko et al. 2011)
        basis, _r = np.linalg.qr(some.T @ (some @ basis))
    _u, _s, right = np.linalg.svd(some @ basis, full_matrices=False)
    return _unit(dense @ (basis @ right[:topics].T))


def _kernel_ridge(views: Sequence[Any], label: Any, classes: int, members: Any, seed: int) -> Any:
    """Scores that each row gets from all rows of another text.

    With landmarks Z the fitted scores are H Y, with H = K_nz (K_zn K_nz + RIDGE K_zz)^-1 K_zn. For m rows of one text
    that have leverage h and targets of sum S, leaving all of them out turns the score f into (f - h S) / (1 - m h)
    (the leave-one-out formula, Allen 1974, for equal rows).
    """
    n = len(label)
    rng = np.random.default_rng(seed + 1)
    landmark = np.sort(rng.choice(n, min(LANDMARKS if n < LARGE else LANDMARKS_OF_LARGE, n), replace=False))

    def kernel(rows: Any) -> Any:
        return sum(np.exp(SHARPNESS * (view[rows] @ view[landmark].T - 1)) for view in views) / len(views)

    to_landmarks = kernel(slice(None)).astype(np.float32)
    among = to_landmarks[landmark].astype(np.float64)
    normal = (to_landmarks.T @ to_landmarks).astype(np.float64) + RIDGE * among
    normal[np.diag_indices_from(normal)] += 1e-3
    inverse = np.linalg.inv(normal).astype(np.float32)
    target = np.full((n, classes), -1.0 / classes, dtype=np.float32)
    target[np.arange(n), label] += 1.0
    projected = to_landmarks @ inverse
    score = projected @ (to_landmarks.T @ target)
    leverage = np.einsum("nz,nz->n", projected, to_landmarks)
    sums = np.zeros((int(members.max()) + 1, classes), dtype=np.float32)
    np.add.at(sums, members, target)
    size = np.bincount(members)[members]
    return (score - leverage[:, None] * sums[members]) / np.maximum(1 - size * leverage, 0.01)[:, None]


def _naive_bayes(table: Any, label: Any, classes: int, members: Any) -> Any:
    """Log likelihoods of multinomial naive Bayes on TF-IDF weights, each text scored by all others.

    Leaving a text out changes only the sums of its class (of all classes that rows with this text have). So it is done
    exactly: all rows are scored with all rows, then the scores of these classes are corrected.
    """
    from scipy import sparse

    n, features = table.shape
    one_hot = sparse.csr_matrix((np.ones(n, dtype=np.float32), (np.arange(n), label)), shape=(n, classes))
    counts = (table.T.tocsr() @ one_hot).tocoo()
    dense = counts.toarray()
    size = np.asarray(table.sum(axis=1)).ravel()
    total, rows_of = np.bincount(label, size, classes), np.bincount(label, minlength=classes)

    # Rows of one text and one class are left out together: pairs of text and class, and one row of each.
    pair, first, times = np.unique(members * classes + label, return_index=True, return_counts=True)
    times = times.astype(np.float32)
    part = table[first]
    of = np.repeat(np.arange(len(pair)), np.diff(part.indptr))
    class_of_pair = pair % classes
    rest = np.maximum(dense[part.indices, class_of_pair[of]] - times[of] * part.data, 0.0)
    rest_total = np.maximum(total[class_of_pair] - times * size[first], 0.0)
    rest_rows = rows_of[class_of_pair] - times
    # Each row and the pairs of its text.
    start, pairs = np.searchsorted(pair // classes, members), np.bincount(pair // classes)[members]
    row = np.repeat(np.arange(n), pairs)
    which = np.repeat(start - np.cumsum(pairs) + pairs, pairs) + np.arange(len(row))

    def held_out(smoothing: float, every: int = 1) -> Any:
        logs = np.full((features, classes), np.log(np.float32(smoothing)), dtype=np.float32)
        logs[counts.row, counts.col] = np.log(counts.data + np.float32(smoothing))
        spread = smoothing * features + 1e-9
        score = table[::every] @ logs - np.outer(size[::every], np.log(total + spread)) + np.log(rows_of + 0.5)
        right = np.bincount(of, part.data * np.log(rest + np.float32(smoothing)), len(pair))
        right = right + np.log(rest_rows + 0.5) - size[first] * np.log(rest_total + spread)
        some = row % every == 0
        score[row[some] // every, class_of_pair[which[some]]] = right[which[some]]
        return score.astype(np.float32)

    every = n // LOOKED_AT + 1
    losses = [_loss(held_out(smoothing, every), label[::every])[1] for smoothing in SMOOTHINGS]
    return held_out(SMOOTHINGS[int(np.argmin(losses))])


def _tempered(score: Any, label: Any) -> Any:
    """Log probabilities at the temperature under which the labels are likeliest."""
    few = slice(None, None, len(label) // LOOKED_AT + 1)
    return _log_softmax(score * np.float32(_loss(score[few], label[few])[0]))


def _loss(score: Any, label: Any) -> tuple[float, float]:
    """The best factor of the scores and the mean log loss with it; bounded, so that wrong labels decide nothing."""
    rows = np.arange(len(label))
    losses = [
        (float(-np.maximum(_log_softmax(score * np.float32(factor))[rows, label], -7.0).mean()), float(factor))
        for factor in np.geomspace(0.25, 64, 17)
    ]
    loss, factor = min(losses)
    return factor, loss


def _log_softmax(score: Any) -> Any:
    shifted = score - score.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _unit(vectors: Any) -> Any:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
