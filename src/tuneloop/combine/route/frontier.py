"""Quality against cost of routed answers, next to each model alone and the best choice for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneloop.combine.route.router import NONE, Array, Outcomes, Router
from tuneloop.core.stats.intervals import auroc
from tuneloop.core.stats.tests import wilson_interval
from tuneloop.records.merge import Share
from tuneloop.records.router import FrontierPoint, RouterFigures, SingleModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def singles(quality: Array, costs: NDArray[np.float64], names: Sequence[str]) -> list[SingleModel]:
    """Each model alone, and the oracle: the cheapest of the best models for each row."""
    best = quality.max(1)
    cheapest = np.where(quality >= best[:, None], costs, np.inf).min(1)
    means = zip((*names, "oracle"), (*costs, cheapest.mean()), (*quality.mean(0), best.mean()), strict=True)
    return [SingleModel(name=name, cost=float(cost), quality=float(value)) for name, cost, value in means]


def frontier(expected: Array, quality: Array, costs: NDArray[np.float64]) -> tuple[list[FrontierPoint], Share | None]:
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


def prices_of(expected: Array, costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices at which choices change: quantiles of the exchange rates between two models, from none to all."""
    apart = costs[:, None] - costs[None]
    i, j = np.nonzero(apart > 0)
    rates = (expected[:, i] - expected[:, j]) / apart[i, j]
    inner = np.quantile(rates, np.linspace(0, 1, PRICES)) if rates.size else np.array([])
    above = [inner.max() * (1 + 1e-6) + 1e-9] if inner.size else []
    return np.unique(np.maximum(np.concatenate([[0.0], inner, above]), 0.0))


def gap_recovered(
    cost: NDArray[np.float64], worth: NDArray[np.float64], costs: NDArray[np.float64], alone: NDArray[np.float64]
) -> float | None:
    """Mean over all costs between the cheapest and the best model of (quality - cheapest's) / (best's - cheapest's).

    It is RouteLLM's average performance gap recovered (Ong et al. 2024, arXiv 2406.18665) with cost in place of calls.

    `cost`, `worth`: means of a frontier's points. costs, alone: of each model alone. Returns none where the best model
    is not better than the cheapest one.
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


def price_for(expected: Array, costs: NDArray[np.float64], most: float) -> float:
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
