"""Labels that look wrong: confident learning (Northcutt et al. 2021, arXiv 1911.00068) on fast out-of-sample probabilities.

Two classifiers vote, each on rows that it was not trained on:

- kernel ridge regression on latent semantic analysis of TF-IDF (and on sentence embeddings, where the caller has
  them), with leave-one-out predictions in closed form;
- multinomial naive Bayes on TF-IDF (Rennie et al. 2003), cross-validated.

Their log probabilities are averaged after each got the temperature that fits it best. Rows with the same text are
left out together, so that a copy with another label does not testify against the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.data.checks.features import folds, groups, one_thread, sample, sketch, tfidf

Embed = Callable[[Sequence[str]], Any]  # texts -> float array, one row a text

LARGE = 5_000  # rows from which fewer folds and landmarks do: there is evidence enough, and time counts
LANDMARKS, LANDMARKS_OF_LARGE = 1536, 768  # rows that stand for all in the kernel (Nyström's method)
FOLDS, FOLDS_OF_LARGE = 20, 5  # of naive Bayes
TOPICS = 128  # dimensions of the latent semantic analysis
SKETCH, SKETCH_OF_LARGE = 4096, 2048
SHARPNESS = 2.0  # of the kernel exp(SHARPNESS * (cosine - 1)): likes of a few words count, not only whole texts
RIDGE = 0.5
SMOOTHINGS = (0.005, 0.01, 0.02, 0.04)  # of naive Bayes; the one under which held-out labels are likeliest is taken
SECONDS_PER_ROW = 1.5e-4  # of one core, with 100 labels: what a budget is turned into rows with
CLEARLY_WRONG = (
    0.05  # of the likeliest label's probability: up to there a confident error is mostly an error, beyond a hard row
)


@dataclass(frozen=True)
class LabelError:
    """A row whose label looks wrong.

    Args:
        index: place of the row in what was given.
        label: the label it has.
        suggested: the label that is likeliest without having seen this row.
        score: probability that the label is right, 0 to 1: low is suspicious.
        confident: whether confident learning counts the row as an error, and its label is clearly unlikely.
    """

    index: int
    label: str
    suggested: str
    score: float
    confident: bool


def find_label_errors(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int = 0,
    budget_seconds: float | None = 10.0,
    embed: Embed | None = None,
) -> list[LabelError]:
    """All rows, the most suspicious first.

    Args:
        texts: what the model is asked.
        labels: the class of each text.
        seed: of the folds and of the sample.
        budget_seconds: rough limit on one core's time without embeddings; beyond it a sample of the rows, chosen by
            their hashes, is looked at. It is turned into a number of rows and measured by no clock, so that the
            result can be reproduced. None: all rows.
        embed: sentence embeddings; with them the ranking is clearly better.

    Returns:
        One record for each row looked at; none where there are fewer than two labels.
    """
    most = len(texts) if budget_seconds is None else max(int(min(budget_seconds, 1e6) / SECONDS_PER_ROW), 1000)
    chosen = sample(texts, most, seed)
    texts, names = [texts[i] for i in chosen], sorted({labels[i] for i in chosen})
    if len(names) < 2:
        return []
    place = {name: number for number, name in enumerate(names)}
    label = np.array([place[labels[i]] for i in chosen])
    with one_thread():
        probability = _probabilities(texts, label, len(names), seed, embed)
    own = probability[np.arange(len(label)), label]
    confident = confident_errors(probability, label) & (own < CLEARLY_WRONG * probability.max(axis=1))
    best = probability.argmax(axis=1)
    order = np.lexsort((np.arange(len(label)), own))
    return [
        LabelError(chosen[i], names[label[i]], names[best[i]], round(float(own[i]), 6), bool(confident[i]))
        for i in order
    ]


def confident_errors(probability: Any, label: Any) -> Any:
    """The off-diagonal of the confident joint: rows that belong to another class with confidence.

    A class's threshold is the mean probability that its own rows give it (section 3.1 of the paper); a row counts
    for the likeliest of the classes whose threshold it reaches. As its label is then not the likeliest class, rows
    that merely resemble a class with a low threshold are left out.

    Args:
        probability: out-of-sample probabilities, rows x classes.
        label: the class of each row.
    """
    classes = probability.shape[1]
    own = probability[np.arange(len(label)), label]
    count = np.bincount(label, minlength=classes)
    threshold = np.bincount(label, own, minlength=classes) / np.maximum(count, 1)
    threshold[count == 0] = np.inf
    reached = np.where(probability >= threshold, probability, -1.0)
    best = reached.argmax(axis=1)
    return (reached.max(axis=1) >= 0) & (best != label) & (probability.argmax(axis=1) != label)


def _probabilities(texts: Sequence[str], label: Any, classes: int, seed: int, embed: Embed | None) -> Any:
    """Out-of-sample probabilities of the classes, rows x classes."""
    table = tfidf(texts)
    many = FOLDS if len(texts) < LARGE else FOLDS_OF_LARGE
    views = [_topics(table, seed)]
    if embed is not None:
        views.append(_unit(np.asarray(embed(texts), dtype=np.float32)))
    members = groups(texts)
    votes = [
        _tempered(_kernel_ridge(views, label, classes, members, seed), label),
        _tempered(_naive_bayes(table, label, classes, folds(texts, many, seed)), label),
    ]
    weights = (0.4, 0.6) if embed is None else (0.75, 0.25)
    log = sum(weight * vote for weight, vote in zip(weights, votes, strict=True))
    return np.exp(_log_softmax(log))


def _topics(table: Any, seed: int) -> Any:
    """Latent semantic analysis: unit vectors in the space of the largest singular vectors of a sketch of the table."""
    size = SKETCH if table.shape[0] < LARGE else SKETCH_OF_LARGE
    dense = sketch(table, size)
    rng = np.random.default_rng(seed)
    some = dense if len(dense) <= 4096 else dense[rng.choice(len(dense), 4096, replace=False)]
    topics = min(TOPICS, max(len(some) // 4, 2), size)
    basis = rng.standard_normal((size, min(topics + 32, size)), dtype=np.float32)
    for _ in range(4):  # subspace iteration (Halko et al. 2011)
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


def _naive_bayes(table: Any, label: Any, classes: int, fold: Any) -> Any:
    """Log likelihoods of multinomial naive Bayes on TF-IDF weights, each fold scored by the others."""
    from scipy import sparse

    one_hot = sparse.csr_matrix(
        (np.ones(len(label), dtype=np.float32), (label, np.arange(len(label)))), shape=(classes, len(label))
    )
    rows_of = np.bincount(label, minlength=classes)
    weights = (one_hot @ table).toarray()

    def held_out(number: int, smoothings: Sequence[float]) -> tuple[Any, list[Any]]:
        inside = np.flatnonzero(fold == number)
        part = table[inside]
        count = weights - (one_hot[:, inside] @ part).toarray()
        prior = np.log(rows_of - np.bincount(label[inside], minlength=classes) + 0.5)
        scores = []
        for smoothing in smoothings:
            smooth = np.maximum(count, 0) + np.float32(smoothing)
            scores.append(part @ (np.log(smooth) - np.log(smooth.sum(axis=1, keepdims=True) + 1e-9)).T + prior)
        return inside, scores

    numbers = np.flatnonzero(np.bincount(fold)).tolist()
    few = [held_out(number, SMOOTHINGS) for number in numbers[:2]]
    of = label[np.concatenate([inside for inside, _ in few])]
    trials = [np.concatenate([scores[place] for _, scores in few]) for place in range(len(SMOOTHINGS))]
    smoothing = SMOOTHINGS[int(np.argmin([_loss(trial, of)[1] for trial in trials]))]
    score = np.zeros((len(label), classes), dtype=np.float32)
    for number in numbers:
        inside, (scores,) = held_out(number, [smoothing])
        score[inside] = scores
    return score


def _tempered(score: Any, label: Any) -> Any:
    """Log probabilities at the temperature under which the labels are likeliest."""
    few = slice(None, None, len(label) // 3000 + 1)
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
