"""The head of a page about a run or an evaluation: the verdict as its title, then what it rests on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tuneloop.core.files import sha256_file
from tuneloop.evaluate.metrics import title_of
from tuneloop.report.facts import (
    RunFacts,
    SystemFacts,
    clean,
    count,
    figure,
    gib,
    interval,
    limit_words,
    minutes,
    number,
    p_value,
    promises,
    score_of,
    section,
    signed,
    usd,
    verdict_line,
)

FEW_ROWS = 200  # test rows below which the page says how little they can show
LONG_TITLE = 60  # characters from which a title is set smaller; of one with a colon, of what stands before it


@dataclass(frozen=True)
class KeyFigure:
    """One of the large figures under the title: name, value, and a small line of detail."""

    name: str
    value: str
    detail: str = ""


def head_part(facts: RunFacts, metrics: Sequence[str], lines: Sequence[SystemFacts]) -> dict[str, Any]:
    """Title, place, words, figures, baselines and warnings."""
    title, *words = verdict_words(facts.evaluation) or [_subject(facts)]
    first, colon, rest = title.partition(": ")
    short = colon and len(first) <= LONG_TITLE
    return {
        "title": title,
        "headline": (first, keep_together(rest)) if short else (keep_together(title), ""),
        "place": _place(facts),
        "words": [keep_together(word) for word in words],
        "state": _state(facts),
        "few": few_rows(facts.evaluation, metrics, rival(facts.evaluation, lines)),
        "limit": limit_words(facts),
        "figures": key_figures(facts, metrics, lines),
        "baselines": [
            (line.name, figure(line.scores[0].value, metrics[0]))
            for line in lines
            if not line.tuned and line.scores and line.scores[0]
        ],
        "metric": title_of(metrics[0]) if metrics else "",
        "problems": facts.problems,
    }


def verdict_words(evaluation: Mapping[str, Any]) -> list[str]:
    """The verdict in one sentence, then what else the evaluation says in words; empty without an evaluation."""
    words = evaluation.get("words") or []
    said = [str(w) for w in (words if isinstance(words, list) else [words])]
    verdict = verdict_line(evaluation) or (said[0] if said else "")
    return [verdict, *(w for w in said if w != verdict)] if verdict else []


def keep_together(text: str) -> str:
    """Text in which "p < 0.001" and "[0.1, 0.2]" stay on one line."""
    return re.sub(r"(?<=\bp) ([<=]) (?=\d)|(?<=\d,) (?=[\d.−-]+\])", lambda m: m[0].replace(" ", "\u00a0"), text)


def model_name(text: object) -> str:
    """A model as people name it: of a path into a cache only the name, `org/name` of a hub's cache."""
    path = PurePosixPath(clean(text or ""))
    hub = next((part for part in path.parts if part.startswith("models--")), "")
    if hub:
        return hub.removeprefix("models--").replace("--", "/")
    return path.name if path.is_absolute() else str(text or "")


def _subject(facts: RunFacts) -> str:
    """What was trained on what, for a page without a verdict."""
    name = (
        (facts.dataset and facts.dataset.name)
        or facts.config.get("name")
        or facts.run.get("id")
        or facts.path.resolve().name
    )
    model = facts.run.get("model") or facts.config.get("model") or facts.evaluation.get("model")
    return clean(f"{name} on {model_name(model)}" if model else name)


def _place(facts: RunFacts) -> str:
    """The line above the title: which run or evaluation, of which model, on which data."""
    evaluation, run = facts.evaluation, bool(facts.run or facts.config or facts.steps)
    kind = f"run {facts.path.resolve().name}" if run else f"evaluation of {evaluation.get('name') or facts.path.name}"
    model = model_name(facts.run.get("model") or facts.config.get("model") or evaluation.get("model"))
    data = (facts.dataset and facts.dataset.id) or evaluation.get("dataset") or ""
    return clean(" · ".join(["tuneloop " + kind, *filter(None, (model, str(data)))]))


def _state(facts: RunFacts) -> str:
    """What is still missing, or an empty string for a whole run."""
    if facts.evaluation:
        return ""
    if not facts.run:
        return "Training has not finished." if facts.steps else "Training has not begun."
    return (
        "Trained; not evaluated yet."
        if facts.run.get("status") in ("finished", "done", None)
        else f"Status: {facts.run['status']}."
    )


def few_rows(evaluation: Mapping[str, Any], metrics: Sequence[str], against: SystemFacts | None) -> str:
    """How little a small test set can show of a difference from `against`; empty for a large one."""
    n = number(evaluation.get("n"))
    own = score_of(section(evaluation.get("metrics")).get(metrics[0])) if metrics else None
    if not n or n >= FEW_ROWS or own is None:
        return ""
    bounds = interval(own, metrics[0])
    text = f"A small test set: {count(n, 'row')}."
    text += f" On other rows of the same kind {title_of(metrics[0])} may be anywhere in {bounds}." if bounds else ""
    smallest = next(
        (
            value
            for pair in evaluation.get("comparisons") or []
            if against and pair.get("metric") == metrics[0] and against.name in (pair.get("a"), pair.get("b"))
            and (value := number(pair.get("detectable"))) is not None
        ),
        None,
    )  # fmt: skip
    if smallest is not None and against:
        text += f" A difference from {against.name} below {figure(smallest, metrics[0])} would hardly have been seen."
    return keep_together(text)


def key_figures(facts: RunFacts, metrics: Sequence[str], lines: Sequence[SystemFacts]) -> list[KeyFigure]:
    """At most six figures: the metric that decides, the gain, what was seen of the data, time, memory and cost."""
    figures = []
    tuned = next((line for line in lines if line.tuned), None)
    if tuned and tuned.scores and (score := tuned.scores[0]) is not None:
        bounds = interval(score, metrics[0])
        figures.append(KeyFigure(title_of(metrics[0]), figure(score.value, metrics[0]), f"95 % interval {bounds}" if bounds else ""))  # fmt: skip
        figures += _gain(facts, lines, metrics[0])
    elif (loss := number(facts.run.get("best_val_loss"))) is not None:
        figures.append(KeyFigure("validation loss", f"{loss:.3f}", f"best, at step {facts.run.get('best_step')}"))
    elif facts.steps:
        last = facts.steps[-1]
        figures.append(KeyFigure("training loss", figure(number(last.get("loss"))), f"at step {last['step']}"))
    figures += _seen(facts.run)
    promised = {p.name: p.predicted for p in promises(facts)}
    seconds = number(facts.run.get("seconds"))
    for name, shown in (
        ("training time", minutes(None if seconds is None else seconds / 60)),
        ("peak memory", gib(number(facts.run.get("peak_memory_gib")))),
        ("cost", usd(number(facts.run.get("usd")))),
    ):
        if shown != "–":
            said = promised.get(name, "–").split("  (")[0]
            figures.append(KeyFigure(name, shown, f"predicted {said}" if said != "–" else ""))
    return figures[:6]


def rival(evaluation: Mapping[str, Any], lines: Sequence[SystemFacts]) -> SystemFacts | None:
    """The alternative that the verdict is about, else the best one by prompting, else the best one; None without any."""
    named = section(evaluation.get("verdict")).get("against")
    others = [line for line in lines if not line.tuned and line.delta is not None and line.scores[0]]
    prompted = [line for line in others if "shot" in line.name] or others
    return next((line for line in others if line.name == named), None) or max(
        prompted, key=lambda line: line.scores[0].value if line.scores[0] else 0.0, default=None
    )


def _gain(facts: RunFacts, lines: Sequence[SystemFacts], metric: str) -> list[KeyFigure]:
    best = rival(facts.evaluation, lines)
    if best is None or best.delta is None:
        return []
    detail = f"over {best.name}" + (f", {p_value(best.p)}" if best.p is not None else "")
    return [KeyFigure("gain", signed(best.delta.value, metric), keep_together(detail))]


def _seen(run: Mapping[str, Any]) -> list[KeyFigure]:
    """What share of the training rows a step learned from."""
    seen, rows, words = number(run.get("rows_seen")), number(run.get("rows")), str(run.get("seen") or "")
    if not rows or seen is None:
        return []
    percent = 100 * seen / rows
    value = f"{percent:.1f} %" if percent < 10 else f"{min(percent, 100):.0f} %"
    return [KeyFigure("training rows seen", value, words if seen >= rows else f"{seen:,.0f} of {rows:,.0f}")]


# --- the gate ----------------------------------------------------------------------------------

GATE = {"pass": "✓ The gate is passed", "fail": "✗ The gate is failed", "inconclusive": "? The gate has not enough evidence"}  # fmt: skip


def gate_part(facts: RunFacts) -> dict[str, Any]:
    """What the gate said of this run, and whether of this evaluation."""
    gate = facts.gate
    checks = gate.get("checks")
    if gate.get("status") not in GATE or not isinstance(checks, list):
        return {}
    evaluation = Path(facts.path) / "eval.json"
    stale = not evaluation.is_file() or sha256_file(evaluation) != gate.get("evaluation")
    marks = {"pass": "✓ pass", "fail": "✗ fail", "inconclusive": "? not enough evidence"}
    return {
        "status": gate["status"],
        "words": GATE[gate["status"]],
        "stale": stale,
        "suite": str(section(gate.get("suite")).get("name") or ""),
        "against": str(section(gate.get("against")).get("place") or ""),
        "created": str(gate.get("created") or "").replace("T", " ")[:16],
        "checks": [
            (str(c.get("status")), marks.get(str(c.get("status")), ""), str(c.get("message") or c.get("name") or ""))
            for c in sorted(filter(_is_mapping, checks), key=lambda c: c.get("status") == "pass")
        ],
        "flaky": [f"{section(f).get('row')}: passed {section(f).get('passed')} of {section(f).get('asked')} times" for f in gate.get("flaky") or []],
    }  # fmt: skip


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)
