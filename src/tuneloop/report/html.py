"""`report.html`: one self-contained page about a run, made from the run's files alone."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.files import write_text
from tuneloop.report import charts
from tuneloop.report.differences import marked_against
from tuneloop.report.eval_parts import evaluation_parts
from tuneloop.report.facts import (
    TUNED,
    ContenderFacts,
    RunFacts,
    clean,
    count,
    figure,
    gib,
    held_against,
    interval,
    is_right,
    metric_title,
    minutes,
    number,
    p_value,
    pick_samples,
    promises,
    read_run,
    sample_answers,
    score_of,
    section,
    shown_metrics,
    used,
    with_interval,
)
from tuneloop.report.facts import contenders as contenders_of
from tuneloop.report.facts import short_count as short
from tuneloop.report.facts import usd as dollars

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

LONGEST_TEXT = 4000  # characters of one sample that the page shows; the whole text is in samples.jsonl
MISSES = 12


@dataclass(frozen=True)
class KeyFigure:
    """One of the large figures under the title: name, value, and a small line of detail."""

    name: str
    value: str
    detail: str = ""


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from the files of the run; a rerun renders it anew.

    Raises:
        UserError: no such run folder, nothing in it, or it can't be written.
    """
    path = Path(run) / "report.html"
    write_text(path, render_report(run))
    return path


def render_report(run: Path) -> str:
    """The page as text. Whatever the run has not produced yet is left out.

    Raises:
        UserError: no such run folder, or nothing in it.
    """
    facts = read_run(run)
    return page_template("report.html.j2").render(page=page_of(facts))


@functools.cache
def page_template(name: str) -> Template:
    """A template of this package by its file name; the pages share `base.html.j2`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Autoescape: everything on the page may come from users or from a model's mouth.
    environment = Environment(
        loader=PackageLoader("tuneloop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = count
    environment.filters["soft"] = soft
    environment.filters["flags"] = flags
    return environment.get_template(name)


def soft(text: str) -> Markup:
    """Escaped text that may break after underscores, slashes and full stops: label names are long.

    A browser leaves `<wbr>` out of what is copied.
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=\w)([_/.])(?=\w)", r"\1<wbr>", str(escape(text))))


def flags(text: str) -> Markup:
    """Escaped text whose `--flags` are not broken at their hyphens."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<!\w)(--[a-z][a-z-]*)", r'<span class="flag">\1</span>', str(escape(text))))


def page_of(facts: RunFacts) -> dict[str, Any]:
    """Everything the template shows, computed and written out."""
    metrics = shown_metrics(facts.evaluation)
    lines = contenders_of(facts.evaluation, metrics)
    return {
        "title": _title(facts),
        "run_name": facts.path.resolve().name,
        "state": _state(facts),
        "words": words_part(facts),
        "figures": key_figures(facts, metrics, lines),
        "problems": facts.problems,
        "comparison": comparison_part(facts, metrics, lines),
        "training": _training(facts),
        "samples": samples_part(facts),
        "parts": evaluation_parts(facts.evaluation),
        "data": _data(facts),
        "plan": _plan(facts),
        "config": yaml_text(facts.config),
        "environment": [(key, inline(value)) for key, value in facts.environment.items() if key != "packages"],
        "packages": sorted(section(facts.environment.get("packages")).items()),
        "next": f"tuneloop evaluate {facts.path} --split val",
        "run_path": str(facts.path),
        "result": facts.result,
    }


def _title(facts: RunFacts) -> str:
    name = facts.dataset.get("name") or facts.config.get("name") or facts.run.get("id") or facts.path.resolve().name
    model = facts.run.get("model") or facts.config.get("model") or facts.evaluation.get("model")
    return clean(f"{name} on {model}" if model else name)


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


def words_part(facts: RunFacts) -> list[str]:
    """The verdict in words, figures kept together."""
    words = facts.evaluation.get("words") or []
    # "p < 0.001" and "[0.1, 0.2]" stay on one line.
    return [
        re.sub(r"(?<=\bp) ([<=]) (?=\d)|(?<=\d,) (?=[\d.−-]+\])", lambda m: m[0].replace(" ", "\u00a0"), str(w))
        for w in (words if isinstance(words, list) else [words])
    ]


# --- sections ----------------------------------------------------------------------------------


def key_figures(facts: RunFacts, metrics: Sequence[str], lines: Sequence[ContenderFacts]) -> list[KeyFigure]:
    """At most four figures: the first metric, the gain over the best prompting, time, memory and cost."""
    figures = []
    tuned = next((line for line in lines if line.tuned), None)
    if tuned and tuned.scores and (score := tuned.scores[0]) is not None:
        detail = f"95 % interval {interval(score, metrics[0])}" if interval(score, metrics[0]) else "tuned model"
        figures.append(KeyFigure(metric_title(metrics[0]), figure(score.value, metrics[0]), detail))
        prompted = [
            (s.value, line) for line in lines if not line.tuned and "shot" in line.name and (s := line.scores[0])
        ]
        if prompted:
            value, best = max(prompted, key=lambda pair: pair[0])
            gain = score.value - value
            detail = f"over {best.name}" + (f", {p_value(best.p)}" if best.p is not None else "")
            figures.append(KeyFigure("gain", f"{'+' if gain >= 0 else '−'}{figure(abs(gain), metrics[0])}", detail))
    elif (loss := number(facts.run.get("best_val_loss"))) is not None:
        figures.append(KeyFigure("validation loss", f"{loss:.3f}", f"best, at step {facts.run.get('best_step')}"))
    elif facts.steps:
        last = facts.steps[-1]
        figures.append(KeyFigure("training loss", figure(number(last.get("loss"))), f"at step {last['step']}"))
    promised = {p.name: p.predicted for p in promises(facts)}
    seconds = number(facts.run.get("seconds"))
    for name, shown in (
        ("training time", minutes(None if seconds is None else seconds / 60)),
        ("peak memory", gib(number(facts.run.get("peak_memory_gib")))),
        ("cost", dollars(number(facts.run.get("usd")))),
    ):
        if shown != "–":
            said = promised.get(name, "–").split("  (")[0]
            figures.append(KeyFigure(name, shown, f"predicted {said}" if said != "–" else ""))
    return figures[:5]


def comparison_part(facts: RunFacts, metrics: Sequence[str], lines: Sequence[ContenderFacts]) -> dict[str, Any]:
    """Contenders with intervals, gain, p-value and verdict."""
    if not lines:
        return {}
    measured = [i for i in range(len(metrics)) if any(line.scores[i] is not None for line in lines)]
    shown = facts.evaluation
    more = [m for m in section(shown.get("metrics")) if m not in metrics]
    rows = []
    for line in lines:
        delta = ""
        if line.delta is not None:
            sign = "+" if line.delta.value >= 0 else "−"
            delta = f"{sign}{figure(abs(line.delta.value), metrics[0])}"
        rows.append(
            {
                "name": line.name,
                "tuned": line.tuned,
                "scores": [
                    (figure(s.value, m) if s else "–", interval(s, m))
                    for s, m in zip(line.scores, metrics, strict=True)
                ],
                "delta": delta,
                "p": p_value(line.p) if line.p is not None else "",
                "verdict": line.verdict,
            }
        )
    return {
        "n": number(shown.get("n")),
        "split": shown.get("split"),
        "metrics": [metric_title(m) for m in metrics],
        "rows": rows,
        "has_p": any(r["p"] for r in rows),
        "charts": [
            (metric_title(metrics[i]), charts.chart_pair(charts.forest_chart, lines, i, metrics[i])) for i in measured
        ],
        "more": [(metric_title(m), [with_interval(c.scores[0], m) for c in contenders_of(shown, [m])]) for m in more],
        "names": [line.name for line in lines],
        "own": next((line.name for line in lines if line.tuned), TUNED),
        "against": held_against(shown),
        "invalid": number(shown.get("invalid")),
        "notes": [str(n) for n in shown.get("notes") or []] if isinstance(shown.get("notes"), list) else [],
    }


def _training(facts: RunFacts) -> dict[str, Any]:
    run = facts.run
    chart = charts.chart_pair(charts.loss_chart, facts.steps, facts.validations, facts.findings)
    if not chart and not run:
        return {}
    stopped = {
        "finished": "after the planned steps",
        "early": "early: the validation loss no longer fell",
        "time": "when the time was up",
    }
    best, loss = number(run.get("best_step")), number(run.get("best_val_loss"))
    if best is None and (best_record := _best(facts.validations)):
        best, loss = number(best_record.get("step")), number(best_record.get("val_loss"))
    trainable = number(run.get("trainable_parameters")) or number(facts.plan.get("trainable_parameters"))
    total = number(facts.plan.get("total_parameters"))
    share = f" of {short(total)} ({100 * trainable / total:.2g}\u00a0%)" if total and trainable else ""
    speed = number(run.get("tokens_per_second"))
    entries = [
        ("method", f"{run.get('method') or facts.plan.get('method') or ''}"),
        ("trained parameters", f"{short(trainable)}{share}" if trainable else ""),
        (
            "steps",
            f"{n:,.0f}"
            if (n := number(run.get("steps"))) is not None
            else (f"{facts.steps[-1]['step']:,} so far" if facts.steps else ""),
        ),
        ("epochs", f"{n:.3g}" if (n := number(run.get("epochs"))) is not None else ""),
        ("ended", stopped.get(str(run.get("stopped")), _by_watcher(run.get("stopped")))),
        ("best validation loss", f"{loss:.4f} at step {best:g}" if loss is not None and best is not None else ""),
        ("tokens", f"{n:,.0f}" if (n := number(run.get("tokens"))) is not None else ""),
        ("speed", f"{speed:,.0f} tokens/s" if speed else ""),
        ("MFU", used(facts)),
    ]
    return {
        "chart": chart,
        "facts": [(k, v) for k, v in entries if v],
        "findings": _findings(facts.findings),
        "mfu": str(section(run.get("mfu")).get("definition") or ""),
    }


def _by_watcher(reason: object) -> str:
    return f"by the watcher: {str(reason).replace('_', ' ')}" if reason else ""


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the watcher found, numbered as in the chart."""
    return [
        {
            "kind": str(f.get("finding") or "").replace("_", " "),
            "step": f.get("step"),
            "sentence": str(f.get("sentence") or ""),
            "rows": ", ".join(str(row) for row in f.get("rows") or []),
            "remedies": [str(r) for r in f.get("remedies") or [] if not str(r).startswith("look at these rows")],
        }
        for f in findings
    ]


def _best(validations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    finite = [v for v in validations if number(v.get("val_loss")) is not None]
    return min(finite, key=lambda v: float(v["val_loss"])) if finite else None


def samples_part(facts: RunFacts, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Answers side by side, confusions, and wrong answers.

    Args:
        facts: the evaluation's files.
        names: baselines to show beside the evaluation's own contender; default: zero-shot and few-shot.
    """
    if not facts.samples:
        return {}
    own, first = str(facts.evaluation.get("name") or TUNED), shown_metrics(facts.evaluation)
    wanted = number(section(facts.config.get("evaluate")).get("samples"))
    n = 5 if wanted is None else int(wanted)
    shown = pick_samples(facts.samples, n)
    wrong = [s for s in facts.samples if is_right(s) is False]
    pairs = Counter(
        (str(s.get("reference") or s.get("label")), str(s.get("prediction") or "(empty)").strip()) for s in wrong
    )
    misses = [s for s in wrong if s not in shown]
    other, disputed = _disputed(facts)
    return {
        "own": own,
        "shown": [_sample(s, own, names, first) for s in shown],
        "total": len(facts.samples),
        "wrong": len(wrong),
        "confusions": [(a, _cut(b, 200), n) for (a, b), n in pairs.most_common(10)],
        "misses": [_sample(s, own, names, first) for s in pick_samples(misses, MISSES)],
        "other": other,
        "disputed": [_sample(s, own, [other], first) for s in disputed],
    }


def _disputed(facts: RunFacts) -> tuple[str, list[dict[str, Any]]]:
    """The strongest other contender, and rows on which it and the evaluation's own differ most."""
    found, metric = section(facts.evaluation.get("disagreements")), str(facts.evaluation.get("primary") or "")
    values = {n: score_of(section(b).get(metric)) for n, b in section(facts.evaluation.get("baselines")).items()}
    scored = {name: value.value for name in found if (value := values.get(name)) is not None}
    if not scored:
        return "", []
    other = max(scored, key=lambda name: scored[name])
    rows = section(found[other]).get("rows")
    ids = [str(section(row).get("id")) for row in rows] if isinstance(rows, list) else []
    by_id = {str(sample.get("id")): sample for sample in facts.samples}
    return other, [by_id[i] for i in ids if i in by_id][:MISSES]


def _sample(sample: Mapping[str, Any], own: str, names: Sequence[str] | None, first: Sequence[str]) -> dict[str, Any]:
    """A row with its answers; of its scores those of the metrics that decide stand first."""
    answers = []
    reference = str(sample.get("reference") or sample.get("label") or "")
    for name, answer in sample_answers(sample, names):
        right = is_right(sample, None if name == TUNED else answer)
        text = _cut(answer)
        answers.append(
            {
                "name": own if name == TUNED else name,
                # A label is right or wrong as a whole.
                "parts": [("", text)] if right is not None else marked_against(reference, text),
                "right": right,
                "tuned": name == TUNED,
            }
        )
    given = section(sample.get("scores"))
    scores = [
        (metric_title(k), figure(v, k))
        for k in dict.fromkeys([*filter(given.__contains__, first), *given])
        if (v := number(given[k])) is not None
    ]
    return {
        "id": sample.get("id", ""),
        "prompt": _cut(str(sample.get("prompt") or "")),
        "reference": _cut(reference),
        "answers": answers,
        "own": own,
        "scores": scores[:4] if sample.get("label") is None else [],
    }


def _cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text, cut with a note when it is too long for the page."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({count(len(text) - longest, 'more character')} in samples.jsonl)"


def _data(facts: RunFacts) -> dict[str, Any]:
    manifest = facts.dataset
    if not manifest:
        return {}
    counts, splits = section(manifest.get("counts")), section(manifest.get("splits"))
    tokens = {name: section(section(s).get("tokens")) for name, s in splits.items()}
    labels: Counter[str] = Counter()
    for split in splits.values():
        labels.update(
            {str(k): int(n) for k, v in section(section(split).get("labels")).items() if (n := number(v)) is not None}
        )
    limit = number(section(section(manifest.get("config"))).get("max_length"))
    # Quantiles of a share of the rows are noise below a handful; the figures stand in the table anyway.
    table = [
        {
            "name": name,
            "rows": number(section(split).get("rows")),
            **{key: number(tokens[name].get(key)) for key in ("total", "supervised", "p50", "p90", "max")},
        }
        for name, split in splits.items()
    ]
    return {
        "id": manifest.get("id", ""),
        "task": manifest.get("task", ""),
        "format": _format(manifest.get("format")),
        "counts": [(key, n) for key in ("read", "kept", "rejected") if (n := number(counts.get(key))) is not None],
        "sources": [
            (str(s.get("path", "")), number(s.get("rows")), str(s.get("sha256", ""))[:12])
            for s in manifest.get("sources") or []
            if isinstance(s, dict)
        ],
        "rejected": tally(manifest.get("rejected")),
        "repaired": tally(manifest.get("repaired")),
        "splits": table,
        "checks": [c for c in manifest.get("checks") or [] if isinstance(c, dict)],
        "labels": sorted(labels.items(), key=lambda pair: (-pair[1], pair[0])),
        "label_chart": charts.chart_pair(charts.label_chart, labels),
        "token_chart": charts.chart_pair(charts.token_chart, tokens, limit),
    }


def _format(value: object) -> str:
    """`format` of a data set: a name, or a name with how it was guessed."""
    if isinstance(value, Mapping):
        return str(value.get("name") or "")
    return str(value or "")


def tally(value: object) -> list[tuple[str, float]]:
    """(word, count) of a manifest's counts above zero, the most frequent first, underscores as spaces."""
    pairs = [(str(k).replace("_", " "), n) for k, v in section(value).items() if (n := number(v)) is not None and n > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


def _plan(facts: RunFacts) -> dict[str, Any]:
    lines = promises(facts)
    plan = facts.plan
    terms = [
        (str(k).replace("_", " "), n)
        for k, v in section(section(plan.get("memory")).get("terms")).items()
        if (n := number(v)) is not None
    ]
    if not lines and not terms:
        return {}
    most = max((n for _, n in terms), default=0.0) or 1.0
    gpus = number(plan.get("gpus"))
    machine = str(plan.get("gpu") or "") + (f" × {gpus:.0f}" if gpus and gpus > 1 else "")
    return {
        "lines": lines,
        "machine": machine,
        "fits": plan.get("fits"),
        "capacity": gib(number(section(plan.get("memory")).get("capacity_gib"))),
        "phase": section(plan.get("memory")).get("phase") or "",
        "terms": [(name, gib(n), 100 * max(n, 0.0) / most) for name, n in sorted(terms, key=lambda t: -t[1])],
        "assumptions": [inline(a) for a in plan.get("assumptions") or []],
        "alternatives": [inline(a) for a in plan.get("alternatives") or []],
    }


def inline(value: Any) -> str:
    """A JSON-like value on one line: `name: value, ...`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inline(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(inline(item) for item in value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return "–" if value is None else str(value)


def yaml_text(config: Mapping[str, Any]) -> str:
    """A config as YAML; an empty string for an empty one."""
    if not config:
        return ""
    import yaml

    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100))
