"""What may be claimed of two systems, and in which numbers: the one rule of sentences, tables, pages and advice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tuneloop.core.stats.tests import p_words
from tuneloop.core.stats.tests import verdict as verdict_of
from tuneloop.evaluation.metrics.declared import lower_is_better, metric_of, title_of
from tuneloop.records.evaluation import Claim, Comparison, EvaluationManifest, Standing


def seen_from(name: str, pair: Comparison) -> Comparison:
    """The pair with `name` as `b`, and gains positive where b is better."""
    if pair.a == name:
        verdict = {"better": "worse", "worse": "better"}.get(pair.verdict, pair.verdict)
        turned = replace(_negated(pair), a=pair.b, b=pair.a, verdict=verdict)
        pair = replace(turned, only_a=pair.only_b, only_b=pair.only_a)
    return _negated(pair) if lower_is_better(pair.metric) else pair


def _negated(pair: Comparison) -> Comparison:
    turned = replace(pair, delta=-pair.delta, low=-pair.high, high=-pair.low, effect=-pair.effect)
    turned = replace(turned, low_holm=-pair.high_holm, high_holm=-pair.low_holm)
    return replace(turned, low_margin=-pair.high_margin, high_margin=-pair.low_margin)


def claim_of(pair: Comparison) -> Claim:
    """What a comparison shows of its b, as `seen_from` gives it: every sentence, table and page says it by this. It
    quotes the interval and the p-value that the verdict is by, corrected for what is read together."""
    low, high = pair.bounds
    p = pair.p if math.isnan(pair.p_holm) else pair.p_holm
    least, most = (low, high) if math.isnan(pair.low_margin) else (pair.low_margin, pair.high_margin)
    outcome = verdict_of(low, high, p)
    return Claim(pair.metric, outcome, pair.delta, low, high, p, pair.tests, least, most, pair.compared)


def claim_between(evaluation: EvaluationManifest, name: str, against: str, metric: str) -> tuple[Claim | None, str]:
    """What an `eval.json` shows of one system against another by a metric, and its verdict in words. By the metric that
    decides it is the verdict of the headline, which rests on the other headline metrics too."""
    of_both = (pair for pair in evaluation.comparisons if pair.metric == metric and {pair.a, pair.b} == {name, against})
    claim = next((claim_of(seen_from(name, pair)) for pair in of_both), None)
    part = evaluation.verdict
    standings = part.standings if part and part.metric == metric else []
    standing = next((s for s in standings if (s.name, s.against) == (name, against)), None)
    return claim, outcome_words(standing, metric) if standing else claim.outcome if claim else ""


def difference_in_words(name: str, pairs: Sequence[Comparison], metric: str) -> str:
    """ "it is better (+4.2 points, 95 % interval ...)" of the pair by a metric; empty where there is none."""
    pair = next((pair for pair in pairs if pair.metric == metric), None)
    if pair is None:
        return ""
    claim = claim_of(seen_from(name, pair))
    verdicts = {"better": "it is better", "worse": "it is worse"}
    return f"{verdicts.get(claim.outcome, 'not enough evidence of a difference')} ({amount(claim)}, {sure(claim)})"


def outcome_words(standing: Standing, metric: str) -> str:
    """The outcome, with the metrics that show a loss where the one that decides does not: "worse by macro-F1"."""
    if standing.outcome != "worse" or not standing.lost or metric in standing.lost:
        return standing.outcome
    return f"worse by {listed([title_of(name) for name in standing.lost])}"


def amount(claim: Claim) -> str:
    """ "+4.2 points"; positive is better."""
    return metric_of(claim.metric).change_in_words(claim.gain, signed=True)


def sure(claim: Claim, *, tests: bool = True) -> str:
    """ "95 % interval +1.0 to +7.4, p = 0.010, both corrected for 3 comparisons (Holm)"; positive is better."""
    corrected = f", both corrected for {claim.tests} comparisons (Holm)" if tests and claim.tests > 1 else ""
    if math.isnan(claim.low + claim.high):
        return f"no interval, {p_words(claim.p)}"
    low, high = (metric_of(claim.metric).change_in_words(x, signed=True, unit=False) for x in (claim.low, claim.high))
    return f"95 % interval {low} to {high}, {p_words(claim.p)}{corrected}"


def evidence(claim: Claim) -> str:
    """ "+4.2 points (95 % interval +1.0 to +7.4, p = 0.010)"."""
    return f"{amount(claim)} ({sure(claim, tests=False)})"


def listed(parts: list[str], word: str = "and") -> str:
    """ "a, b and c"."""
    return f" {word} ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
