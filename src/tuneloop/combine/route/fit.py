"""Fits routers of several kinds and takes the one that does best on validation rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tuneloop.combine.route.router import LEAST, Array, Router, nearness, raw_quality, softened, unit
from tuneloop.core.errors import UserError
from tuneloop.records.router import RouterCandidate, RouterKind, RouterRecord

NEIGHBOURS = (1, 3, 5, 10, 20, 40, 80)
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of the regression: larger trusts the rows more
SENT_AWAY = 0.05  # share of validation rows that are taken for none of these


@dataclass(frozen=True)
class Outcomes:
    """Rows to fit or to judge a router by.

    Args:
        features: (rows, features).
        quality: (rows, models): what each model's answer is worth, 0 to 1; where a row belongs to one model, 1 for that one.
    """

    features: Array
    quality: Array

    def __len__(self) -> int:
        return int(self.features.shape[0])


def fit_router(
    train: Outcomes, val: Outcomes, like: RouterRecord, kinds: Sequence[RouterKind] = ("centroid", "knn", "logreg")
) -> Router:
    """The best router of some kinds, calibrated.

    The best has the highest mean outcome of its choices on validation rows; of equals, the lowest log loss.

    Args:
        train, val: rows.
        like: routes, features, price, and whether a row belongs to one model.
        kinds: `centroid` only where a row belongs to one model.

    Raises:
        UserError: fewer than two models, a model without rows, no validation rows.
    """
    _check(train, val, like)
    mean = train.features.mean(0)
    rows, seen = unit(train.features - mean), unit(val.features - mean)
    found: list[tuple[RouterCandidate, Router]] = []
    base = {"mean": mean.astype(np.float32), "rows": rows, "outcomes": train.quality.astype(np.float32)}
    wanted = [kind for kind in kinds if like.exclusive or kind != "centroid"]
    for kind in ("constant", *wanted):
        for tuned, record, numbers in _fitted(kind, base, like):
            plain = raw_quality(record, numbers, seen)
            record = record.model_copy(update={"temperature": _temperature(plain, val.quality, like.exclusive)})
            sure = softened(plain, record.temperature, like.exclusive)
            picks = (sure - like.price * np.array([route.cost for route in like.routes])).argmax(1)
            worth = float(np.take_along_axis(val.quality, picks[:, None], 1).mean())
            found.append(
                (RouterCandidate(kind=kind, quality=worth, loss=log_loss(sure, val.quality, like.exclusive), tuned=tuned), Router(record, numbers))
            )  # fmt: skip
    best = max(found, key=lambda one: (round(one[0].quality, 6), -one[0].loss))[1]
    each: dict[str, RouterCandidate] = {}
    for candidate, _ in found:  # the best setting of each kind
        known = each.get(candidate.kind)
        if known is None or (candidate.quality, -candidate.loss) > (known.quality, -known.loss):
            each[candidate.kind] = candidate
    threshold = float(np.quantile(nearness(seen, rows), SENT_AWAY)) if like.exclusive else None
    record = best.record.model_copy(update={"threshold": threshold, "candidates": list(each.values())})
    return Router(record, best.numbers)


def _check(train: Outcomes, val: Outcomes, like: RouterRecord) -> None:
    names = [route.name for route in like.routes]
    if len(names) < 2:
        raise UserError("A router needs two models or more", where=", ".join(names), next_step="name another one")
    if len(train) < 2 or not len(val):
        raise UserError(
            f"A router needs rows to fit and to validate: there are {len(train)} and {len(val)}", where=", ".join(names),
            next_step="give more rows",
        )  # fmt: skip
    if like.exclusive:
        for name, count in zip(names, train.quality.sum(0), strict=True):
            if not count:
                raise UserError(
                    "A model has no training rows", where=name, next_step="leave it out, or prepare its rows"
                )


def _fitted(
    kind: RouterKind, base: dict[str, Array], like: RouterRecord
) -> Iterator[tuple[float | None, RouterRecord, dict[str, Array]]]:
    """Routers of one kind, by what is tuned."""
    rows, outcomes = base["rows"], base["outcomes"]
    if kind == "centroid":
        sums = outcomes.T @ rows
        yield None, like.model_copy(update={"kind": kind}), {**base, "centroids": unit(sums)}
    elif kind == "knn":
        for k in NEIGHBOURS:
            if k <= rows.shape[0]:
                yield float(k), like.model_copy(update={"kind": kind, "k": k}), base
    elif kind == "logreg":
        for strength in STRENGTHS:
            weights, bias = _regression(rows, outcomes, strength, like.exclusive)
            yield strength, like.model_copy(update={"kind": kind}), {**base, "weights": weights, "bias": bias}
    else:
        yield None, like.model_copy(update={"kind": kind}), base


def _regression(rows: Array, outcomes: Array, strength: float, exclusive: bool) -> tuple[Array, Array]:
    """Weights (features, models) and bias of a logistic regression: one for all models, or one for each where outcomes are apart."""
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
    return (
        np.stack([weights for weights, _ in columns], 1).astype(np.float32),
        np.array([bias for _, bias in columns], dtype=np.float32),
    )


def log_loss(quality: Array, outcomes: Array, exclusive: bool) -> float:
    """Mean negative log likelihood of what happened."""
    sure = np.clip(quality, LEAST, 1 - LEAST)
    right = outcomes * np.log(sure)
    found = right.sum(1) if exclusive else (right + (1 - outcomes) * np.log(1 - sure)).mean(1)
    return -float(found.mean())


def _temperature(quality: Array, outcomes: Array, exclusive: bool) -> float:
    """The temperature with the least log loss on validation rows."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: log_loss(softened(quality, float(np.exp(log)), exclusive), outcomes, exclusive),
        bounds=(-3.0, 3.0),
        method="bounded",
    )
    return float(np.exp(found.x))
