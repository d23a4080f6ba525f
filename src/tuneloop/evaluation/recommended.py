"""The one recommendation that report, terminal, pages and `advise` give: the cheapest that is good enough."""

from __future__ import annotations

import math

from tuneloop.evaluation.metrics.declared import lower_is_better
from tuneloop.records.evaluation import EvaluationManifest, Standing


def recommended_system(evaluation: EvaluationManifest) -> str:
    """The cheapest of the systems that none is proven to be better than, as far as they were compared; else the best.

    Where the evaluation's own system is proven to be better than all others it is that one. The others were compared
    with that one only; of them those are left out whose interval is wholly below that of the best. The metric that
    decides says which is better, also where another headline metric says the opposite. Constant answers are never
    recommended.
    """
    verdict = evaluation.verdict
    if verdict is None:
        return ""
    candidates = [verdict.name]
    for standing in verdict.standings:
        if standing.kind != "constant" and _deciding(standing) not in ("better", "promising"):
            candidates.append(standing.against)
    if any(_deciding(standing) == "worse" for standing in verdict.standings):
        candidates.remove(verdict.name)
    sign = -1 if lower_is_better(verdict.metric) else 1
    systems = {verdict.name: evaluation.metrics, **evaluation.baselines}
    ends = {
        name: sorted((sign * score.low, sign * score.high))
        for name in candidates
        if (score := systems.get(name, {}).get(verdict.metric)) is not None and math.isfinite(score.low + score.high)
    }
    floor = max((low for low, _ in ends.values()), default=-math.inf)
    candidates = [name for name in candidates if name not in ends or ends[name][1] >= floor]
    prices = {entry.name: entry.usd_per_1000 for entry in evaluation.leaderboard}

    def price(name: str) -> tuple[float, int]:
        usd = prices.get(name)
        return (math.inf if usd is None else usd, candidates.index(name))

    return min(candidates, key=price, default="")


def _deciding(standing: Standing) -> str:
    """How a system stands against an alternative by the metric that decides."""
    mixed = standing.outcome == "mixed" and standing.claims
    return standing.claims[0].outcome if mixed else standing.outcome
