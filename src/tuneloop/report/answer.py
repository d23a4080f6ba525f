"""What a reader wants to know first: is it worth it, how good is it against what, what does it cost, what comes next.

The same record stands on top of a report, at the end of a run on the terminal, and on the pages of `tuneloop ui`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tuneloop.core import written as w
from tuneloop.core.stats.intervals import NOT_ENOUGH
from tuneloop.evaluation import recommended_system
from tuneloop.evaluation.alternatives import MINILM
from tuneloop.evaluation.metrics import SHARES, metric_of, percentage, title_of
from tuneloop.models.files import MINILM_NAME
from tuneloop.records.encoder import ENCODER_FOLDER
from tuneloop.records.evaluation import SERIOUS, BaselineKind, EvaluationManifest, Standing
from tuneloop.report import facts as f

KINDS: dict[BaselineKind, str] = {
    "prompt": "a prompt", "classical": "a classifier", "constant": "a constant answer",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """The first screen.

    Args:
        verdict: three to six words.
        sentence: how good it is, what the best alternative has, and what is recommended, without statistics.
        statistics: gain, interval, p-value, correction and number of rows, in one line.
        recommended: the system to use: the cheapest that none is proven to be better than; empty where none is known.
        costs: (name, amount) of making it and of 1,000 answers.
        next: the command that comes next; empty where there is none.
    """

    verdict: str
    sentence: str
    statistics: str
    recommended: str
    costs: list[tuple[str, str]]
    next: str


def answer_of(facts: f.RunFiles) -> Answer | None:
    """The answer that a run's or an evaluation's files give; None: nothing was compared, or several were with one."""
    evaluation = facts.evaluation
    verdict = evaluation.verdict
    if verdict is None or not verdict.standings or verdict.metric not in evaluation.metrics:
        return None
    if any(standing.name != verdict.name for standing in verdict.standings):
        return None
    about = next((standing for standing in verdict.standings if standing.against == verdict.against), None)
    if about is None:
        return None
    recommended = recommended_system(evaluation)
    return Answer(
        verdict=short_verdict(evaluation, about),
        sentence=plain_sentence(evaluation, about) + _speed_of_encoder(facts) + recommendation(evaluation, recommended),
        statistics=statistics_line(evaluation, about),
        recommended=recommended,
        costs=costs_of(facts),
        next=next_command(facts, recommended),
    )


def next_command(facts: f.RunFiles, recommended: str) -> str:
    """The command that comes next: what makes or serves the recommended system, else the likeliest one."""
    dataset = facts.path / "dataset"
    verdict = facts.evaluation.verdict
    if facts.run and verdict and recommended == verdict.name:
        return f"tuneloop serve {shlex.quote(str(facts.path))}"
    if facts.run and recommended == MINILM and dataset.is_dir():  # the same head as a run, which can be served
        return f"tuneloop run {shlex.quote(str(dataset))} model={MINILM_NAME}"
    return next(iter(f.next_commands(facts)), "")


def _speed_of_encoder(facts: f.RunFiles) -> str:
    """That the run is an encoder, and how fast it answered; empty of others."""
    cost = facts.evaluation.costs.get(facts.evaluation.name)
    if facts.result != ENCODER_FOLDER or cost is None or not cost.rows_per_second:
        return ""
    return f" An encoder, which answered {cost.rows_per_second:,.0f} rows a second here."


def short_verdict(evaluation: EvaluationManifest, about: Standing) -> str:
    """Three to six words on a system, by the alternative that it stands weakest against."""
    if about.outcome == "better" and _blind(evaluation):
        return "Better, but blind to some labels"
    return outcome_in_short(about.outcome, about.kind, about.against, about.gain)


def outcome_in_short(outcome: str, kind: BaselineKind, against: str, gain: float) -> str:
    """A standing in three to six words; `against`: the alternative's name, `gain`: of the metric that decides."""
    opponent = against if kind == "prompt" and "-shot" not in against else KINDS[kind]
    if outcome == NOT_ENOUGH:
        return f"Not better than {opponent}" if gain <= 0 else "Not enough evidence"
    heads = {
        "better": "Worth it", "promising": "Promising, not proven", "mixed": f"Better and worse than {opponent}",
    }  # fmt: skip
    return heads.get(outcome, f"Worse than {opponent}")


def _blind(evaluation: EvaluationManifest) -> bool:
    """Whether labels that the system never gives make up a tenth of the rows or more."""
    never = set(evaluation.verdict.never if evaluation.verdict else ())
    rows = {label.label: label.n for label in evaluation.per_class or ()}
    return sum(n for label, n in rows.items() if label in never) >= SERIOUS * sum(rows.values()) > 0


def plain_sentence(evaluation: EvaluationManifest, about: Standing) -> str:
    """How good the system is, and the alternative that the verdict is about, for someone who reads no statistics."""
    metric = evaluation.verdict.metric if evaluation.verdict else evaluation.primary
    own, base = evaluation.metrics[metric], metric.rpartition(".")[2]
    theirs = evaluation.baselines.get(about.against, {}).get(metric)
    figure = percentage(metric) or metric_of(metric).figure
    first = f"{figure(own.value)} {SHARES[base]}" if base in SHARES else f"{title_of(metric)} is {figure(own.value)}"
    first = first[0].upper() + first[1:]
    if theirs is None:
        return f"{first}."
    names: dict[BaselineKind, str] = {
        "prompt": f"the best prompt ({about.against})" if "-shot" in about.against else about.against,
        "classical": f"the best cheap classifier ({about.against})",
        "constant": "the same answer to every row",
    }
    return f"{first}; {names[about.kind]} gets {figure(theirs.value)}."


def statistics_line(evaluation: EvaluationManifest, about: Standing) -> str:
    """`115 test rows · +0.345 over few-shot (95 % interval ..., p < 0.001, corrected for 5 comparisons)`."""
    metric = metric_of(evaluation.verdict.metric if evaluation.verdict else evaluation.primary)
    share = percentage(metric.name) is not None
    claim = about.claims[0] if about.claims else None
    rows = w.count(evaluation.n, f"{evaluation.split} row" if evaluation.split in ("test", "train") else "row")
    if claim is None or not math.isfinite(claim.gain):
        return rows

    def change(size: float) -> str:
        return f"{100 * size:+.1f}" if share else metric.change_in_words(size, signed=True, unit=False)

    evidence = (
        [f"95 % interval {change(claim.low)} to {change(claim.high)}"] if math.isfinite(claim.low + claim.high) else []
    )
    evidence += [w.p_value(claim.p)] + ([f"corrected for {claim.tests} comparisons"] if claim.tests > 1 else [])
    gain = change(claim.gain) + (" points" if share else "")
    over = "over" if claim.gain >= 0 else "against"
    return f"{rows} · {title_of(metric.name)} {gain} {over} {about.against} ({', '.join(evidence)})"


def recommendation(evaluation: EvaluationManifest, recommended: str) -> str:
    """What to use, as a sentence; empty where nothing is recommended, or prices are not known."""
    prices = {entry.name: entry.usd_per_1000 for entry in evaluation.leaderboard}
    usd = prices.get(recommended)
    if usd is None or len(prices) < 2:
        return ""
    cost = f"{w.usd(usd)} for 1,000 answers"
    system = "the tuned model" if recommended == "tuned" else recommended
    verdict = evaluation.verdict
    if verdict and any(standing.outcome == "mixed" for standing in verdict.standings):  # another metric may disagree
        use = f"By {title_of(verdict.metric)}, use"
    else:
        use = "Use"
    return f" {use} {system}: the cheapest that is not significantly worse than the best, {cost}."


def costs_of(facts: f.RunFiles) -> list[tuple[str, str]]:
    """What 1,000 answers cost, next to the best prompt's price, and what making it took."""
    evaluation, costs = facts.evaluation, list[tuple[str, str]]()
    entries = {entry.name: entry for entry in evaluation.leaderboard}
    own = entries.get(evaluation.name)
    if own and own.usd_per_1000 is not None:
        costs.append(("1,000 answers", w.usd(own.usd_per_1000)))
    prompts = [e for e in entries.values() if e.kind == "prompt" and e.usd_per_1000 is not None]
    best = metric_of(evaluation.primary).lower_is_better
    if prompts and own:
        prompt = (min if best else max)(prompts, key=lambda entry: entry.value)
        costs.append((f"1,000 by {prompt.name}", w.usd(prompt.usd_per_1000)))
    seconds, usd = f.given(facts.run, "seconds"), f.given(facts.run, "usd")
    if seconds is not None:
        costs.append(("training", w.minutes(seconds / 60) + (f", {w.usd(usd)}" if usd else "")))
    return costs


def by_value(lines: Sequence[f.SystemFacts], metric: str) -> list[f.SystemFacts]:
    """The systems of a comparison, the best one first; those without a value are left out."""
    measured = [line for line in lines if line.scores and line.scores[0] is not None]
    sign = 1 if metric_of(metric).lower_is_better else -1
    return sorted(measured, key=lambda line: sign * (line.scores[0].value if line.scores[0] else math.nan))
