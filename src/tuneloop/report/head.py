"""The head of a page about a run or an evaluation: the verdict as its title, then what it rests on."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from markupsafe import Markup

from tuneloop.core import written as w
from tuneloop.core.files import sha256_file
from tuneloop.evaluation.metrics import interval, metric_text, signed, title_of
from tuneloop.records.evaluation import EVALUATION, EvaluationManifest
from tuneloop.report import facts as f
from tuneloop.report.answer import Answer, answer_of, by_value
from tuneloop.report.charts.svg import chart_pair
from tuneloop.report.charts.systems import forest_chart

FEW_ROWS = 200  # test rows below which the page says how little they can show
LONG_TITLE = 60  # characters from which a title is set smaller; of one with a colon, of what is before it


@dataclass(frozen=True)
class KeyNumber:
    """One of the large numbers under the title: name, value, and a small line of detail."""

    name: str
    value: str
    detail: str = ""


def head_part(facts: f.RunFiles, metrics: Sequence[str], lines: Sequence[f.SystemFacts]) -> dict[str, Any]:
    """Title, place, words, key numbers, baselines and warnings."""
    evaluation, run = facts.evaluation, bool(facts.run or facts.config or facts.steps)
    kind = f"run {facts.path.resolve().name}" if run else f"evaluation of {evaluation.name or facts.path.name}"
    data = (facts.dataset and facts.dataset.id) or evaluation.dataset
    state = "Training has not finished." if facts.steps else "Training has not begun."
    if facts.run:
        trained = facts.run.status in ("finished", "done")
        state = "Trained; not evaluated yet." if trained else f"Status: {facts.run.status}."
    subtitle = w.clean(" · ".join(["tuneloop " + kind, *filter(None, (model_name(facts.model), data))]))
    name = facts.dataset and facts.dataset.name
    name = name or facts.config.get("name") or (facts.run and facts.run.id) or facts.path.resolve().name
    subject = w.clean(f"{name} on {model_name(facts.model)}" if facts.model else name)
    title, *sentences = verdict_words(facts.evaluation) or [subject]
    answer = answer_of(facts)
    first, colon, rest = title.partition(": ")
    short = colon and len(first) <= LONG_TITLE
    return {
        "title": answer.verdict + ": " + name if answer else title, "answer": answer, "subject": subject,
        "answer_chart": answer and first_chart(answer, facts, lines, metrics[0]), "statistics": [title, *sentences],
        "headline": (first, keep_together(rest)) if short else (keep_together(title), ""),
        "place": subtitle, "words": [keep_together(word) for word in sentences],
        "state": "" if facts.evaluated else state,
        "few": few_rows(facts.evaluation, metrics, rival(facts.evaluation, lines)),
        "limit": facts.time.words if facts.time else [], "numbers": key_numbers(facts, metrics, lines),
        "baselines": [
            (line.name, metric_text(line.scores[0].value, metrics[0]))
            for line in lines if not line.tuned and line.scores and line.scores[0]
        ],
        "metric": title_of(metrics[0]) if metrics else "", "problems": facts.problems,
    }  # fmt: skip


def first_chart(answer: Answer, facts: f.RunFiles, lines: Sequence[f.SystemFacts], metric: str) -> Markup:
    """All systems by the metric that decides, the best one on top, the recommended one marked."""
    draw = functools.partial(forest_chart, recommended=answer.recommended)
    return chart_pair(draw, by_value(lines, metric), 0, metric)


def verdict_words(evaluation: EvaluationManifest) -> list[str]:
    """The verdict in one sentence, then what else the evaluation says in words; empty without an evaluation."""
    verdict = f.verdict_line(evaluation)
    return [verdict, *(word for word in evaluation.words if word != verdict)] if verdict else []


def keep_together(text: str) -> str:
    """Text in which "p < 0.001" and "[0.1, 0.2]" stay on one line."""
    return re.sub(r"(?<=\bp) ([<=]) (?=\d)|(?<=\d,) (?=[\d.−-]+\])", lambda m: m[0].replace(" ", "\u00a0"), text)


def model_name(text: object) -> str:
    """A model as people name it: of a path into a cache only the name, `org/name` of a hub's cache."""
    path = PurePosixPath(w.clean(text or ""))
    hub = next((part for part in path.parts if part.startswith("models--")), "")
    if hub:
        return hub.removeprefix("models--").replace("--", "/")
    return path.name if path.is_absolute() else str(text or "")


def few_rows(evaluation: EvaluationManifest, metrics: Sequence[str], against: f.SystemFacts | None) -> str:
    """How little a small test set can show of a difference from `against`; empty for a large one."""
    n = evaluation.n
    score = f.finite(evaluation.metrics.get(metrics[0])) if metrics else None
    if not n or n >= FEW_ROWS or score is None:
        return ""
    bounds = interval(score, metrics[0])
    text = f"A small test set: {w.count(n, 'row')}."
    text += f" On other rows of the same kind {title_of(metrics[0])} may be anywhere in {bounds}." if bounds else ""
    both = {against.name, evaluation.name} if against else set()
    pairs = [pair for pair in evaluation.comparisons if pair.metric == metrics[0] and {pair.a, pair.b} == both]
    smallest = next((value for pair in pairs if (value := w.number(pair.detectable)) is not None), None)
    if against and smallest is not None:
        least = metric_text(smallest, metrics[0])
        text += f" A difference from {against.name} below {least} would hardly have been seen."
    return keep_together(text)


def key_numbers(facts: f.RunFiles, metrics: Sequence[str], lines: Sequence[f.SystemFacts]) -> list[KeyNumber]:
    """At most six: the metric that decides, the gain, what was seen of the data, time, memory and cost."""
    numbers = []
    tuned = next((line for line in lines if line.tuned), None)
    if tuned and tuned.scores and (score := tuned.scores[0]) is not None:
        bounds, value = interval(score, metrics[0]), metric_text(score.value, metrics[0])
        numbers.append(KeyNumber(title_of(metrics[0]), value, f"95 % interval {bounds}" if bounds else ""))
        best = rival(facts.evaluation, lines)
        # Each line has the gain over it; where all are compared with one system, its own gain over that one.
        line = tuned if f.reference_system(facts.evaluation) else best
        if best and line and line.delta:
            detail = f"over {best.name}" + (f", {w.p_value(line.p)}" if line.p is not None else "")
            numbers.append(KeyNumber("gain", signed(line.delta.value, metrics[0]), keep_together(detail)))
    elif facts.run and (loss := f.given(facts.run, "best_val_loss")) is not None:
        numbers.append(KeyNumber("validation loss", f"{loss:.3f}", f"best, at step {facts.run.best_step}"))
    elif facts.steps:
        last = facts.steps[-1]
        numbers.append(KeyNumber("training loss", metric_text(w.number(last.loss)), f"at step {last.step}"))
    run, seen = facts.run, f.given(facts.run, "rows_seen")
    if run and run.rows and seen is not None:
        percent = 100 * seen / run.rows
        value = f"{percent:.1f} %" if percent < 10 else f"{min(percent, 100):.0f} %"
        detail = run.seen if seen >= run.rows else f"{seen:,.0f} of {run.rows:,.0f}"
        numbers.append(KeyNumber("training rows seen", value, detail))
    promised = {p.name: p.predicted for p in f.promises(facts)}
    seconds = f.given(facts.run, "seconds")
    for name, value in (
        ("training time", w.minutes(None if seconds is None else seconds / 60)),
        ("peak memory", w.gib(f.given(facts.run, "peak_memory_gib"))),
        ("cost", w.usd(f.given(facts.run, "usd"))),
    ):
        if value != "–":
            prediction = promised.get(name, "–").split("  (")[0]
            numbers.append(KeyNumber(name, value, f"predicted {prediction}" if prediction != "–" else ""))
    return numbers[:6]


def rival(evaluation: EvaluationManifest, lines: Sequence[f.SystemFacts]) -> f.SystemFacts | None:
    """The alternative that the verdict is about, else the best one by prompting, else the best one; None without any.

    Where all are compared with one system, it is that one.
    """
    if first := f.reference_system(evaluation):
        return next((line for line in lines if line.name == first), None)
    opponent = evaluation.verdict.against if evaluation.verdict else None
    others = [line for line in lines if not line.tuned and line.delta is not None and line.scores[0]]
    prompted = [line for line in others if "shot" in line.name] or others
    return next((line for line in others if line.name == opponent), None) or max(
        prompted, key=lambda line: line.scores[0].value if line.scores[0] else 0.0, default=None
    )


GATE = {
    "pass": "✓ The gate is passed", "fail": "✗ The gate is failed",
    "inconclusive": "? The gate has not enough evidence",
}  # fmt: skip


def gate_part(facts: f.RunFiles) -> dict[str, Any]:
    """What the gate said of this run, and whether of this evaluation."""
    gate = facts.gate
    if gate is None:
        return {}
    evaluation = Path(facts.path) / EVALUATION
    stale = not evaluation.is_file() or sha256_file(evaluation) != gate.evaluation
    marks = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? not enough evidence"}
    return {
        "status": gate.status, "words": GATE[gate.status], "stale": stale,
        "suite": gate.suite.name if gate.suite else "", "against": gate.against.place,
        "created": gate.created.replace("T", " ")[:16],
        "checks": [
            (check.status, marks[check.status], check.message or check.name)
            for check in sorted(gate.checks, key=lambda check: check.status == "pass")
        ],
        "flaky": [f"{row.row}: passed {row.passed} of {row.asked} times" for row in gate.flaky],
    }  # fmt: skip
