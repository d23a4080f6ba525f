"""A router from requests to models: `router.json`, next to the numbers that it was fitted to (`router.safetensors`)."""

from __future__ import annotations

from typing import Literal

from tuneloop.records.merge import Share
from tuneloop.records.record import Number, Part, Record

RouterKind = Literal["constant", "centroid", "knn", "logreg"]
Features = Literal["static", "minilm", "words", "hidden"]


class RouteTarget(Part):
    """A model that requests may go to.

    Args:
        name: as `serve` and `predict` take it, or the model's name in a file of outcomes.
        cost: of an answer, in any unit that all share; 0: not known.
        dataset: the folder of its task's rows.
    """

    name: str
    cost: float = 0.0
    dataset: str = ""


class RouterCandidate(Part):
    """A kind of router that was tried: its quality and log loss on validation rows, and what was tuned (k, or C)."""

    kind: RouterKind
    quality: Number
    loss: Number
    tuned: float | None = None


class FrontierPoint(Part):
    """Mean cost and quality of an answer where quality - price * cost decides."""

    price: float
    cost: float
    quality: float


class SingleModel(Part):
    """Mean cost and quality of one model, or of the best one for each row (`oracle`)."""

    name: str
    cost: float
    quality: float


class RouterFigures(Part):
    """What a router does on rows that it has not seen.

    Args:
        n: rows.
        quality: share of rows that came to the right model, or the mean outcome of the chosen models.
        cost: mean cost of an answer.
        ece: mean gap between the stated probability of the chosen model and its outcome, in ten bins.
        kept: share of these rows that are not sent away as "none of these".
        outside: rows that belong to no model; `caught`: the share of them that is sent away; `auroc`: how well the two
            kinds of rows are distinguished.
        recall: of each model's rows, the share that came to it.
        singles: each model alone, and the best one for each row; `frontier`: for rising prices of cost.
        gap_recovered: mean share of the gap between the cheapest and the best single model that the frontier reaches,
            over all costs between theirs. A coin that chooses between the two has 0.5. None: no significant gap.
        foreign: share of all requests, those from outside included, in another language than the fitted rows.
    """

    n: int
    quality: Share
    foreign: float = 0.0
    cost: float = 0.0
    ece: Number = 0.0
    kept: float = 1.0
    outside: int = 0
    caught: Number | None = None
    auroc: Number | None = None
    recall: dict[str, float] = {}
    singles: list[SingleModel] = []
    frontier: list[FrontierPoint] = []
    gap_recovered: Share | None = None


class RouterRecord(Record, noun="a router", file="router.json", again="fit the router again"):
    """`router.json`: who answers which request.

    Args:
        kind: how it decides; `features`: what of a text it sees; `base`: whose hidden states, where it sees those.
        language: of the rows that it was fitted to, as `en`; empty: not known.
        exclusive: a row belongs to one model (tasks). Otherwise each model has an outcome for each row.
        k: neighbours. temperature: that the probabilities are softened with, from validation rows.
        threshold: least similarity to the fitted rows; below it the answer is "none of these". None: it never is.
        price: of a unit of cost, in units of quality.
        candidates: what was tried on validation rows; `results`: those of the chosen one on test rows.
    """

    kind: RouterKind
    features: Features
    base: str = ""
    language: str = ""
    exclusive: bool
    routes: list[RouteTarget]
    k: int = 0
    temperature: float = 1.0
    threshold: float | None = None
    price: float = 0.0
    candidates: list[RouterCandidate] = []
    results: RouterFigures | None = None
    source: str = ""


class CascadePoint(Part):
    """Mean cost and quality of an answer where the large model takes what is below a confidence."""

    threshold: Number
    cost: float
    quality: float


class CascadeRecord(Record, noun="a cascade", file="cascade.json", again="tuneloop route cascade again"):
    """`cascade.json`: a small model answers first, a larger one where it is unsure.

    Args:
        small, large: the evaluations that it was made of.
        costs: of an answer of each. The small model is always paid.
        threshold: confidence below which the large model answers, from half of the rows; results: of the other half.
        metric: by which answers are judged; `n`: rows.
        quality, cost: means of the cascade's answers; `asked_large`: share of rows that the large model answers.
        over_large: quality less the large model's, with its paired interval.
        singles: each model alone, and the best one for each row (`oracle`); `frontier`: for rising thresholds.
        gap_recovered: see `RouterFigures`.
    """

    small: str
    large: str
    costs: tuple[float, float]
    threshold: float
    metric: str
    n: int
    quality: Share
    cost: float
    asked_large: float
    over_large: Share
    singles: list[SingleModel] = []
    frontier: list[CascadePoint] = []
    gap_recovered: Share | None = None
