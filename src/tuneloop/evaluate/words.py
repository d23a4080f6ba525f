"""The comparison in plain sentences: what a reader should take from it, also when it is inconvenient."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tuneloop.evaluate.classical import CLASSICAL
from tuneloop.evaluate.evaluate import Comparison, Evaluation
from tuneloop.evaluate.uncertainty import NOT_ENOUGH, rows_to_settle

_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "rougeL": "ROUGE-L",
    "chrf": "chrF",
    "bleu": "BLEU",
    "exact_match": "exact match",
    "micro_f1": "micro-F1",
    "field_f1": "field-F1",
}
# More rows than this many times the present test split is no advice that anyone could follow.
_FAR = 100


def verdict_in_words(
    evaluations: Mapping[str, Evaluation],
    comparisons: Sequence[Comparison],
    *,
    tuned: str = "tuned",
    classical: Collection[str] = CLASSICAL,
) -> list[str]:
    """A few short sentences on the metric that decides.

    Is the tuned model better than the best prompt, by how much and how surely; do the cheap alternatives tie or beat
    it (then they are to be used); how many more test rows would settle it where the evidence is not enough; how many
    answers were invalid; what came of pairs without the tuned model.

    Args:
        evaluations: all contenders by name, the tuned one among them.
        comparisons: pairs with the tuned model, in either direction.
        tuned: the name of the tuned model.
        classical: names of the cheap alternatives; every other contender is a way of prompting.
    """
    own = evaluations[tuned]
    metric = own.primary
    if metric not in own.metrics:
        return [f"No figure decides: {metric} was not measured on these {own.n} rows."]
    pairs = _pairs(comparisons, metric, tuned)
    value = own.metrics[metric]
    sentences = [
        f"On {own.n:,} test rows {_model(tuned)} has {_title(metric)} {_figure(metric, value.value)}"
        f" (95 % interval {_figure(metric, value.low)} to {_figure(metric, value.high)})."
    ]
    prompting = _best([name for name in pairs if name not in classical], evaluations, metric)
    if prompting:
        sentences.append(_against_prompt(prompting, evaluations[prompting], pairs[prompting], metric, tuned))
        if pairs[prompting].verdict == NOT_ENOUGH:
            sentences.append(_more_rows(pairs[prompting], own.n))
    cheap = _best([name for name in pairs if name in classical], evaluations, metric)
    if cheap:
        sentences.append(_against_cheap(cheap, evaluations[cheap], pairs[cheap], metric, tuned))
    if own.invalid:
        kind = "named no allowed label" if own.task == "classification" else "lacked a field or held an unknown value"
        sentences.append(f"{own.invalid:,} of its {own.n:,} answers {kind} and count as wrong.")
    for pair in comparisons:  # of several contenders with a first one
        if pair.metric == metric and tuned not in (pair.a, pair.b):
            sentences.append(f"{pair.b} against {pair.a}: {pair.verdict}, {_difference(pair)}.")
            if pair.verdict == NOT_ENOUGH:
                sentences.append(_more_rows(pair, own.n))
    return sentences


def _pairs(comparisons: Sequence[Comparison], metric: str, tuned: str) -> dict[str, Comparison]:
    """Other contender -> comparison with the tuned model as b."""
    turned = {"better": "worse", "worse": "better"}
    pairs = {}
    for c in comparisons:
        if c.metric == metric and c.b == tuned:
            pairs[c.a] = c
        elif c.metric == metric and c.a == tuned:
            verdict = turned.get(c.verdict, c.verdict)
            pairs[c.b] = replace(
                c, a=c.b, b=c.a, delta=-c.delta, low=-c.high, high=-c.low, verdict=verdict, effect=-c.effect
            )
    return pairs


def _best(names: Sequence[str], evaluations: Mapping[str, Evaluation], metric: str) -> str | None:
    known = [name for name in names if name in evaluations and metric in evaluations[name].metrics]
    return max(known, key=lambda name: evaluations[name].metrics[metric].value) if known else None


def _against_prompt(name: str, other: Evaluation, pair: Comparison, metric: str, tuned: str) -> str:
    figure = _figure(metric, other.metrics[metric].value)
    theirs = f"the best prompt ({name}, {figure})" if "shot" in name else f"{name} ({figure})"
    if pair.verdict == "better":
        return f"It is better than {theirs}: {_difference(pair)}."
    if pair.verdict == "worse":
        return f"It is worse than {theirs}: {_difference(pair)}. Don't use {_model(tuned)} as it is."
    return f"There is not enough evidence that it differs from {theirs}: {_difference(pair)}."


def _against_cheap(name: str, other: Evaluation, pair: Comparison, metric: str, tuned: str) -> str:
    theirs = f"{name} ({_figure(metric, other.metrics[metric].value)})"
    if pair.verdict == "better":
        return f"It also beats the best cheap alternative, {theirs}: {_difference(pair)}."
    reason = "it trains in seconds and answers at next to no cost"
    if pair.verdict == "worse":
        return f"The cheap alternative {theirs} beats it: {_difference(pair)}. Use that one: {reason}."
    return (
        f"The cheap alternative {theirs} ties it within what these rows can show: {_difference(pair)}. "
        f"Use that one unless {_model(tuned)} has to do more than this: {reason}."
    )


def _more_rows(pair: Comparison, n: int) -> str:
    needed = rows_to_settle(pair.delta, pair.low, pair.high, n)
    if needed is None or needed > _FAR * n:
        return "The difference is too near zero for more test rows to be worth their labels."
    return (
        f"These rows would have shown a difference of {_amount(pair.metric, pair.detectable)}. "
        f"If the difference is as large as it looks, about {_rounded(needed - n)} more test rows would show it "
        "(80 % power)."
    )


def _amount(metric: str, size: float) -> str:
    return f"{100 * size:.1f} points" if _is_share(metric) else _figure(metric, size)


def _rounded(count: int) -> str:
    """Two significant digits, upwards: more would promise too much."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


def _difference(pair: Comparison) -> str:
    """ "+4.2 points (95 % interval +1.0 to +7.4, p = 0.01)"."""
    share = _is_share(pair.metric)
    scale, unit = (100.0, " points") if share else (1.0, "")
    digits = 1 if share or pair.metric.split(".")[-1] in ("chrf", "bleu") else 3

    def signed(x: float) -> str:
        return "unknown" if math.isnan(x) else f"{x * scale:+.{digits}f}"

    p = pair.p if math.isnan(pair.p_holm) else pair.p_holm  # the verdict is by the adjusted one
    return f"{signed(pair.delta)}{unit} (95 % interval {signed(pair.low)} to {signed(pair.high)}, {_p(p)})"


def _p(p: float) -> str:
    if math.isnan(p):
        return "no p-value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _is_share(metric: str) -> bool:
    return metric.split(".")[-1] in ("accuracy", "exact_match", "pass@1")


def _figure(metric: str, value: float) -> str:
    if math.isnan(value):
        return "unknown"
    if _is_share(metric):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if metric.split(".")[-1] in ("chrf", "bleu") else f"{value:.3f}"


def _title(metric: str) -> str:
    field, dot, last = metric.rpartition(".")
    return f"{field} {_TITLES.get(last, last)}" if dot else _TITLES.get(last, last)


def _model(name: str) -> str:
    """A contender in a sentence; places and models of endpoints go by their own names."""
    return f"the {name} model" if name == "tuned" or "-shot" in name else name
