"""A line for CI: whether what is compared is worse, by the claims that the verdict rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneloop.core.units import counted
from tuneloop.evaluation.gate.suite import Status
from tuneloop.evaluation.metrics.claims import evidence
from tuneloop.evaluation.metrics.declared import metric_of, title_of
from tuneloop.records.evaluation import Claim, EvaluationManifest, Standing


@dataclass(frozen=True)
class CiVerdict:
    """Whether a comparison passes, and why in one line. `margin`: the loss that is accepted, in points."""

    status: Status
    message: str
    margin: float


def not_worse(evaluation: EvaluationManifest, margin: float = 0.0) -> CiVerdict:
    """Whether what is compared is shown not to be worse than the first by more than a margin.

    `fail`: by any headline metric a loss beyond the margin is shown. `pass`: by the deciding metric one is excluded.
    Both by 95 % intervals, corrected for all that is compared, a loss being excluded by the one that holds on few rows,
    too; else `inconclusive`. `margin`: in points
    (hundredths) of metrics up to 1, in the unit of others.
    """
    standings = evaluation.verdict.standings if evaluation.verdict else []
    # A constant answer is there to keep "better" honest; what must not be worse was named.
    states = [_state(standing, margin, evaluation.n) for standing in standings if standing.kind != "constant"]
    order: tuple[Status, ...] = ("fail", "inconclusive", "pass")
    status: Status = min((state for state, _ in states), key=order.index, default="inconclusive")
    lines = [sentence for state, sentence in states if state == status] or ["nothing was compared"]
    return CiVerdict(status, f"{status}: {'; '.join(lines)}", margin)


def _state(standing: Standing, margin: float, rows: int) -> tuple[Status, str]:
    head = f"{standing.name} against {standing.against}"
    for claim in standing.claims:
        if claim.high < -_margin(claim, margin) and claim.high < 0:
            items = counted(rows if claim.compared is None else claim.compared, "item")
            return "fail", f"{head} is worse: {title_of(claim.metric)} {evidence(claim)} on {items}"
    decides = standing.claims[0]
    items = counted(rows if decides.compared is None else decides.compared, "item")
    summary = f"{title_of(decides.metric)} {evidence(decides)} on {items}"
    least, tolerated = decides.low if math.isnan(decides.least) else decides.least, -_margin(decides, margin)
    if least > tolerated:
        beyond = f" by more than {margin:g} points" if margin else ""
        return "pass", f"{head} is not worse{beyond}: {summary}"
    if decides.low > tolerated:  # as seen; rows that are few, mostly equal or lack a score leave more open
        loss = title_of(decides.metric)
        points = 100 if metric_of(decides.metric).scale in ("share", "0..1") else 1
        unseen = "few items, or items that one side lacks, leave open a loss"
        return (
            "inconclusive",
            f"{head} may be worse or not: {summary}; {unseen} of {loss} of up to {-points * least:.1f}",
        )
    settles = f"; about {standing.rows_needed:,} items would settle it" if standing.rows_needed else ""
    return "inconclusive", f"{head} may be worse or not: {summary}{settles}"


def _margin(claim: Claim, margin: float) -> float:
    return margin / 100 if metric_of(claim.metric).scale in ("share", "0..1") else margin
