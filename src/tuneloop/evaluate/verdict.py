"""The verdict on a system: how it stands against each alternative, and so against all of them.

"Better" has to be earned. It needs the metric that decides, no sure loss on another headline metric, and this against every
alternative: the prompts, the cheap classifiers, and always answering the most frequent label. So the weakest standing is the
verdict. Requiring all of several tests to pass needs no correction for their number (an intersection-union test: Berger 1982);
that each pair is also adjusted for the others (`adjusted`) makes it stricter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tuneloop.core.stats import NOT_ENOUGH
from tuneloop.evaluate.classical import CLASSICAL, MAJORITY
from tuneloop.evaluate.compare import rows_needed
from tuneloop.evaluate.evaluate import Evaluation
from tuneloop.evaluate.metrics import lower_is_better
from tuneloop.evaluate.metrics.claims import claim_of, seen_from
from tuneloop.evaluate.primary import PARTS
from tuneloop.records.evaluation import BaselineKind, Comparison, Outcome, Standing, Verdict

FROM_WORST: tuple[Outcome, ...] = ("worse", "mixed", NOT_ENOUGH, "promising", "better")
# From here to 0.05 a gain is promising, not proven: such a p-value speaks at most 14 to 1 for a difference (see `best_odds`).
# Source: Benjamin et al. 2018, "Redefine statistical significance", Nature Human Behaviour 2.
PROVEN = 0.005


def kind_of(name: str) -> BaselineKind:
    """What kind of alternative a system is, by its name; whatever is no classifier and no constant answer is a way of prompting."""
    return "constant" if name == MAJORITY else "classical" if name in CLASSICAL else "prompt"


def decide(evaluations: Mapping[str, Evaluation], comparisons: Sequence[Comparison], name: str) -> Verdict:
    """The verdict on a system, and on others that are compared with the same one.

    Args:
        comparisons: pairs, adjusted together; in either direction where `name` is one of the two, else of the first (a) with
            another one (b).
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


def standing(pairs: Mapping[str, Comparison], own: Evaluation) -> Standing:
    """How b stands against a; `pairs`: metric -> the pair, gains positive where b is better, with the metric that decides."""
    first = pairs[own.primary]
    claims = [claim_of(pairs[metric]) for metric in own.headline if metric in pairs]
    shown_of = {claim.metric: claim.outcome for claim in claims}
    outcome: Outcome = NOT_ENOUGH
    if {"better", "worse"} <= set(shown_of.values()):
        outcome = "mixed"
    elif "worse" in shown_of.values():
        outcome = "worse"
    elif shown_of[own.primary] == "better":
        outcome = "better" if first.p < PROVEN else "promising"
    decides = claims[0]
    return Standing(
        name=first.b,
        against=first.a,
        kind=kind_of(first.a),
        outcome=outcome,
        gain=decides.gain,
        low=decides.low,
        high=decides.high,
        p=first.p,
        p_holm=decides.p,
        tests=decides.tests,
        detectable=first.detectable,
        rows_needed=rows_needed(first, own.n, PROVEN),
        only_name=first.only_b,
        only_against=first.only_a,
        apart=first.apart,
        claims=claims,
    )


def _why(own: Evaluation) -> str:
    used, metric = own.deciding_labels, own.primary.rpartition(".")[2]
    if own.config.primary is not None:
        return "you named it (evaluate.primary)"
    if own.primary == PARTS:
        return "no answer is right as a whole, so the share of right fields decides"
    if metric == "macro_f1" and used is not None:
        label, share = used.most_frequent
        return f'labels are uneven ("{label}" is {100 * share:.0f} % of the rows), so accuracy would hide what becomes of the rare ones'
    return ""


def best_odds(p: float) -> float:
    """How much a p-value can speak for a difference at the very best: the largest Bayes factor, 1 / (-e p ln p); 1 from p = 1/e on.

    Source: Sellke, Bayarri & Berger 2001, "Calibration of p values for testing precise null hypotheses".
    """
    return 1.0 if math.isnan(p) or p >= 1 / math.e else -1 / (math.e * p * math.log(p)) if p > 0 else math.inf
