"""The leaderboard: every system on one frozen test set, with its gain over the few-shot prompt and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.core.stats.intervals import NOT_ENOUGH
from tuneloop.evaluation.evaluate import ScoredAnswers
from tuneloop.evaluation.metrics.claims import amount, claim_of, seen_from, sure
from tuneloop.evaluation.metrics.declared import lower_is_better
from tuneloop.evaluation.paired import adjusted, compare
from tuneloop.evaluation.verdict import kind_of
from tuneloop.records.evaluation import Claim, Comparison, EntryKind, LeaderboardEntry


def usd_per_1000(costs: Mapping[str, Mapping[str, Any]], n: int) -> dict[str, float | None]:
    """Dollars of 1,000 requests, each read as a request on its own is.

    Measuring shares what prompts have in common (an instruction, examples), which single requests in production don't.
    Systems of one model therefore pay by token: the price is their dollars together over the tokens that were really
    computed, times the tokens of a request; those without `computed_tokens` (endpoints, classifiers) what they paid.

    `costs`: system -> `usd`, `prompt_tokens`, `tokens`, `computed_tokens`; `n`: requests.
    """
    computing = [cost for cost in costs.values() if cost.get("computed_tokens")]
    computed = sum(cost["computed_tokens"] for cost in computing)
    price = sum(cost.get("usd", 0.0) for cost in computing) / computed if computed else 0.0
    prices: dict[str, float | None] = {}
    for name, cost in costs.items():
        usd = price * (cost["prompt_tokens"] + cost["tokens"]) if cost.get("computed_tokens") else cost.get("usd")
        prices[name] = None if usd is None else 1000 * usd / n
    return prices


def leaderboard_of(
    evaluations: Mapping[str, ScoredAnswers],
    costs: Mapping[str, Mapping[str, Any]],
    *,
    tuned: Sequence[str] = (),
    comparisons: Sequence[Comparison] = (),
) -> list[LeaderboardEntry]:
    """The systems from the base model upwards. `costs`: see `usd_per_1000`, and `training_seconds`, `training_usd`;
    `tuned`: names; `comparisons`: those that are shown, adjusted together, which are not computed again here."""
    if not evaluations:  # baselines may be turned off
        return []
    first = next(iter(evaluations.values()))
    metric, n = first.primary, first.n
    kinds: dict[str, EntryKind] = {name: "tuned" if name in tuned else kind_of(name) for name in evaluations}
    prompts = [name for name, e in evaluations.items() if kinds[name] == "prompt" and metric in e.metrics]
    best, candidates = min if lower_is_better(metric) else max, [name for name in prompts if "few-shot" in name]
    before = best(candidates or prompts, key=lambda name: evaluations[name].metrics[metric].value, default=None)
    claims: dict[str, Claim] = {}
    if before:
        base, others = evaluations[before], {name: e for name, e in evaluations.items() if name != before}
        pairs = adjusted([c for n, e in others.items() for c in compare(before, base, n, e, only=[metric])], base)
        stated = [c for c in comparisons if c.metric == metric and before in (c.a, c.b)]
        for pair in [*pairs, *stated]:
            other = pair.b if pair.a == before else pair.a
            claims[other] = claim_of(seen_from(other, pair))
    prices = usd_per_1000({name: cost for name, cost in costs.items() if name in evaluations}, n)
    order: list[EntryKind] = ["constant", "prompt", "classical", "tuned"]
    entries = []
    for name, evaluation in sorted(evaluations.items(), key=lambda item: order.index(kinds[item[0]])):
        score, cost = evaluation.metrics.get(metric), costs.get(name, {})
        if score is None:
            continue
        claim = claims.get(name)
        gain = (claim.gain, claim.low, claim.high, claim.p, claim.outcome) if claim else (None, None, None, None, "")
        numbers: list[Any] = [score.value, score.low, score.high, *gain]
        numbers += [float(cost.get("training_seconds", 0.0)), float(cost.get("training_usd", 0.0))]
        numbers += [cost.get("prompt_tokens", 0) / n, cost.get("tokens", 0) / n, prices.get(name)]
        entries.append(LeaderboardEntry(name, kinds[name], metric, *numbers))
    return entries


def leaderboard_in_words(entries: Sequence[LeaderboardEntry]) -> list[str]:
    """What to take from the leaderboard before anything is tuned, and what requests cost."""
    sentences = []
    cheap, tuned, constant = (_best(entries, kind) for kind in ("classical", "tuned", "constant"))
    if cheap and constant and _best([constant, cheap]) is constant:  # it is better than nothing
        cheap = None
    prompts = [r for r in entries if r.kind == "prompt"]
    if cheap and not tuned and cheap.gain is not None:
        first = next((r.name for r in prompts if r.gain is None), "the prompt")
        low, high, p = (math.nan if x is None else x for x in (cheap.gain_low, cheap.gain_high, cheap.p))
        tests = sum(r.p is not None for r in entries)
        claim = Claim(cheap.metric, cheap.verdict, cheap.gain, low, high, p, tests)
        points = f"{amount(claim)} over {first}, {sure(claim)}"
        if cheap.verdict == "better":
            sentences.append(
                f"{cheap.name} is better than the base model ({points}) and trains in {cheap.training_seconds:.1f} s: "
                "a tuned model has to beat it, and where they tie, use it."
            )
        elif cheap.verdict == NOT_ENOUGH:
            reason = "use it, it costs next to nothing."
            sentences.append(f"{cheap.name} is not shown to differ from the base model ({points}): {reason}")
    few_shot = _best([r for r in prompts if "few-shot" in r.name], "prompt")
    if tuned and few_shot and tuned.usd_per_1000 and few_shot.usd_per_1000:
        ratio = few_shot.usd_per_1000 / tuned.usd_per_1000
        mine = f"1,000 requests cost ${tuned.usd_per_1000:.4f} with the {tuned.name} model"
        theirs = f"${few_shot.usd_per_1000:.4f} with {few_shot.name}"
        sentences.append(
            f"{mine} ({tuned.prompt_tokens:,.0f} tokens read each) and {theirs} ({few_shot.prompt_tokens:,.0f}): "
            f"{ratio:.1f} times as much, for its examples are read every time."
            if ratio > 1
            else f"{mine} and {theirs}."
        )
    return sentences


def _best(entries: Sequence[LeaderboardEntry], kind: EntryKind | None = None) -> LeaderboardEntry | None:
    candidates = [r for r in entries if kind in (r.kind, None)]
    return max(candidates, key=lambda r: -r.value if lower_is_better(r.metric) else r.value, default=None)
