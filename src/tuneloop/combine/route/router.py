"""A router: from the features of a request to the expected quality of each model, and to one of them or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes
from tuneloop.records.record import read_record, write_record
from tuneloop.records.router import RouterCandidate, RouterKind, RouterRecord

Array = NDArray[Any]

NONE = -1  # "none of these"
NUMBERS = "router.safetensors"
NEAREST = 5  # fitted rows whose mean similarity says whether a request is like them
SHARPNESS = 10.0  # of centroids: cosines are small numbers
LEAST = 1e-6


@dataclass(frozen=True)
class Router:
    """A fitted router."""

    record: RouterRecord
    # `mean` (features), `rows` (fitted rows, features; unit vectors), `outcomes` (fitted rows, models), `weights`
    # (features, models) and `bias` (models) of a regression, `centroids` (models, features)
    numbers: dict[str, Array]

    @property
    def names(self) -> list[str]:
        """The models, in the order of their numbers."""
        return [route.name for route in self.record.routes]

    def centred(self, features: Array) -> Array:
        """Features as the fitted rows are kept: their mean taken off, of length one."""
        return unit(features - self.numbers["mean"])

    def quality(self, features: Array) -> Array:
        """Expected outcome of each model, (requests, models): they sum to one where a row belongs to one model."""
        quality = raw_quality(self.record, self.numbers, self.centred(features))
        return softened(quality, self.record.temperature, self.record.exclusive)

    def similarity(self, features: Array) -> Array:
        """Mean cosine with the nearest fitted rows, (requests)."""
        return similarity(self.centred(features), self.numbers["rows"])

    def choose(self, features: Array) -> Array:
        """The number of the model for each request, or NONE."""
        costs = np.array([route.cost for route in self.record.routes])
        best: Array = (self.quality(features) - self.record.price * costs).argmax(1)
        if self.record.threshold is None:
            return best
        return np.where(self.similarity(features) >= self.record.threshold, best, NONE)

    def updated(self, **fields: Any) -> Router:
        """The router with other fields in its record."""
        return replace(self, record=self.record.model_copy(update=fields))

    def save(self, folder: Path) -> None:
        """Write the numbers and, last, `router.json`."""
        from safetensors.numpy import save

        write_bytes(folder / NUMBERS, save({name: np.ascontiguousarray(value) for name, value in self.numbers.items()}))
        write_record(folder / RouterRecord.file, self.record)


def load_router(folder: Path) -> Router:
    """A fitted router. Raises UserError: none was fitted, or its files are damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / RouterRecord.file).is_file():
        raise UserError("There is no fitted router here", where=str(folder), next_step="tuneloop route fit first")
    record = read_record(RouterRecord, folder)
    try:
        return Router(record, load_file(folder / NUMBERS))
    except (OSError, SafetensorError) as error:
        what = f"The router's numbers can't be read: {error}"
        raise UserError(what, where=str(folder / NUMBERS), next_step=RouterRecord.again) from None


def unit(vectors: Array) -> Array:
    """Vectors of length one; those of length zero stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return units


def similarity(vectors: Array, rows: Array) -> Array:
    """Mean cosine of each vector with its nearest rows."""
    count = min(NEAREST, rows.shape[0])
    means: Array = np.partition(vectors @ rows.T, -count, axis=1)[:, -count:].mean(1)
    return means


def raw_quality(record: RouterRecord, numbers: dict[str, Array], vectors: Array) -> Array:
    """Expected outcomes before calibration; see `Router.quality`."""
    if record.kind == "constant":
        return np.tile(numbers["outcomes"].mean(0), (vectors.shape[0], 1))
    if record.kind == "centroid":
        return _softmax(SHARPNESS * vectors @ numbers["centroids"].T)
    if record.kind == "knn":
        cosines = vectors @ numbers["rows"].T
        k = min(record.k, cosines.shape[1])
        near = np.argpartition(cosines, -k, axis=1)[:, -k:]
        weights = np.maximum(np.take_along_axis(cosines, near, 1), LEAST)
        shares = weights / weights.sum(1, keepdims=True)
        votes = np.einsum("nk,nkm->nm", shares, numbers["outcomes"][near])
        quality: Array = (k * votes + numbers["outcomes"].mean(0)) / (k + 1)  # as if one average row were near, too
        return quality
    logits = vectors @ numbers["weights"] + numbers["bias"]
    return _softmax(logits) if record.exclusive else _sigmoid(logits)


def softened(quality: Array, temperature: float, exclusive: bool) -> Array:
    """Probabilities with their log odds divided by a temperature (Guo et al. 2017, arXiv 1706.04599)."""
    clipped = np.clip(quality, LEAST, 1 - LEAST)
    if exclusive:
        return _softmax(np.log(clipped) / temperature)
    return _sigmoid(np.log(clipped / (1 - clipped)) / temperature)


def _sigmoid(logits: Array) -> Array:
    from scipy.special import expit

    probabilities: Array = expit(logits)
    return probabilities


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(1, keepdims=True)
    return probabilities


NEIGHBOURS = (1, 3, 5, 10, 20, 40, 80)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of the regression: larger trusts the rows more
SENT_AWAY = 0.05  # share of validation rows that are taken for none of these


@dataclass(frozen=True)
class Outcomes:
    """Rows to fit or to judge a router by."""

    features: Array  # (rows, features)
    quality: Array  # (rows, models), what each model's answer is worth, 0 to 1; 1 for the model that a row belongs to

    def __len__(self) -> int:
        return int(self.features.shape[0])


def fit_router(
    train: Outcomes, val: Outcomes, like: RouterRecord, kinds: Sequence[RouterKind] = ("centroid", "knn", "logreg")
) -> Router:
    """The best router of some kinds, calibrated: that with the highest mean outcome on validation rows.

    Of equals it is the one with the lowest log loss.

    `like`: routes, features, price, and whether a row belongs to one model; `kinds`: `centroid` only where a row
    belongs to one model. Raises UserError: fewer than two models, a model without rows, no validation rows.
    """
    _check(train, val, like)
    mean = train.features.mean(0)
    rows, vectors = unit(train.features - mean), unit(val.features - mean)
    costs = np.array([route.cost for route in like.routes])
    fits: list[tuple[RouterCandidate, Router]] = []
    base = {"mean": mean.astype(np.float32), "rows": rows, "outcomes": train.quality.astype(np.float32)}
    for kind in ("constant", *(kind for kind in kinds if like.exclusive or kind != "centroid")):
        for tuned, record, numbers in _fits(kind, base, like):
            raw = raw_quality(record, numbers, vectors)
            record = record.model_copy(update={"temperature": _temperature(raw, val.quality, like.exclusive)})
            expected = softened(raw, record.temperature, like.exclusive)
            picks = (expected - like.price * costs).argmax(1)
            quality = float(np.take_along_axis(val.quality, picks[:, None], 1).mean())
            loss = log_loss(expected, val.quality, like.exclusive)
            fits.append((RouterCandidate(kind=kind, quality=quality, loss=loss, tuned=tuned), Router(record, numbers)))
    best = max(fits, key=lambda fit: (round(fit[0].quality, 6), -fit[0].loss))[1]
    candidates: dict[str, RouterCandidate] = {}
    for candidate, _ in fits:  # the best setting of each kind
        rival = candidates.get(candidate.kind)
        if rival is None or (candidate.quality, -candidate.loss) > (rival.quality, -rival.loss):
            candidates[candidate.kind] = candidate
    threshold = float(np.quantile(similarity(vectors, rows), SENT_AWAY)) if like.exclusive else None
    record = best.record.model_copy(update={"threshold": threshold, "candidates": list(candidates.values())})
    return Router(record, best.numbers)


def _check(train: Outcomes, val: Outcomes, like: RouterRecord) -> None:
    names = [route.name for route in like.routes]
    if len(names) < 2:
        raise UserError("A router needs two models or more", where=", ".join(names), next_step="name another one")
    if len(train) < 2 or not len(val):
        what = f"A router needs rows to fit and to validate: there are {len(train)} and {len(val)}"
        raise UserError(what, where=", ".join(names), next_step="give more rows")
    if like.exclusive:
        for name, count in zip(names, train.quality.sum(0), strict=True):
            if not count:
                step = "leave it out, or prepare its rows"
                raise UserError("A model has no training rows", where=name, next_step=step)


def _fits(
    kind: RouterKind, base: dict[str, Array], like: RouterRecord
) -> Iterator[tuple[float | None, RouterRecord, dict[str, Array]]]:
    rows, outcomes, record = base["rows"], base["outcomes"], like.model_copy(update={"kind": kind})
    if kind == "centroid":
        yield None, record, {**base, "centroids": unit(outcomes.T @ rows)}
    elif kind == "knn":
        for k in NEIGHBOURS:
            if k <= rows.shape[0]:
                yield float(k), record.model_copy(update={"k": k}), base
    elif kind == "logreg":
        for strength in STRENGTHS:
            weights, bias = _regression(rows, outcomes, strength, like.exclusive)
            yield strength, record, {**base, "weights": weights, "bias": bias}
    else:
        yield None, record, base


def _regression(rows: Array, outcomes: Array, strength: float, exclusive: bool) -> tuple[Array, Array]:
    """Weights (features, models) and bias of a logistic regression: one for all models, or one for each."""
    from sklearn.linear_model import LogisticRegression

    if exclusive:
        model = LogisticRegression(C=strength, max_iter=2000).fit(rows, outcomes.argmax(1))
        weights, bias = model.coef_.T, model.intercept_
        if weights.shape[1] == 1:  # of two models: one column says how much likelier the second is
            weights, bias = np.hstack([-weights / 2, weights / 2]), np.array([-bias[0] / 2, bias[0] / 2])
        return weights.astype(np.float32), bias.astype(np.float32)
    columns = []
    for right in outcomes.T:
        labels = right >= 0.5
        if labels.all() or not labels.any():  # always or never right: nothing to learn
            share = np.clip(right.mean(), 1e-3, 1 - 1e-3)
            columns.append((np.zeros(rows.shape[1]), float(np.log(share / (1 - share)))))
            continue
        one = LogisticRegression(C=strength, max_iter=2000).fit(rows, labels)
        columns.append((one.coef_[0], float(one.intercept_[0])))
    weights, bias = np.stack([weights for weights, _ in columns], 1), np.array([bias for _, bias in columns])
    return weights.astype(np.float32), bias.astype(np.float32)


def log_loss(quality: Array, outcomes: Array, exclusive: bool) -> float:
    """Mean negative log likelihood of what happened."""
    expected = np.clip(quality, LEAST, 1 - LEAST)
    right = outcomes * np.log(expected)
    likelihood = right.sum(1) if exclusive else (right + (1 - outcomes) * np.log(1 - expected)).mean(1)
    return -float(likelihood.mean())


def _temperature(quality: Array, outcomes: Array, exclusive: bool) -> float:
    from scipy.optimize import minimize_scalar

    def loss(log: float) -> float:
        return log_loss(softened(quality, float(np.exp(log)), exclusive), outcomes, exclusive)

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
