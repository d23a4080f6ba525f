"""A router: from the features of a request to the expected quality of each model, and to one of them or none.

Its answers are judged by quality against cost, next to each model alone and the best choice for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_bytes
from tuneloop.core.foreign import load_safetensors
from tuneloop.core.stats.intervals import auroc
from tuneloop.core.stats.tests import wilson_interval
from tuneloop.records.merge import Share
from tuneloop.records.record import read_record, write_record
from tuneloop.records.router import FrontierPoint, RouterCandidate, RouterFigures, RouterKind, RouterRecord, SingleModel

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

    if not (folder / RouterRecord.file).is_file():
        raise UserError("There is no fitted router here", where=str(folder), next_step="tuneloop route fit first")
    record = read_record(RouterRecord, folder)
    try:
        return Router(record, load_safetensors(folder / NUMBERS, "np"))
    except (OSError, ValueError, SafetensorError) as error:
        message = f"The router's numbers can't be read: {error}"
        raise UserError(message, where=str(folder / NUMBERS), next_step=RouterRecord.again) from None


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
        message = f"A router needs rows to fit and to validate: there are {len(train)} and {len(val)}"
        raise UserError(message, where=", ".join(names), next_step="give more rows")
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
        regression = LogisticRegression(C=strength, max_iter=2000).fit(rows, labels)
        columns.append((regression.coef_[0], float(regression.intercept_[0])))
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


PRICES = 60  # points of a frontier
RESAMPLES, SEED = 500, 0
BINS = 10
SURE = 0.975  # share of resamples in which the best model has to be better than the cheapest


def judge_router(router: Router, rows: Outcomes, outside: Array | None = None) -> RouterFigures:
    """What a router does on rows that it has not seen, and on requests of no model (`outside`, their features)."""
    record, picks = router.record, router.choose(rows.features)
    expected = router.quality(rows.features)
    costs = np.array([route.cost for route in record.routes])
    routed, places = picks != NONE, np.maximum(picks, 0)
    worth = np.where(routed, np.take_along_axis(rows.quality, places[:, None], 1)[:, 0], 0.0)
    stated = np.take_along_axis(expected, places[:, None], 1)[:, 0]
    low, high = mean_interval(worth)
    more: dict[str, Any] = {}
    if record.exclusive:
        task = rows.quality.argmax(1)
        hits = {name: picks[task == i] == i for i, name in enumerate(router.names)}
        more["recall"] = {name: float(right.mean()) for name, right in hits.items() if len(right)}
    if outside is not None and len(outside):
        near, far = router.similarity(rows.features), router.similarity(outside)
        caught = float((router.choose(outside) == NONE).mean())
        more |= {"outside": len(outside), "caught": caught, "auroc": auroc(near, far)}
    if len(set(costs.tolist())) > 1:
        more["frontier"], more["gap_recovered"] = frontier(expected, rows.quality, costs)
    return RouterFigures(
        n=len(rows),
        quality=Share(value=float(worth.mean()), low=low, high=high),
        cost=float(costs[places][routed].mean()) if routed.any() else 0.0,
        ece=calibration_error(stated[routed], worth[routed]),
        kept=float(routed.mean()),
        singles=singles(rows.quality, costs, router.names),
        **more,
    )


def singles(quality: Array, costs: Array, names: Sequence[str]) -> list[SingleModel]:
    """Each model alone, and the oracle: the cheapest of the best models for each row."""
    best = quality.max(1)
    cheapest = np.where(quality >= best[:, None], costs, np.inf).min(1)
    means = zip((*names, "oracle"), (*costs, cheapest.mean()), (*quality.mean(0), best.mean()), strict=True)
    return [SingleModel(name=name, cost=float(cost), quality=float(value)) for name, cost, value in means]


def frontier(expected: Array, quality: Array, costs: Array) -> tuple[list[FrontierPoint], Share | None]:
    """Mean cost and quality for rising prices, and the share of the gap recovered with a bootstrap interval over rows.

    `expected` are outcomes (rows, models), `quality` real ones, `costs` those of each model.
    """
    prices = prices_of(expected, costs)
    picks = np.stack([(expected - price * costs).argmax(1) for price in prices])  # (prices, rows)
    worth, cost = np.take_along_axis(quality[None], picks[..., None], 2)[..., 0], costs[picks]
    corners: list[FrontierPoint] = []
    for price, c, w in zip(prices.tolist(), cost.mean(1).tolist(), worth.mean(1).tolist(), strict=True):
        if not corners or (c, w) != (corners[-1].cost, corners[-1].quality):
            corners.append(FrontierPoint(price=price, cost=c, quality=w))

    def of(rows: Array) -> float | None:
        return gap_recovered(cost[:, rows].mean(1), worth[:, rows].mean(1), costs, quality[rows].mean(0))

    return corners, gap_with_interval(of, len(quality))


def gap_with_interval(of: Callable[[Array], float | None], rows: int) -> Share | None:
    """The share of the gap that is recovered (`of` some rows, by their places), with a bootstrap interval over `rows`.

    None where it is not certain that there is a gap: a share of next to nothing says nothing.
    """
    value = of(np.arange(rows))
    if value is None:
        return None
    rng = np.random.default_rng(SEED)
    draws = [again for _ in range(RESAMPLES) if (again := of(rng.integers(0, rows, rows))) is not None]
    if len(draws) < SURE * RESAMPLES:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return Share(value=value, low=float(low), high=float(high))


def prices_of(expected: Array, costs: Array) -> Array:
    """Prices at which choices change: quantiles of the exchange rates between two models, from none to all."""
    apart = costs[:, None] - costs[None]
    i, j = np.nonzero(apart > 0)
    rates = (expected[:, i] - expected[:, j]) / apart[i, j]
    inner = np.quantile(rates, np.linspace(0, 1, PRICES)) if rates.size else np.array([])
    above = [inner.max() * (1 + 1e-6) + 1e-9] if inner.size else []
    return np.unique(np.maximum(np.concatenate([[0.0], inner, above]), 0.0))


def gap_recovered(cost: Array, worth: Array, costs: Array, alone: Array) -> float | None:
    """Mean over all costs between the cheapest and the best model of (quality - cheapest's) / (best's - cheapest's).

    It is RouteLLM's average performance gap recovered (Ong et al. 2024, arXiv 2406.18665) with cost in place of calls.

    `cost`, `worth`: means of a frontier's points. `costs`, `alone`: of each model alone. Returns None where the best
    model is not better than the cheapest one.
    """
    cheap, best = int(costs.argmin()), int(alone.argmax())
    if alone[best] <= alone[cheap] or costs[best] <= costs[cheap]:
        return None
    x = np.concatenate([[costs[cheap]], cost, [costs[best]]])
    y = np.concatenate([[alone[cheap]], worth, [alone[best]]])
    order = np.lexsort((y, x))
    grid = np.linspace(costs[cheap], costs[best], 201)
    curve = np.interp(grid, x[order], y[order])
    return float(((curve - alone[cheap]) / (alone[best] - alone[cheap])).mean())


def price_for(expected: Array, costs: Array, most: float) -> float:
    """The least price of cost at which the mean cost of an answer is at most `most`."""
    for price in prices_of(expected, costs):
        if costs[(expected - price * costs).argmax(1)].mean() <= most:
            return float(price)
    return float("inf")


def calibration_error(stated: Array, worth: Array) -> float:
    """Expected calibration error: the gap between stated and real quality in equal bins, weighted by their rows."""
    if not len(stated):
        return float("nan")
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    gaps = [abs(stated[bins == b].mean() - worth[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist())]
    return float(sum(gaps))


def mean_interval(worth: Array) -> tuple[float, float]:
    """Wilson's interval for rights and wrongs, else the bootstrap's."""
    if set(np.unique(worth).tolist()) <= {0.0, 1.0}:
        return wilson_interval(float(worth.sum()), len(worth))
    rng = np.random.default_rng(SEED)
    means = worth[rng.integers(0, len(worth), (RESAMPLES, len(worth)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
