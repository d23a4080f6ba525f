"""`report.html` of a run, an evaluation or a comparison: one self-contained page, from its folder's files alone."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_text
from tuneloop.evaluation.metrics import metric_text, title_of, with_interval
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import EVALUATION
from tuneloop.records.run import mfu_words
from tuneloop.report import facts as f
from tuneloop.report.charts.curves import loss_chart, step_chart
from tuneloop.report.charts.svg import chart_pair
from tuneloop.report.charts.systems import forest_chart, label_chart, token_chart
from tuneloop.report.comparison import changed_settings, compared_part, comparison_as, comparison_table
from tuneloop.report.eval_parts import evaluation_parts
from tuneloop.report.head import gate_part, head_part
from tuneloop.report.samples import samples_part

if TYPE_CHECKING:
    from jinja2 import Template


def render_report(run: Path) -> str:
    """The page as text. Whatever the run has not produced yet is left out.

    Raises UserError: no such run folder, or nothing in it.
    """
    return page_template("report.html.j2").render(page=page_of(f.read_run(run)))


@functools.cache
def page_environment(*packages: str) -> Environment:
    """Where templates of these packages, and of this one, are found and how they are filled in."""
    # Autoescape: everything on the page may come from users or from a model's mouth.
    loader = ChoiceLoader([PackageLoader(package) for package in (*packages, "tuneloop.report")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"count": w.count, "metric_text": metric_text, "soft": soft, "flags": flags}
    return environment


@functools.cache
def page_template(name: str) -> Template:
    """A template of this package by its file name; the pages share `base.html.j2`."""
    return page_environment().get_template(name)


def soft(text: str) -> Markup:
    """Escaped text that may break after underscores, slashes and full stops: label names are long.

    A browser leaves `<wbr>` out of what is copied.
    """
    return Markup(re.sub(r"(?<=\w)([_/.])(?=\w)", r"\1<wbr>", str(escape(text))))


def flags(text: str) -> Markup:
    """Escaped text whose `--flags` are not broken at their hyphens."""
    return Markup(re.sub(r"(?<!\w)(--[a-z][a-z-]*)", r'<span class="flag">\1</span>', str(escape(text))))


def page_of(facts: f.RunFiles) -> dict[str, Any]:
    """Everything the template shows, computed and written out."""
    machine = facts.environment.to_json() if facts.environment else {}
    page = {
        **_shared_parts(facts), "training": _training(facts),
        "settings": changed_settings(facts.config) if facts.config else [],
        "data": _data(facts.dataset), "plan": _plan(facts), "config": yaml_text(facts.config),
        "environment": [(k, inline(v)) for k, v in machine.items() if k != "packages"],
        "packages": sorted(facts.environment.packages.items()) if facts.environment else [],
        "next": next(iter(f.next_commands(facts)), ""), "run_path": str(facts.path), "result": facts.result,
    }  # fmt: skip
    page["sections"] = contents(page)
    return page


SECTIONS = {
    "gate": "Gate", "samples": "Samples", "comparison": "Comparison", "differ": "Settings that differ",
    "overlay": "Losses",
    "labels": "Labels", "fields": "Fields", "slices": "Slices", "calibration": "Calibration",
    "errors": "Kinds of errors", "disagreements": "Disagreements", "consistency": "Consistency",
    "effects": "Side effects",
    "judge": "Judge", "costs": "Costs", "training": "Training", "settings": "Settings",
    "data": "Data", "plan": "Plan and outcome", "record": "Record",
}  # fmt: skip


def _shared_parts(facts: f.RunFiles) -> dict[str, Any]:
    metrics = f.shown_metrics(facts.evaluation)
    lines = f.systems_of(facts.evaluation, metrics)
    return {
        **head_part(facts, metrics, lines), "gate": gate_part(facts),
        "comparison": comparison_part(facts, metrics, lines), "samples": samples_part(facts),
        "parts": evaluation_parts(facts.evaluation), **script_part(),
    }  # fmt: skip


def contents(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that a page of a run or an evaluation has, in their order."""
    record = page.get("environment") or page.get("packages") or page.get("tables")
    costs = page["parts"]["leaderboard"]
    parts = {**page["parts"], **page, "settings": page.get("config"), "record": record, "costs": costs}
    return [(key, name) for key, name in SECTIONS.items() if parts.get(key)]


@functools.cache
def script_part() -> dict[str, str]:
    """The one script of a page, and its hash: the page's policy lets no other run, whatever a text holds."""
    text = (files("tuneloop.report") / "templates" / "samples.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def comparison_part(facts: f.RunFiles, metrics: Sequence[str], lines: Sequence[f.SystemFacts]) -> dict[str, Any]:
    """Systems with intervals, gain, p-value and verdict."""
    if not lines:
        return {}
    measured = [i for i in range(len(metrics)) if any(line.scores[i] is not None for line in lines)]
    evaluation = facts.evaluation
    more = [m for m in evaluation.metrics if m not in metrics]
    table = comparison_table(evaluation, metrics, lines)
    return {
        "n": evaluation.n, "split": evaluation.split, "table": table,
        "charts": [
            (title_of(metrics[i]), chart_pair(forest_chart, lines, i, metrics[i])) for i in measured
        ],
        "more": [(title_of(m), [with_interval(c.scores[0], m) for c in f.systems_of(evaluation, [m])]) for m in more],
        "names": [line.name for line in lines], "own": evaluation.name, "invalid": evaluation.invalid,
        "notes": evaluation.notes,
    }  # fmt: skip


def _training(facts: f.RunFiles) -> dict[str, Any]:
    run = facts.run
    loss_charts = chart_pair(loss_chart, facts.steps, facts.validations, facts.findings)
    small = [("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm, before clipping")]
    small.append(("tokens_per_second", "Tokens a second"))
    trio = [(title, chart) for key, title in small if (chart := step_chart(facts.steps, key, title))]
    if not loss_charts and not run:
        return {}
    stopped = {
        "finished": "after the planned steps",
        "early": "early: the validation loss no longer fell",
        "time": "when the time was up",
    }
    best, loss = f.given(run, "best_step"), f.given(run, "best_val_loss")
    losses = [(value, v.step) for v in facts.validations if (value := w.number(v.val_loss)) is not None]
    if best is None and losses:
        loss, best = min(losses, key=lambda best_pair: best_pair[0])
    plan = facts.plan
    trainable = (run and run.trainable_parameters) or (plan and plan.trainable_parameters)
    total = plan and plan.total_parameters
    share = f" of {w.short_count(total)} ({100 * trainable / total:.2g}\u00a0%)" if total and trainable else ""
    entries = [
        ("method", (run and run.method) or (plan and plan.method) or ""),
        ("trained parameters", f"{w.short_count(trainable)}{share}" if trainable else ""),
        ("steps", f"{run.steps:,}" if run else f"{facts.steps[-1].step:,} so far" if facts.steps else ""),
        ("rows seen", run.seen if run else ""),
        ("epochs", f"{n:.3g}" if (n := f.given(run, "epochs")) is not None else ""),
        ("ended", stopped.get(run.stopped, f"by a monitor: {run.stopped.replace('_', ' ')}") if run else ""),
        ("best validation loss", f"{loss:.4f} at step {best:g}" if loss is not None and best is not None else ""),
        ("tokens", f"{n:,.0f}" if (n := f.given(run, "tokens")) is not None else ""),
        ("speed", f"{run.tokens_per_second:,.0f} tokens/s" if run and run.tokens_per_second else ""),
        ("MFU", mfu_words(run.mfu) if run else ""),
    ]
    return {
        "chart": loss_charts, "trio": trio, "facts": [(k, v) for k, v in entries if v],
        "findings": facts.findings, "mfu": run.mfu.definition if run and run.mfu else "",
    }  # fmt: skip


def _data(manifest: DatasetManifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    splits = manifest.splits.by_name
    labels: Counter[str] = sum((Counter(split.labels or {}) for split in splits.values()), Counter())
    return {
        "manifest": manifest,
        "counts": [(key, manifest.counts[key]) for key in ("read", "kept", "rejected")],
        "sources": source_lines(manifest), "rejected": tally(manifest.rejected),
        "repaired": tally(manifest.repaired), "splits": split_lines(manifest),
        "labels": sorted(labels.items(), key=lambda pair: (-pair[1], pair[0])),
        "label_chart": chart_pair(label_chart, labels),
        "token_chart": tokens_of_splits(manifest),
    }  # fmt: skip


def source_lines(manifest: DatasetManifest | None) -> list[tuple[str, int, str]]:
    """Path, rows and the first digits of the hash of each source."""
    return [(source.path, source.rows, source.sha256[:12]) for source in manifest.sources] if manifest else []


def split_lines(manifest: DatasetManifest) -> list[dict[str, Any]]:
    """Rows and tokens of each split, for a table."""
    keys = ("total", "supervised", "p50", "p90", "max")
    return [
        {"name": name, "rows": split.rows, **{key: split.tokens[key] if split.tokens else None for key in keys}}
        for name, split in manifest.splits.by_name.items()
    ]


def tokens_of_splits(manifest: DatasetManifest) -> Any:
    """The tokens of the rows of each split, with the limit."""
    tokens = {name: split.tokens.to_json() if split.tokens else {} for name, split in manifest.splits.by_name.items()}
    return chart_pair(token_chart, tokens, manifest.max_length)


def tally(value: object) -> list[tuple[str, float]]:
    """(word, count) of a manifest's counts above zero, the most frequent first, underscores as spaces."""
    counts = {str(k).replace("_", " "): w.number(n) for k, n in w.section(value).items()}
    pairs = [(name, n) for name, n in counts.items() if n is not None and n > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


def _plan(facts: f.RunFiles) -> dict[str, Any]:
    lines = f.promises(facts)
    plan = facts.plan
    if plan is None:
        nothing = dict.fromkeys(("terms", "machine", "phase", "assumptions", "alternatives"))
        return {"lines": lines, **nothing, "capacity": "–"} if lines else {}
    memory = plan.memory
    terms = [(name.replace("_", " "), n) for name, n in memory.terms.items()]
    most = max((n for _, n in terms), default=0.0) or 1.0
    return {
        "lines": lines,
        "machine": plan.gpu + (f" × {plan.gpus}" if plan.gpus > 1 else ""),
        "capacity": w.gib(memory.capacity_gib),
        "phase": memory.phase,
        "terms": [(name, w.gib(n), 100 * max(n, 0.0) / most) for name, n in sorted(terms, key=lambda t: -t[1])],
        "assumptions": plan.assumptions,
        "alternatives": [inline(change.to_json()) for change in plan.alternatives],
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
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100))


def write_page(folder: Path | str) -> Path:
    """Write `report.html` of a folder: of the run, where it is one, else of the evaluation in it; again at each call.

    Raises UserError: no such folder, or it holds neither.
    """
    folder = Path(folder)
    is_run = not (folder / EVALUATION).is_file() or (folder / "config.yaml").is_file()
    write_text(folder / "report.html", render_report(folder) if is_run else render_evaluation(folder))
    return folder / "report.html"


def render_evaluation(folder: Path | str) -> str:
    """The page as text; raises `UserError` where there is no evaluation."""
    facts = f.read_run(folder)
    if not facts.evaluated:
        damaged = next((problem for problem in facts.problems if problem.startswith(EVALUATION)), "No evaluation there")
        raise UserError(damaged, where=str(folder), next_step=f"run `tuneloop evaluate {folder}` first")
    evaluation = facts.evaluation
    settings = evaluation.settings.to_json() if evaluation.settings else {}
    page = {
        **_shared_parts(facts),
        "tables": [(form, comparison_as(evaluation, form)) for form in ("markdown", "latex")],
        "settings": [(key, str(value)) for key, value in settings.items() if value and key != "labels"],
        "signatures": sorted(evaluation.signatures.items()),
        "path": str(facts.path),
        **compared_part(evaluation),
    }
    page["sections"] = contents(page)
    return page_template("eval.html.j2").render(page=page)
