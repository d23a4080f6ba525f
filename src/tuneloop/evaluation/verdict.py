"""The verdict on a system: how it stands against each alternative, and so against all of them; then in plain sentences.

"Better" needs the metric that decides, and no significant loss on another headline metric, against every alternative:
the weakest standing is the verdict, without a correction for the number of tests (intersection-union: Berger 1982).
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneloop.core.stats.intervals import NOT_ENOUGH, least_apart
from tuneloop.core.units import counted, verb
from tuneloop.evaluation.alternatives.classifiers import CLASSICAL
from tuneloop.evaluation.alternatives.constants import MAJORITY
from tuneloop.evaluation.evaluate import ScoredAnswers
from tuneloop.evaluation.metrics.claims import amount, claim_of, evidence, listed, outcome_words, seen_from, sure
from tuneloop.evaluation.metrics.declared import lower_is_better, metric_of, title_of
from tuneloop.evaluation.metrics.kinds import parse
from tuneloop.evaluation.metrics.labels import LONGEST_LABEL
from tuneloop.evaluation.paired import rows_needed
from tuneloop.records.evaluation import SERIOUS, BaselineKind, Comparison, Outcome, Standing

FROM_WORST: tuple[Outcome, ...] = ("worse", "mixed", NOT_ENOUGH, "promising", "better")
# From here to 0.05 a gain is promising, not proven: such a p-value speaks at most 14 to 1 for a difference (see
# `best_odds`). Source: Benjamin et al. 2018, "Redefine statistical significance", Nature Human Behaviour 2.
PROVEN = 0.005


def kind_of(name: str) -> BaselineKind:
    """What kind of alternative a system is, by its name; no classifier and no constant answer: a way of prompting."""
    return "constant" if name == MAJORITY else "classical" if name in CLASSICAL else "prompt"


@dataclass(frozen=True)
class Verdict:
    """What may be said of a system.

    Args:
        name: the system.
        outcome: the weakest of its standings; `not compared` without any.
        against: the alternative that this is about: of those that it stands weakest against, the best one.
        metric: the metric that decides.
        why: why this one does, where that isn't plain; else empty.
        never: labels of the rows that it never gives, the most frequent first; `only`: the one that it always gives.
        standings: against each alternative, the best one first; then those of others compared with the same system.
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
        """The system's own standings."""
        return [s for s in self.standings if s.name == self.name]

    @property
    def weakest(self) -> Standing | None:
        """The standing that the outcome is about."""
        return next((s for s in self.own if s.against == self.against), None)

    def best_of(self, kind: BaselineKind) -> Standing | None:
        """Against the best alternative of a kind."""
        return next((s for s in self.own if s.kind == kind), None)


def decide(evaluations: Mapping[str, ScoredAnswers], comparisons: Sequence[Comparison], name: str) -> Verdict:
    """The verdict on a system, and on others that are compared with the same one. `comparisons`: pairs, adjusted
    together; in either direction where `name` is one of the two, else of the first (a) with another one (b)."""
    evaluation = evaluations[name]
    pairs: dict[tuple[str, str], dict[str, Comparison]] = {}
    for comparison in comparisons:
        pair = seen_from(name, comparison)
        pairs.setdefault((pair.b, pair.a), {})[pair.metric] = pair
    standings = [standing(by_metric, evaluation) for by_metric in pairs.values() if evaluation.primary in by_metric]

    def value(s: Standing) -> float:
        other = evaluations[s.against].metrics.get(evaluation.primary) if s.against in evaluations else None
        return -math.inf if other is None else -other.value if lower_is_better(evaluation.primary) else other.value

    standings.sort(key=lambda s: (s.name != name, -value(s)))
    mine = [s for s in standings if s.name == name]
    weakest = min(mine, key=lambda s: FROM_WORST.index(s.outcome), default=None)
    used = evaluation.deciding_labels
    outcome: Outcome = weakest.outcome if weakest else "not compared"
    against, (never, only) = weakest.against if weakest else None, (used.never, used.only) if used else ([], None)
    return Verdict(name, outcome, against, evaluation.primary, _why(evaluation), never, only, standings)


def standing(pairs: Mapping[str, Comparison], evaluation: ScoredAnswers) -> Standing:
    """How b stands against a; `pairs`: metric -> the pair, gains positive where b is better."""
    first = pairs[evaluation.primary]
    claims = [claim_of(pairs[metric]) for metric in evaluation.headline if metric in pairs]
    outcomes, decides = {claim.outcome for claim in claims}, claims[0]
    outcome: Outcome = NOT_ENOUGH
    if "worse" in outcomes:
        outcome = "mixed" if "better" in outcomes else "worse"
    elif decides.outcome == "better":
        outcome = "better" if first.p < PROVEN else "promising"
    gain = decides.gain, decides.low, decides.high, first.p, decides.p, decides.tests
    needed, counts = rows_needed(first, evaluation.n, PROVEN), (first.only_b, first.only_a, first.apart)
    return Standing(first.b, first.a, kind_of(first.a), outcome, *gain, first.detectable, needed, *counts, claims)


def _why(evaluation: ScoredAnswers) -> str:
    used, metric = evaluation.deciding_labels, evaluation.primary.rpartition(".")[2]
    if evaluation.config.primary is not None:
        return "you named it (evaluate.primary)"
    if evaluation.primary == "filled_f1":
        return "fields that stay empty are no hits"
    if metric == "macro_f1" and used is not None:
        label, share = used.most_frequent
        uneven = f'labels are uneven ("{label}" is {100 * share:.0f} % of the rows)'
        return f"{uneven}, so accuracy would hide what becomes of the rare ones"
    return ""


def best_odds(p: float) -> float:
    """How much a p-value can speak for a difference at the very best: the largest Bayes factor, 1 / (-e p ln p); 1 from
    p = 1/e on. Source: Sellke, Bayarri & Berger 2001, "Calibration of p values for testing precise null hypotheses"."""
    return 1.0 if math.isnan(p) or p >= 1 / math.e else -1 / (math.e * p * math.log(p)) if p > 0 else math.inf


_FAR = 100  # more rows than this many times the present ones are no advice that anyone could follow
_NEARLY_ALL = 0.9  # share of equal answers from which on that answer says more than a count of the missing labels
_NAMED = 3  # labels in a sentence
_ROWS = {"test": "test row", "val": "validation row", "train": "training row"}

_CHEAP = "it trains in seconds and answers at next to no cost"
_NOTHING = "So far {model} has learned nothing that this test shows."
# What is said of an alternative that the first sentence is not about, by its kind and the outcome against it.
_OF_ANY = {
    "better": "It gains {gain} over {theirs}.",
    "promising": "It looks better than {theirs}: {gain}.",
    "mixed": "Against {theirs} it {changes}.",
}
_SENTENCES: dict[BaselineKind, dict[str, str]] = {
    "prompt": _OF_ANY | {
        "not enough evidence": "There is not enough evidence that it differs from {theirs}: {gain}.",
        "worse": "It is worse than {theirs}: {gain}. Don't use {model} as it is.",
    },
    "classical": _OF_ANY | {
        "not enough evidence": "These rows can't tell it from {theirs}: {gain}. "
        f"Use that one unless {{model}} has to do more than this: {_CHEAP}.",
        "behind": f"It is behind {{theirs}}, though these rows can't prove it: {{gain}}. Use that one: {_CHEAP}.",
        "worse": f"It is worse than {{theirs}}: {{gain}}. Use that one: {_CHEAP}.",
    },
    "constant": _OF_ANY | {
        "not enough evidence": "There is not enough evidence that it beats {theirs}: {gain}.",
        "behind": f"It is not shown to beat {{theirs}}: {{gain}}. {_NOTHING}",
        "worse": f"It is worse than {{theirs}}: {{gain}}. {_NOTHING}",
    },
}  # fmt: skip
# What follows from the alternative that the first sentence is about; it has said how they compare.
_ADVICE: dict[BaselineKind, dict[str, str]] = {
    "prompt": {"worse": "Don't use {model} as it is."},
    "classical": {
        "not enough evidence": f"Use {{name}} unless {{model}} has to do more than this: {_CHEAP}.",
        "behind": f"{{name}} is ahead, though these rows can't prove it. Use that one: {_CHEAP}.",
        "worse": f"Use {{name}}: {_CHEAP}.",
    },
    "constant": {"behind": _NOTHING, "worse": _NOTHING},
}


def verdict_in_words(
    verdict: Verdict, evaluations: Mapping[str, ScoredAnswers], *, split: str = "test", trained: str = ""
) -> list[str]:
    """The verdict first, in one sentence or two, then what stands behind it; each fact once.

    How the model compares with the best prompt, the best cheap classifier and always answering the most frequent label,
    by how much and with what evidence; on which metrics it gained and lost; what would settle an open question; how
    many answers were invalid; what came of pairs without it.

    `split`: that the rows are of; anything but train, val and test is a file; `trained`: how far the model was trained,
    where that is worth a word ("trained for 5 steps, ...").
    """
    evaluation, metric = evaluations[verdict.name], verdict.metric
    if metric not in evaluation.metrics:
        return [f"No metric decides: {metric} was not measured on {rows_of(evaluation.n, split)}."]
    several = any(s.name != verdict.name for s in verdict.standings)  # compared with a first one: then the head has all
    about = None if several else verdict.weakest
    sentences = [_headline(verdict, evaluations, split, trained)]
    if verdict.own:
        sentences.append(_own_interval(verdict, evaluations, about))
    if verdict.why:
        sentences.append(f"{_upper(title_of(metric))} decides: {verdict.why}.")
    best = _best_of_each_kind(verdict)
    sentences += filter(None, (_against(s, verdict, evaluations, s is about) for s in best))
    if verdict.weakest and verdict.outcome in (NOT_ENOUGH, "promising") and verdict.weakest.low < verdict.weakest.high:
        sentences.append(_settle(verdict.weakest, metric, evaluation.n, split))
    others = [s for s in verdict.own if s is not verdict.weakest]
    news = [s for s in others if s not in best and _surprises(s, metric)]
    sentences += [f"Against {_opponent(s, evaluations)} it {_changes(s)}; {title_of(metric)} decides." for s in news]
    if evaluation.invalid:
        labels = evaluation.task == "classification"
        kind = "named no allowed label" if labels else "lacked a field or held an unknown value"
        kind = "were no valid JSON" if "valid_json" in evaluation.metrics else kind
        some = _some_answers(evaluation.invalid, evaluation.n)
        sentences.append(f"{_upper(some)} {kind} and {verb(evaluation.invalid, 'counts', 'count')} as wrong.")
    for s in verdict.standings:
        if s.name != verdict.name:
            also = f"{s.name} {_changes(s)} against {s.against}. " if _surprises(s, metric) else ""
            sentences.append(f"{also}The gain of {s.name} over {s.against}: {sure(s.claims[0])}.")
            if s.outcome in (NOT_ENOUGH, "promising"):
                sentences.append(_settle(s, metric, evaluation.n, split))
    return sentences


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def rows_of(n: int, split: str) -> str:
    """ "1,234 test rows"; rows of a file are just rows."""
    return counted(n, _ROWS.get(split, "row"))


def _headline(verdict: Verdict, evaluations: Mapping[str, ScoredAnswers], split: str, trained: str) -> str:
    evaluation, metric, weakest = evaluations[verdict.name], verdict.metric, verdict.weakest
    named = [s for s in verdict.standings if s.kind != "constant"]
    if any(s.name != verdict.name for s in named):
        several = "; ".join(f"{s.name} {outcome_words(s, metric)} ({_amounts(s, metric)})" for s in named)
        rows = f"by {title_of(metric)} on {rows_of(evaluation.n, split)}"
        behind = [s for s in verdict.standings if s.kind == "constant"]
        if behind:
            several += f". No better than {_opponent(behind[0], evaluations)}: {listed([s.name for s in behind])}"
        return f"Against {named[0].against}, {rows}: {several}."
    fault, rows = _never(verdict, evaluation), rows_of(evaluation.n, split)
    if weakest is None:
        value = f"{title_of(metric)} {_figure(evaluation, metric)}{_own_bounds(evaluation, metric)}"
        return f"Not compared with anything: {value} on {rows}{f', and {fault}' if fault else ''}."
    against, won = _opponent(weakest, evaluations), weakest.outcome in ("better", "promising")
    decides = weakest.claims[0]
    beaten = [_opponent(s, evaluations) for s in _best_of_each_kind(verdict) if s.outcome == "better"]
    gain = f"gain {amount(decides)}" if lower_is_better(metric) else amount(decides)
    gain += "" if not won or beaten == [against] else f" over {against}"
    amounts = f"{title_of(metric)} {_figure(evaluation, metric)}, {gain} on {rows}"
    first, how_sure = "; ".join([*_surprises(weakest, metric), amounts]), sure(decides)
    used = evaluation.deciding_labels
    # Labels that are never given and make up a tenth of the rows or more are too many for a plain "better".
    missing = sum(map(used.references.__getitem__, verdict.never)) if used else 0
    serious = won and used is not None and missing >= SERIOUS * used.rows > 0
    further = []
    if not fault:
        first += f" ({how_sure})"
    else:
        first += f"{', but' if won and not serious else ', and'} {fault}"
        if weakest.low < weakest.high:
            further.append(f"The gain has the {how_sure}.")
    constants = (s for s in verdict.own if s.kind == "constant" and s.outcome not in ("better", "promising"))
    idle = next((s for s in constants if s.gain <= 0), None)
    if weakest.outcome != "better" and beaten and idle is None:
        further.append(f"It is better than {listed(beaten)}.")
    further += [f"{_upper(trained)}."] if trained else []
    heads = {
        "better": f"Better than {listed(beaten)}", "promising": "Promising, not proven",
        NOT_ENOUGH: f"No proven gain over {against}", "mixed": f"Mixed against {against}",
        "worse": f"Worse than {against}",
    }  # fmt: skip
    head = heads[weakest.outcome] + (" but with a serious fault" if serious else "")
    if idle is not None and idle is not weakest:
        ahead = "no better than" if idle.outcome == NOT_ENOUGH else f"{idle.outcome} than"
        head += f", and {ahead} {_opponent(idle, evaluations)} ({_figure(evaluations[idle.against], metric)})"
        head += " on these rows" if idle.outcome == NOT_ENOUGH else ""
    return " ".join([f"{head}: {first}.", *further])


def _surprises(s: Standing, metric: str) -> list[str]:
    if s.outcome == "mixed" or (s.outcome == "worse" and metric not in s.lost):
        return [f"it {_changes(s)}"]
    if s.outcome == NOT_ENOUGH and s.gained:
        return [f"it {_changes(s)}, which does not decide"]
    return []


def _amounts(s: Standing, metric: str) -> str:
    if not _surprises(s, metric) or s.outcome == NOT_ENOUGH:
        return amount(s.claims[0])
    rests = [claim for claim in s.claims if claim.outcome != NOT_ENOUGH]
    return ", ".join(f"{title_of(claim.metric)} {amount(claim)}" for claim in rests)


def _shown_by(s: Standing, metric: str) -> str:
    parts = [*_surprises(s, metric), f"{title_of(metric)} {evidence(s.claims[0])}"]
    return "; ".join(parts if s.outcome != NOT_ENOUGH else parts[::-1])


def _best_of_each_kind(verdict: Verdict) -> list[Standing]:
    kinds: tuple[BaselineKind, ...] = ("prompt", "classical", "constant")
    return [s for kind in kinds if (s := verdict.best_of(kind)) is not None]


def _never(verdict: Verdict, evaluation: ScoredAnswers) -> str:
    used = evaluation.deciding_labels
    if not verdict.never or used is None:
        return ""
    if verdict.only is not None:
        return f"it answers {_quoted(verdict.only)} to every row"
    if 2 * used.without > used.labelled:
        return f"{_some_answers(used.without, used.labelled)} {'names' if used.without == 1 else 'name'} no label"
    percent = {label: 100 * used.references[label] / used.rows for label in verdict.never}
    shares = [f"{_quoted(label)} ({share:.2g} % of the rows)" for label, share in percent.items()]
    if len(shares) <= _NAMED:
        return f"it never answers {listed(shares, 'or')}"
    usual, times = max(used.answers.items(), key=lambda item: (item[1], item[0]))
    if times >= _NEARLY_ALL * used.labelled:
        return f"it answers {_quoted(usual)} to {times:,} of the {counted(used.labelled, 'row')}"
    return f"it never gives {len(shares)} of {counted(len(used.references), 'label')}, {shares[0]} among them"


def _some_answers(some: int, of: int) -> str:
    return "its only answer" if of == 1 else f"{some:,} of its {counted(of, 'answer')}"


def _quoted(answer: str) -> str:
    """An answer in a sentence: in quotes, cut between words; of a JSON object as many whole fields as fit."""
    text = " ".join(answer.split())
    try:
        value = parse(text)
    except ValueError:
        value = None
    if not isinstance(value, dict | list):
        short = textwrap.shorten(text, LONGEST_LABEL, placeholder=" …")
        return f'"{text[: LONGEST_LABEL - 1]}…"' if short == "…" else f'"{short}"'
    whole = json.dumps(value, ensure_ascii=False)
    if len(whole) <= LONGEST_LABEL:
        return whole
    if isinstance(value, list):
        return f"a list of {counted(len(value), 'value')}"
    return f"the same object of {counted(len(value), 'field')}"


def _opponent(s: Standing, evaluations: Mapping[str, ScoredAnswers]) -> str:
    if s.kind == "constant" and s.against in evaluations:
        used = evaluations[s.against].deciding_labels
        text = used.only if used and used.only else evaluations[s.against].answers[0].text
        return f"always answering {_quoted(text)}"
    return s.against


def _own_interval(verdict: Verdict, evaluations: Mapping[str, ScoredAnswers], about: Standing | None) -> str:
    metric, evaluation = verdict.metric, evaluations[verdict.name]
    if about is None:
        score = f"{title_of(metric)} {_figure(evaluation, metric)}{_own_bounds(evaluation, metric)}"
        return f"On these rows {_model(verdict.name)} has {score}."
    kind, score = _kind(about), _figure(evaluations[about.against], metric)
    theirs = f"{_opponent(about, evaluations)}{f', {kind},' if kind else ''} has {score}"
    if not _own_bounds(evaluation, metric):
        return f"{_upper(theirs)}."
    return f"The 95 % interval of its score ({title_of(metric)}) is {_interval(evaluation, metric)}; {theirs}."


def _kind(s: Standing) -> str:
    if s.kind == "prompt":
        return "the best prompt" if s.against.startswith(("zero-shot", "few-shot")) else ""
    return "the best cheap alternative" if s.kind == "classical" else ""


def _against(s: Standing, verdict: Verdict, evaluations: Mapping[str, ScoredAnswers], stated: bool) -> str:
    metric = verdict.metric
    behind = s.outcome == NOT_ENOUGH and (s.gain < 0 or (s.kind == "constant" and s.gain == 0))
    templates = (_ADVICE if stated else _SENTENCES)[s.kind]
    template = templates.get("behind" if behind and s.kind != "prompt" else s.outcome, "")
    theirs = f"{_opponent(s, evaluations)} ({_figure(evaluations[s.against], metric)})"
    theirs = f"{_kind(s)}, {theirs}" if _kind(s) else theirs
    theirs += ", which takes no model" if s.kind == "constant" else ""
    gain = _shown_by(s, metric) if _surprises(s, metric) else evidence(s.claims[0])
    model, changes = _model(verdict.name), _shown_by(s, metric)
    return template.format(theirs=theirs, name=s.against, gain=gain, model=model, changes=changes)


def _changes(s: Standing) -> str:
    """ "gained ROUGE-L (+0.190, 95 % interval +0.120 to +0.260, p < 0.001) but lost chrF (-3.1, 95 % ...)"."""
    parts = []
    for word, outcome in (("gained", "better"), ("lost", "worse")):
        changes = []
        for claim in s.claims:
            if claim.outcome == outcome:  # more of a metric, or of what it counts the lack of, or ground on it
                on = "on " if lower_is_better(claim.metric) else ""
                gained = metric_of(claim.metric).gained or f"{on}{title_of(claim.metric)}"
                changes.append(f"{gained} ({amount(claim)}, {sure(claim, tests=False)})")
        parts += [f"{word} {listed(changes)}"] if changes else []
    return " but ".join(parts)


def _settle(s: Standing, metric: str, n: int, split: str) -> str:
    kind, smallest = rows_of(2, split).partition(" ")[2], s.detectable
    possible = metric_of(metric).scale == "from 0" or smallest <= metric_of(metric).out_of
    rests, power = "", f"These rows would have shown a difference of {metric_of(metric).change_in_words(smallest)}."
    if not possible or smallest <= abs(s.gain):  # the latter: the test says otherwise
        power = "" if possible else "So few rows can hardly show any difference."
    if s.only_name is not None and s.only_against is not None:
        rests = f" It rests on {counted(s.only_name + s.only_against, 'row')}: {s.name} alone is right on {s.only_name}"
        rests += f", {s.against} alone on {s.only_against}."
    elif s.apart is not None and s.apart < least_apart(PROVEN):
        rests = f" The two differ on {counted(s.apart, 'row')} only: too few to prove anything."
        power = ""
    if s.rows_needed is None or s.rows_needed > _FAR * n:
        return f"{power} The difference is too near zero for more {kind} to be worth their labels.".strip()
    needed, more = _rounded(s.rows_needed), _rounded(max(s.rows_needed - n, math.ceil(n / 10)))
    if s.outcome == "promising":
        p = f"p = {s.p:.2g}{' before the correction' if s.tests > 1 else ''} on {rows_of(n, split)}"
        odds = f"it speaks at most {best_odds(s.p):.0f} to 1 for a difference"
        return (
            f"{p} is weak evidence: {odds}, and one that just passes is usually smaller than it looks.{rests} "
            f"To settle it, ask about {needed} new {kind}, once: so many show a difference as large as this one with "
            "80 % power and p below 0.005."
        )
    more_rows = f"If the difference is as large as it looks, about {more} more {kind} would show it"
    return f"{power}{rests} {more_rows} (80 % power, p below 0.005).".strip()


def _rounded(count: int) -> str:
    """Two significant digits, upwards: more would promise too much."""
    step = 10 ** max(0, len(str(count)) - 2)
    return f"{math.ceil(count / step) * step:,}"


def _figure(of: ScoredAnswers, metric: str) -> str:
    return metric_of(metric).in_words(of.metrics[metric].value)


def _own_bounds(of: ScoredAnswers, metric: str) -> str:
    """ " (95 % interval 81.0 % to 92.3 %)"; empty where there is none."""
    value = of.metrics[metric]
    return "" if math.isnan(value.low + value.high) else f" (95 % interval {_interval(of, metric)})"


def _interval(of: ScoredAnswers, metric: str) -> str:
    value = of.metrics[metric]
    return f"{metric_of(metric).in_words(value.low)} to {metric_of(metric).in_words(value.high)}"


def _model(name: str) -> str:
    return f"the {name} model" if name == "tuned" or "-shot" in name else name
