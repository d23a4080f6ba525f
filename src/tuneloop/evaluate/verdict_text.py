"""The verdict in plain sentences: what a reader should take from an evaluation, also when it is inconvenient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tuneloop.core.stats import NOT_ENOUGH, least_apart
from tuneloop.evaluate.evaluate import Evaluation
from tuneloop.evaluate.label_use import LabelUse
from tuneloop.evaluate.metrics import metric_of, title_of
from tuneloop.evaluate.metrics.labels import LONGEST_LABEL
from tuneloop.evaluate.verdict import PROVEN, best_odds
from tuneloop.records.evaluation import Standing, Verdict

# More rows than this many times the present test split is no advice that anyone could follow.
_FAR = 100
SERIOUS = 0.1  # share of the rows whose labels are never given
_NEARLY_ALL = (
    0.9  # share of the answers from which on naming the one label says more than counting those that are left out
)
_NAMED = 3  # labels, or alternatives, in a sentence
_ROWS = {"test": "test row", "val": "validation row", "train": "training row"}


def verdict_in_words(
    verdict: Verdict, evaluations: Mapping[str, Evaluation], *, split: str = "test", trained: str = ""
) -> list[str]:
    """The verdict first, in one sentence or two, then what stands behind it.

    How the contender compares with the best prompt, the best cheap classifier and always answering the most frequent label, by
    how much and how surely; on which metrics it gained and lost; what would settle an open question; how many answers were
    invalid; what came of pairs without it.

    Args:
        verdict: see `decide`.
        evaluations: all contenders by name.
        split: that the rows are of; anything but train, val and test is a file.
        trained: how far the contender was trained, where that is worth a word ("trained for 5 steps, ...").
    """
    own, metric = evaluations[verdict.name], verdict.metric
    if metric not in own.metrics:
        return [f"No figure decides: {metric} was not measured on these {own.n} rows."]
    sentences = [_headline(verdict, evaluations, split, trained)]
    if verdict.own:
        sentences.append(f"On {rows_of(own.n, split)} {_model(verdict.name)} has {_value(own, metric)}.")
    if verdict.why:
        sentences.append(f"{title_of(metric)[0].upper()}{title_of(metric)[1:]} decides: {verdict.why}.")
    prompt, cheap, constant = (verdict.best_of(kind) for kind in ("prompt", "classical", "constant"))
    if prompt:
        sentences.append(_against_prompt(prompt, verdict, evaluations))
    if cheap:
        sentences.append(_against_cheap(cheap, verdict, evaluations))
    if constant:
        sentences.append(_against_constant(constant, verdict, evaluations))
    if verdict.weakest and verdict.outcome in (NOT_ENOUGH, "promising") and verdict.weakest.low < verdict.weakest.high:
        sentences.append(_settle(verdict.weakest, metric, own.n, split))
    shown = _shown(verdict)
    others = [s for s in verdict.own if s is not verdict.weakest]  # of the weakest one the first sentence has said it
    news = [s for s in others if (s.outcome == "mixed" and s not in shown) or _undecided_but(s, metric)]
    sentences += [_disagreement(s, metric, evaluations) for s in news]
    if own.invalid:
        kind = "named no allowed label" if own.task == "classification" else "lacked a field or held an unknown value"
        counted = "counts" if own.invalid == 1 else "count"
        sentences.append(f"{own.invalid:,} of its {own.n:,} answers {kind} and {counted} as wrong.")
    for s in verdict.standings:  # of several contenders with a first one
        if s.name != verdict.name:
            sentences.append(f"{s.name} against {s.against}: {s.outcome}, {_gain(s, metric)}.")
            if s.outcome in (NOT_ENOUGH, "promising"):
                sentences.append(_settle(s, metric, own.n, split))
    return sentences


def rows_of(n: int, split: str) -> str:
    """ "1,234 test rows"; rows of a file are just rows."""
    return f"{n:,} {_ROWS.get(split, 'row')}{'' if n == 1 else 's'}"


# --- the verdict's first words ------------------------------------------------------------------------


def _headline(verdict: Verdict, evaluations: Mapping[str, Evaluation], split: str, trained: str) -> str:
    """The outcome with its figure and with the labels that are never given; then how sure that is and what it rests on."""
    own, metric, weakest = evaluations[verdict.name], verdict.metric, verdict.weakest
    if any(s.name != verdict.name for s in verdict.standings):
        several = [f"{s.name} {s.outcome} ({_amount(metric, s.gain)})" for s in verdict.standings]
        return f"Against {verdict.standings[0].against}, by {title_of(metric)} on {rows_of(own.n, split)}: {'; '.join(several)}."
    fault, rows = _never(verdict, own), rows_of(own.n, split)
    if weakest is None:
        return f"Not compared with anything: {_value(own, metric)} on {rows}{f', and {fault}' if fault else ''}."
    against = _opponent(weakest, evaluations)
    won = weakest.outcome in ("better", "promising")
    beaten = [_opponent(s, evaluations) for s in _shown(verdict) if s.outcome == "better"]
    named = "" if not won or beaten == [against] else f" over {against}"
    gain = f"{_amount(metric, weakest.gain)}{named} on {rows}"
    figures = f"{title_of(metric)} {_figure(metric, own.metrics[metric].value)}, {gain}"
    first = "; ".join([*_surprises(weakest, metric), figures])
    bounds, p, serious = _bounds(weakest, metric), _p(_adjusted_p(weakest)), won and _is_serious(verdict, own)
    for_all = f", {corrected_for(weakest.tests)}" if weakest.tests > 1 else ""
    first += (
        f"{', but' if won and not serious else ', and'} {fault}"
        if fault
        else f" (95 % interval {bounds}, {p}{for_all})"
    )
    sure = [f"The gain's 95 % interval is {bounds} ({p}{for_all})."] if fault and weakest.low < weakest.high else []
    idle = next(
        (s for s in verdict.own if s.kind == "constant" and s.outcome not in ("better", "promising") and s.gain <= 0),
        None,
    )
    if weakest.outcome != "better" and beaten and idle is None:
        sure.append(f"It is better than {_and(beaten)}.")
    sure += [f"{trained[0].upper()}{trained[1:]}."] if trained else []
    heads = {"better": f"Better than {_and(beaten)}", "promising": "Promising, not proven", NOT_ENOUGH: f"No proven gain over {against}",
             "mixed": f"Mixed against {against}", "worse": f"Worse than {against}"}  # fmt: skip
    head = heads[weakest.outcome] + (" but with a serious fault" if serious else "")
    if idle is not None and idle is not weakest:
        ahead = "no better than" if idle.outcome == NOT_ENOUGH else "worse than"
        head += f", and {ahead} {_opponent(idle, evaluations)} ({_figure(metric, evaluations[idle.against].metrics[metric].value)})"
    return " ".join([f"{head}: {first}.", *sure])


def _surprises(s: Standing, metric: str) -> list[str]:
    """What the outcome rests on where the metric that decides does not say it."""
    if s.outcome == "mixed":
        return [f"it {_gained_and_lost(s)}"]
    if s.outcome == "worse" and metric not in s.lost:
        return [f"it lost {_several(s.lost, list(s.lost))}"]
    if s.outcome == NOT_ENOUGH and s.gained:
        return [f"it gained {_several(s.gained, list(s.gained))}, which does not decide"]
    return []


def _shown(verdict: Verdict) -> list[Standing]:
    """Against the best alternative of each kind."""
    found = [verdict.best_of(kind) for kind in ("prompt", "classical", "constant")]
    return [s for s in found if s is not None]


def _never(verdict: Verdict, own: Evaluation) -> str:
    """What a model that leaves out labels does; empty where it gives each."""
    used = own.deciding_labels
    if not verdict.never or used is None:
        return ""
    if verdict.only is not None:
        return f"it answers {_quoted(verdict.only)} to every row"
    if 2 * used.without > used.asked:
        return f"{used.without} of its {used.asked} answers name no label"
    shares = [_share(label, used) for label in verdict.never]
    if len(shares) <= _NAMED:
        return f"it never answers {_and(shares, 'or')}"
    usual, times = max(used.answers.items(), key=lambda item: (item[1], item[0]))
    if times >= _NEARLY_ALL * used.asked:
        return f"it answers {_quoted(usual)} to {times:,} of the {used.asked:,} rows"
    return f"it never gives {len(shares)} of {len(used.references)} labels, {shares[0]} among them"


def _share(label: str, used: LabelUse) -> str:
    return f"{_quoted(label)} ({100 * used.references[label] / used.rows:.2g} % of the rows)"


def _is_serious(verdict: Verdict, own: Evaluation) -> bool:
    """Whether the labels that are never given are a tenth of the rows or more: too many for a plain "better"."""
    used = own.deciding_labels
    return used is not None and sum(used.references[label] for label in verdict.never) >= SERIOUS * used.rows > 0


def _quoted(label: str) -> str:
    return f'"{label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"}"'


def _opponent(s: Standing, evaluations: Mapping[str, Evaluation]) -> str:
    if s.kind == "constant" and s.against in evaluations:
        return f"always answering {_quoted(evaluations[s.against].answers[0].text)}"
    return s.against


def _and(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}" if parts else ""


# --- against each alternative ------------------------------------------------------------------


def _against_prompt(s: Standing, verdict: Verdict, evaluations: Mapping[str, Evaluation]) -> str:
    metric = verdict.metric
    figure = _figure(metric, evaluations[s.against].metrics[metric].value)
    theirs = (
        f"the best prompt ({s.against}, {figure})"
        if s.against.startswith(("zero-shot", "few-shot"))
        else f"{s.against} ({figure})"
    )
    if s.outcome == "mixed":
        return f"Against {theirs} it {_gained_and_lost(s)}: {_gain(s, metric)} by what decides."
    if s.outcome == "worse":
        return f"It is worse than {theirs}: {_gain(s, metric)}. Don't use {_model(verdict.name)} as it is."
    if s.outcome == NOT_ENOUGH:
        return f"There is not enough evidence that it differs from {theirs}: {_gain(s, metric)}."
    return f"It {'is' if s.outcome == 'better' else 'looks'} better than {theirs}: {_gain(s, metric)}."


def _against_cheap(s: Standing, verdict: Verdict, evaluations: Mapping[str, Evaluation]) -> str:
    metric = verdict.metric
    theirs = f"{s.against} ({_figure(metric, evaluations[s.against].metrics[metric].value)})"
    reason = "it trains in seconds and answers at next to no cost"
    if s.outcome == "better":
        return f"It beats the best cheap alternative, {theirs}: {_gain(s, metric)}."
    if s.outcome == "promising":
        return f"It looks better than the best cheap alternative, {theirs}: {_gain(s, metric)}."
    if s.outcome == "mixed":
        return f"Against the best cheap alternative, {theirs}, it {_gained_and_lost(s)}."
    if s.outcome == "worse":
        return f"The cheap alternative {theirs} beats it: {_gain(s, metric)}. Use that one: {reason}."
    if s.gain < 0:
        return f"The cheap alternative {theirs} is ahead, though these rows can't prove it: {_gain(s, metric)}. Use that one: {reason}."
    return (
        f"These rows can't tell it from the cheap alternative {theirs}: {_gain(s, metric)}. "
        f"Use that one unless {_model(verdict.name)} has to do more than this: {reason}."
    )


def _against_constant(s: Standing, verdict: Verdict, evaluations: Mapping[str, Evaluation]) -> str:
    metric = verdict.metric
    theirs = f"{_opponent(s, evaluations)} ({_figure(metric, evaluations[s.against].metrics[metric].value)}), which takes no model"
    if s.outcome == "better":
        return f"It beats {theirs}: {_gain(s, metric)}."
    if s.outcome == "promising":
        return f"It looks better than {theirs}: {_gain(s, metric)}."
    if s.outcome == "mixed":
        return f"Against {theirs}, it {_gained_and_lost(s)}."
    if s.outcome == NOT_ENOUGH and s.gain > 0:
        return f"There is not enough evidence that it beats {theirs}: {_gain(s, metric)}."
    return f"It does not beat {theirs}: {_gain(s, metric)}. So far {_model(verdict.name)} has learned nothing that this test shows."


def _undecided_but(s: Standing, metric: str) -> bool:
    """Whether other metrics show a difference where the one that decides does not."""
    changed = (s.gained | s.lost).keys()
    return s.outcome != "mixed" and bool(changed) and metric not in changed


def _disagreement(s: Standing, metric: str, evaluations: Mapping[str, Evaluation]) -> str:
    return f"Against {_opponent(s, evaluations)} it {_gained_and_lost(s)}; {title_of(metric)} decides."


def _gained_and_lost(s: Standing) -> str:
    parts = [
        f"{verb} {_several(found, list(found))}" for verb, found in (("gained", s.gained), ("lost", s.lost)) if found
    ]
    return " but ".join(parts)


def _several(changes: Mapping[str, float], names: Sequence[str]) -> str:
    return _and([f"{metric_of(m).gained or title_of(m)} ({_amount(m, changes[m])})" for m in names])


# --- what would settle it ----------------------------------------------------------------------


def _settle(s: Standing, metric: str, n: int, split: str) -> str:
    """How little these rows show, and how many would show a difference as large as this one."""
    kind, smallest = rows_of(2, split).partition(" ")[2], s.detectable
    rests, shown = "", f"These rows would have shown a difference of {metric_of(metric).change_in_words(smallest)}."
    if s.only_name is not None and s.only_against is not None:
        rests = f" It rests on {s.only_name + s.only_against} rows: {s.name} alone is right on {s.only_name}, {s.against} alone on {s.only_against}."
    elif s.apart is not None and s.apart < least_apart(PROVEN):
        rests, shown = (
            f" The two differ on {s.apart} row{'' if s.apart == 1 else 's'} only: too few to prove anything.",
            "",
        )
    if s.rows_needed is None or s.rows_needed > _FAR * n:
        return f"{shown} The difference is too near zero for more {kind} to be worth their labels.".strip()
    needed, more = _rounded(s.rows_needed), _rounded(max(s.rows_needed - n, math.ceil(n / 10)))
    if s.outcome == "promising":
        return (
            f"p = {s.p:.2g}{' before the correction' if s.tests > 1 else ''} on {rows_of(n, split)} is weak evidence: it speaks at most {best_odds(s.p):.0f} to 1 for a difference, and one that "
            f"just passes is usually smaller than it looks.{rests} To settle it, ask about {needed} new {kind}, once: so many show a "
            "difference as large as this one with 80 % power and p below 0.005."
        )
    return (
        f"{shown}{rests} If the difference is as large as it looks, about {more} more {kind} would show it (80 % power, p below 0.005)."
    ).strip()


def _rounded(count: int) -> str:
    """Two significant digits, upwards: more would promise too much."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


# --- figures -----------------------------------------------------------------------------------


def _gain(s: Standing, metric: str) -> str:
    """ "+4.2 points (95 % interval +1.0 to +7.4, p = 0.01)"; positive is better."""
    return f"{_amount(metric, s.gain)} (95 % interval {_bounds(s, metric)}, {_p(_adjusted_p(s))})"


def _bounds(s: Standing, metric: str) -> str:
    return " to ".join(metric_of(metric).change_in_words(x, signed=True, unit=False) for x in (s.low, s.high))


def corrected_for(tests: int) -> str:
    """What is said beside intervals and p-values of several comparisons."""
    return f"both corrected for {tests} comparisons (Holm)"


def _adjusted_p(s: Standing) -> float:
    """The verdict is by the adjusted one."""
    return s.p if math.isnan(s.p_holm) else s.p_holm


def _amount(metric: str, size: float) -> str:
    return metric_of(metric).change_in_words(size, signed=True)


def _figure(metric: str, value: float) -> str:
    return metric_of(metric).in_words(value)


def _p(p: float) -> str:
    if math.isnan(p):
        return "no p-value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _value(own: Evaluation, metric: str) -> str:
    value = own.metrics[metric]
    return f"{title_of(metric)} {_figure(metric, value.value)} (95 % interval {_figure(metric, value.low)} to {_figure(metric, value.high)})"


def _model(name: str) -> str:
    """A contender in a sentence; places and models of endpoints go by their own names."""
    return f"the {name} model" if name == "tuned" or "-shot" in name else name
