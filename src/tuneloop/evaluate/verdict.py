"""The verdict on a contender: how it stands against each alternative, and so against all of them.

"Better" has to be earned. It needs the metric that decides, no sure loss on another headline metric, and this against every
alternative: the prompts, the cheap classifiers, and always answering the most frequent label. So the weakest standing is the
verdict. Requiring all of several tests to pass needs no correction for their number (an intersection-union test: Berger 1982);
that each pair is also adjusted for the others (`adjusted`) makes it stricter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tuneloop.core.stats import NOT_ENOUGH
from tuneloop.evaluate.classical import CLASSICAL, MAJORITY
from tuneloop.evaluate.evaluate import Comparison, Evaluation, rows_needed
from tuneloop.records.evaluation import lower_is_better

Outcome = Literal["better", "promising", "not enough evidence", "mixed", "worse", "not compared"]
FROM_WORST: tuple[Outcome, ...] = ("worse", "mixed", NOT_ENOUGH, "promising", "better")
# From here to 0.05 a gain is promising, not proven: such a p-value speaks at most 14 to 1 for a difference (see `best_odds`).
# Source: Benjamin et al. 2018, "Redefine statistical significance", Nature Human Behaviour 2.
PROVEN = 0.005

Kind = Literal["prompt", "classical", "constant"]


def kind_of(name: str) -> Kind:
    """What kind of alternative a contender is, by its name; whatever is no classifier and no constant answer is a way of prompting."""
    return "constant" if name == MAJORITY else "classical" if name in CLASSICAL else "prompt"


@dataclass(frozen=True)
class Standing:
    """How one contender stands against another.

    Args:
        name, against: the two.
        kind: of `against`.
        outcome: `better`: surely better by the metric that decides, and surely worse by no headline metric; `promising`: the
            same with a p-value of 0.005 or more; `mixed`: surely better by some headline metrics and surely worse by others;
            `worse`: surely worse by some and better by none; else `not enough evidence`.
        gain, low, high: by the metric that decides, with its 95 % interval; positive: `name` is better, whether more or less of
            the metric is better.
        p, p_holm, only_name, only_against, apart: see `Comparison`.
        rows_needed: rows in all that settle it: with 80 % power they show a difference as large as this one with p below 0.005.
        gained, lost: headline metrics by which it is surely better or worse, with the gain in each.
    """

    name: str
    against: str
    kind: Kind
    outcome: Outcome
    gain: float
    low: float
    high: float
    p: float
    p_holm: float
    rows_needed: int | None
    only_name: int | None
    only_against: int | None
    apart: int | None
    gained: dict[str, float]
    lost: dict[str, float]


@dataclass(frozen=True)
class Verdict:
    """What may be said of a contender.

    Args:
        name: the contender.
        outcome: the weakest of its standings; `not compared` without any.
        against: the alternative that this is about: of those that it stands weakest against, the best one.
        metric: the metric that decides.
        why: why this one does, where that isn't plain; else empty.
        never: labels of the rows that it never gives, the most frequent first; `only`: the one that it gives to every row.
        standings: against each alternative, the best one first; where others are compared with the same contender, theirs follow.
    """

    name: str
    outcome: Outcome
    against: str | None
    metric: str
    why: str
    never: list[str]
    only: str | None
    standings: list[Standing]

    @property
    def own(self) -> list[Standing]:
        """The contender's own standings."""
        return [s for s in self.standings if s.name == self.name]

    @property
    def weakest(self) -> Standing | None:
        """The standing that the outcome is about."""
        return next((s for s in self.own if s.against == self.against), None)

    def best_of(self, kind: Kind) -> Standing | None:
        """Against the best alternative of a kind."""
        return next((s for s in self.own if s.kind == kind), None)


def decide(evaluations: Mapping[str, Evaluation], comparisons: Sequence[Comparison], name: str) -> Verdict:
    """The verdict on a contender, and on others that are compared with the same one.

    Args:
        evaluations: all contenders by name.
        comparisons: pairs, adjusted together; in either direction where `name` is one of the two, else of the first (a) with
            another one (b).
        name: the contender.
    """
    own = evaluations[name]
    pairs: dict[tuple[str, str], dict[str, Comparison]] = {}
    for comparison in comparisons:
        pair = seen_from(name, comparison)
        pairs.setdefault((pair.b, pair.a), {})[pair.metric] = pair
    standings = [standing(found, own) for found in pairs.values() if own.primary in found]

    def value(s: Standing) -> float:
        other = evaluations[s.against].metrics.get(own.primary) if s.against in evaluations else None
        return -math.inf if other is None else -other.value if lower_is_better(own.primary) else other.value

    standings.sort(key=lambda s: (s.name != name, -value(s)))
    mine = [s for s in standings if s.name == name]
    weakest = min(mine, key=lambda s: FROM_WORST.index(s.outcome), default=None)
    used = own.deciding_labels
    return Verdict(
        name=name,
        outcome=weakest.outcome if weakest else "not compared",
        against=weakest.against if weakest else None,
        metric=own.primary,
        why=_why(own),
        never=used.never if used else [],
        only=used.only if used else None,
        standings=standings,
    )


def seen_from(name: str, pair: Comparison) -> Comparison:
    """The pair with `name` as `b`, and gains positive where b is better."""
    if pair.a == name:
        turned = {"better": "worse", "worse": "better"}.get(pair.verdict, pair.verdict)
        pair = replace(
            pair, a=pair.b, b=pair.a, delta=-pair.delta, low=-pair.high, high=-pair.low, verdict=turned, effect=-pair.effect,
            only_a=pair.only_b, only_b=pair.only_a,
        )  # fmt: skip
    if lower_is_better(pair.metric):
        pair = replace(pair, delta=-pair.delta, low=-pair.high, high=-pair.low, effect=-pair.effect)
    return pair


def standing(pairs: Mapping[str, Comparison], own: Evaluation) -> Standing:
    """How b stands against a.

    Args:
        pairs: metric -> the pair, gains positive where b is better; with the metric that decides.
        own: what tells the metric that decides and the headline metrics.
    """
    first = pairs[own.primary]
    headline = [pairs[metric] for metric in own.headline if metric in pairs]
    gained = {pair.metric: pair.delta for pair in headline if pair.verdict == "better"}
    lost = {pair.metric: pair.delta for pair in headline if pair.verdict == "worse"}
    outcome: Outcome = NOT_ENOUGH
    if gained and lost:
        outcome = "mixed"
    elif lost:
        outcome = "worse"
    elif own.primary in gained:
        outcome = "better" if first.p < PROVEN else "promising"
    return Standing(
        name=first.b,
        against=first.a,
        kind=kind_of(first.a),
        outcome=outcome,
        gain=first.delta,
        low=first.low,
        high=first.high,
        p=first.p,
        p_holm=first.p_holm,
        rows_needed=rows_needed(first, own.n, PROVEN),
        only_name=first.only_b,
        only_against=first.only_a,
        apart=first.apart,
        gained=gained,
        lost=lost,
    )


def _why(own: Evaluation) -> str:
    used, metric = own.deciding_labels, own.primary.rpartition(".")[2]
    if own.primary_named:
        return "you named it (evaluate.primary)"
    if metric == "macro_f1" and used is not None:
        label, share = used.most_frequent
        return f'labels are uneven ("{label}" is {100 * share:.0f} % of the rows), so accuracy would hide what becomes of the rare ones'
    return ""


def best_odds(p: float) -> float:
    """How much a p-value can speak for a difference at the very best: the largest Bayes factor, 1 / (-e p ln p); 1 from p = 1/e on.

    Source: Sellke, Bayarri & Berger 2001, "Calibration of p values for testing precise null hypotheses".
    """
    return 1.0 if math.isnan(p) or p >= 1 / math.e else -1 / (math.e * p * math.log(p)) if p > 0 else math.inf
