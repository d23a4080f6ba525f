"""A router fitted to what people said of routed answers, where some requests went to a model by chance.

Of each request one model's answer is known, and with which chance that model was chosen. Weights of one over the chance make the
answers of each model stand for all requests (Horvitz and Thompson 1952); divided by the sum of the weights, the estimate of what
another router would have been worth varies less (Swaminathan and Joachims 2015, self-normalised).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuneloop.combine.route_fit import STRENGTHS
from tuneloop.combine.router import LEAST, Array, Router, raw_quality, softened
from tuneloop.core.errors import UserError
from tuneloop.records.merge import Share
from tuneloop.records.router import RouterCandidate, RouterFigures, RouterRecord, SingleModel

if TYPE_CHECKING:
    from collections.abc import Iterator


FEWEST = 20  # answers of each model that are needed
LARGEST = 50.0  # weight of a row: rarer choices count as if they were made once in so many
RESAMPLES, SEED = 500, 0


@dataclass(frozen=True)
class Logged:
    """Routed requests with what people said.

    Args:
        features: (rows, features).
        chosen: number of the model that answered (rows).
        chance: that it was chosen (rows), above 0.
        worth: of its answer, 0 to 1 (rows).
    """

    features: Array
    chosen: Array
    chance: Array
    worth: Array

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def weights(self) -> Array:
        """One over the chance, bounded."""
        found: Array = np.minimum(1.0 / self.chance, LARGEST)
        return found

    def part(self, which: Array) -> Logged:
        """Some of the rows."""
        return Logged(self.features[which], self.chosen[which], self.chance[which], self.worth[which])


def worth_of_choices(rows: Logged, picks: Array) -> float:
    """What the answers would have been worth, had these models been chosen (rows); NaN where none of them was."""
    weights = rows.weights * (picks == rows.chosen)
    total = float(weights.sum())
    return float((weights * rows.worth).sum()) / total if total else float("nan")


def fit_bandit(train: Logged, val: Logged, start: Router) -> Router:
    """The best router of some, by what it would have been worth on validation rows.

    Args:
        start: the router in use. Its models, price and features stay, and what it calls "none of these" does.

    Raises:
        UserError: a model with hardly an answer that people have rated.
    """
    like = start.record.model_copy(update={"exclusive": False})
    for number, route in enumerate(like.routes):
        if int((train.chosen == number).sum()) < FEWEST:
            raise UserError(
                f"People have rated {int((train.chosen == number).sum())} of its answers in the rows to fit on, and {FEWEST} are needed",
                where=route.name, next_step="fit the router in use with --explore 0.2, and wait for more feedback",
            )  # fmt: skip
    seen, looked_at = start.centred(train.features), start.centred(val.features)
    costs = like.price * np.array([route.cost for route in like.routes])
    found: list[tuple[RouterCandidate, Router]] = []
    for tuned, record, numbers in _fitted(train, seen, start.numbers, like):
        plain = raw_quality(record, numbers, looked_at)
        record = record.model_copy(update={"temperature": _temperature(plain, val)})
        sure = softened(plain, record.temperature, False)
        worth = worth_of_choices(val, (sure - costs).argmax(1))
        candidate = RouterCandidate(kind=record.kind, quality=worth, loss=_loss(sure, val), tuned=tuned)
        found.append((candidate, Router(record, numbers)))
    best = max(found, key=lambda one: (round(one[0].quality, 6), -one[0].loss))[1]
    each: dict[str, RouterCandidate] = {}
    for candidate, _ in found:
        known = each.get(candidate.kind)
        if known is None or (candidate.quality, -candidate.loss) > (known.quality, -known.loss):
            each[candidate.kind] = candidate
    return Router(best.record.model_copy(update={"candidates": list(each.values())}), best.numbers)


def judged_bandit(router: Router, rows: Logged) -> RouterFigures:
    """What a router would have been worth on rows that it was not fitted to, next to each model alone and the router in use."""
    costs = np.array([route.cost for route in router.record.routes])
    picks = (router.quality(rows.features) - router.record.price * costs).argmax(1)
    value = worth_of_choices(rows, picks)
    rng = np.random.default_rng(SEED)
    draws, before = [], []
    for _ in range(RESAMPLES):
        some = rng.integers(0, len(rows), len(rows))
        again = rows.part(some)
        draws.append(worth_of_choices(again, picks[some]))
        before.append(float(again.worth.mean()))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    one, other = np.quantile(before, [0.025, 0.975])
    singles = [
        SingleModel(name=name, cost=float(costs[i]), quality=worth_of_choices(rows, np.full(len(rows), i)))
        for i, name in enumerate(router.names)
    ]
    return RouterFigures(
        n=len(rows), quality=Share(value=value, low=float(low), high=float(high)), cost=float(costs[picks].mean()), singles=singles,
        in_use=Share(value=float(rows.worth.mean()), low=float(one), high=float(other)),
    )  # fmt: skip


def _fitted(
    train: Logged, seen: Array, numbers: dict[str, Array], like: RouterRecord
) -> Iterator[tuple[float | None, RouterRecord, dict[str, Array]]]:
    """The router that always says the same, and regressions of each model's worth, by what is tuned."""
    count = len(like.routes)
    alone = np.array([[worth_of_choices(train, np.full(len(train), i)) for i in range(count)]], dtype=np.float32)
    base = {"mean": numbers["mean"], "rows": numbers["rows"], "outcomes": alone}
    yield None, like.model_copy(update={"kind": "constant"}), base
    for strength in STRENGTHS:
        columns = [_regression(train.part(train.chosen == i), seen[train.chosen == i], strength) for i in range(count)]
        learned = {
            **base, "weights": np.stack([w for w, _ in columns], 1).astype(np.float32),
            "bias": np.array([b for _, b in columns], dtype=np.float32),
        }  # fmt: skip
        yield strength, like.model_copy(update={"kind": "logreg"}), learned


def _regression(rows: Logged, seen: Array, strength: float) -> tuple[Array, float]:
    """Weights and bias of a logistic regression of a model's worth; a worth between 0 and 1 counts as a part of each."""
    from sklearn.linear_model import LogisticRegression

    twice = np.concatenate([seen, seen])
    labels = np.repeat([1, 0], len(rows))
    weights = np.concatenate([rows.weights * rows.worth, rows.weights * (1 - rows.worth)])
    counts = weights > 0
    if len(set(labels[counts].tolist())) < 2:  # always right or always wrong: nothing to learn
        share = float(np.clip(rows.worth.mean(), 1e-3, 1 - 1e-3))
        return np.zeros(seen.shape[1]), float(np.log(share / (1 - share)))
    weights = weights[counts] / weights[counts].mean()
    one = LogisticRegression(C=strength, max_iter=2000).fit(twice[counts], labels[counts], sample_weight=weights)
    return one.coef_[0], float(one.intercept_[0])


def _loss(sure: Array, rows: Logged) -> float:
    """Mean negative log likelihood of what people said of the chosen models, weighted."""
    own = np.clip(sure[np.arange(len(rows)), rows.chosen], LEAST, 1 - LEAST)
    lost = -(rows.worth * np.log(own) + (1 - rows.worth) * np.log(1 - own))
    return float((rows.weights * lost).sum() / rows.weights.sum())


def _temperature(plain: Array, rows: Logged) -> float:
    """The temperature with the least loss."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: _loss(softened(plain, float(np.exp(log)), False), rows), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(found.x))
