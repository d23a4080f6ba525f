"""`report.html` of a run, an evaluation or a comparison: one self-contained page, made from its folder's files alone."""

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
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_text
from tuneloop.evaluation.metrics import title_of
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import EVALUATION
from tuneloop.records.run import FindingLine, Validation
from tuneloop.report import charts
from tuneloop.report.comparison import changed_settings, compared_part, comparison_as, comparison_table
from tuneloop.report.eval_parts import evaluation_parts
from tuneloop.report.facts import (
    RunFacts,
    SystemFacts,
    count,
    gib,
    given,
    next_commands,
    number,
    promises,
    read_run,
    section,
    shown_metrics,
    systems_of,
    used,
    with_interval,
)
from tuneloop.report.facts import short_count as short
from tuneloop.report.head import gate_part, head_part
from tuneloop.report.samples import samples_part

if TYPE_CHECKING:
    from jinja2 import Template


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from the files of the run; a rerun renders it again.

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
    return Markup(re.sub(r"(?<=\w)([_/.])(?=\w)", r"\1<wbr>", str(escape(text))))


def flags(text: str) -> Markup:
    """Escaped text whose `--flags` are not broken at their hyphens."""
    return Markup(re.sub(r"(?<!\w)(--[a-z][a-z-]*)", r'<span class="flag">\1</span>', str(escape(text))))


def page_of(facts: RunFacts) -> dict[str, Any]:
    """Everything the template shows, computed and written out."""
    metrics = shown_metrics(facts.evaluation)
    lines = systems_of(facts.evaluation, metrics)
    page = {
        **head_part(facts, metrics, lines),
        "gate": gate_part(facts),
        "comparison": comparison_part(facts, metrics, lines),
        "training": _training(facts),
        "samples": samples_part(facts),
        "parts": evaluation_parts(facts.evaluation),
        "settings": changed_settings(facts.config) if facts.config else [],
        "data": _data(facts),
        "plan": _plan(facts),
        "config": yaml_text(facts.config),
        "environment": [(k, inline(v)) for k, v in facts.environment.to_json().items() if k != "packages"]
        if facts.environment
        else [],
        "packages": sorted(facts.environment.packages.items()) if facts.environment else [],
        "next": next(iter(next_commands(facts)), ""),
        "run_path": str(facts.path),
        "result": facts.result,
        **script_part(),
    }
    page["sections"] = contents(page)
    return page


def contents(page: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, name) of the sections that a page of a run or an evaluation has, in their order."""
    parts = section(page.get("parts"))
    there = {
        "gate": ("Gate", page.get("gate")),
        "comparison": ("Comparison", page.get("comparison")),
        "differ": ("Settings that differ", page.get("differ")),
        "overlay": ("Losses", page.get("overlay")),
        "labels": ("Labels", parts.get("labels")),
        "fields": ("Fields", parts.get("fields")),
        "slices": ("Slices", parts.get("slices")),
        "calibration": ("Calibration", parts.get("calibration")),
        "errors": ("Kinds of errors", parts.get("errors")),
        "disagreements": ("Disagreements", parts.get("disagreements")),
        "consistency": ("Consistency", parts.get("consistency")),
        "samples": ("Samples", page.get("samples")),
        "effects": ("Side effects", parts.get("effects")),
        "production": ("Production", parts.get("production")),
        "judge": ("Judge", parts.get("judge")),
        "costs": ("Costs", parts.get("leaderboard")),
        "training": ("Training", page.get("training")),
        "settings": ("Settings", page.get("config")),
        "data": ("Data", page.get("data")),
        "plan": ("Plan and outcome", page.get("plan")),
    }
    record = page.get("environment") or page.get("packages") or page.get("tables")
    return [(key, name) for key, (name, shown) in {**there, "record": ("Record", record)}.items() if shown]


@functools.cache
def script_part() -> dict[str, str]:
    """The one script of a page, and its hash: the page's policy lets no other run, whatever a text holds."""
    text = (files("tuneloop.report") / "templates" / "samples.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return {"script": Markup(text), "script_hash": f"sha256-{digest}"}


def comparison_part(facts: RunFacts, metrics: Sequence[str], lines: Sequence[SystemFacts]) -> dict[str, Any]:
    """Systems with intervals, gain, p-value and verdict."""
    if not lines:
        return {}
    measured = [i for i in range(len(metrics)) if any(line.scores[i] is not None for line in lines)]
    shown = facts.evaluation
    more = [m for m in shown.metrics if m not in metrics]
    table = comparison_table(shown, metrics, lines)
    return {
        "n": shown.n,
        "split": shown.split,
        "table": table,
        "charts": [
            (title_of(metrics[i]), charts.chart_pair(charts.forest_chart, lines, i, metrics[i])) for i in measured
        ],
        "more": [(title_of(m), [with_interval(c.scores[0], m) for c in systems_of(shown, [m])]) for m in more],
        "names": [line.name for line in lines],
        "own": shown.name,
        "invalid": shown.invalid,
        "notes": shown.notes,
    }


def _training(facts: RunFacts) -> dict[str, Any]:
    run = facts.run
    chart = charts.chart_pair(charts.loss_chart, facts.steps, facts.validations, facts.findings)
    trio = [
        (title, drawn)
        for key, title in (
            ("learning_rate", "Learning rate"),
            ("grad_norm", "Gradient norm, before clipping"),
            ("tokens_per_second", "Tokens a second"),
        )
        if (drawn := charts.step_chart(facts.steps, key, title))
    ]
    if not chart and not run:
        return {}
    stopped = {
        "finished": "after the planned steps",
        "early": "early: the validation loss no longer fell",
        "time": "when the time was up",
    }
    best, loss = given(run, "best_step"), given(run, "best_val_loss")
    if best is None and (validation := _best(facts.validations)):
        best, loss = validation.step, validation.val_loss
    plan = facts.plan
    trainable = (run and run.trainable_parameters) or (plan and plan.trainable_parameters)
    total = plan and plan.total_parameters
    share = f" of {short(total)} ({100 * trainable / total:.2g}\u00a0%)" if total and trainable else ""
    entries = [
        ("method", (run and run.method) or (plan and plan.method) or ""),
        ("trained parameters", f"{short(trainable)}{share}" if trainable else ""),
        ("steps", f"{run.steps:,}" if run else f"{facts.steps[-1].step:,} so far" if facts.steps else ""),
        ("rows seen", run.seen if run else ""),
        ("epochs", f"{n:.3g}" if (n := given(run, "epochs")) is not None else ""),
        ("ended", stopped.get(run.stopped, f"by a monitor: {run.stopped.replace('_', ' ')}") if run else ""),
        ("best validation loss", f"{loss:.4f} at step {best:g}" if loss is not None and best is not None else ""),
        ("tokens", f"{n:,.0f}" if (n := given(run, "tokens")) is not None else ""),
        ("speed", f"{run.tokens_per_second:,.0f} tokens/s" if run and run.tokens_per_second else ""),
        ("MFU", used(run.mfu) if run else ""),
    ]
    return {
        "chart": chart,
        "trio": trio,
        "facts": [(k, v) for k, v in entries if v],
        "findings": _findings(facts.findings),
        "mfu": run.mfu.definition if run and run.mfu else "",
    }


def _findings(findings: Sequence[FindingLine]) -> list[dict[str, Any]]:
    return [
        {
            "kind": finding.finding.replace("_", " "),
            "step": finding.step,
            "sentence": finding.sentence,
            "rows": ", ".join(finding.rows),
            "remedies": [remedy for remedy in finding.remedies if not remedy.startswith("look at these rows")],
        }
        for finding in findings
    ]


def _best(validations: Sequence[Validation]) -> Validation | None:
    finite = [v for v in validations if number(v.val_loss) is not None]
    return min(finite, key=lambda v: number(v.val_loss) or 0.0) if finite else None


def _data(facts: RunFacts) -> dict[str, Any]:
    manifest = facts.dataset
    if manifest is None:
        return {}
    splits = manifest.splits.by_name
    labels: Counter[str] = sum((Counter(split.labels or {}) for split in splits.values()), Counter())
    return {
        "id": manifest.id,
        "task": manifest.task,
        "format": manifest.format.name if manifest.format else "",
        "counts": [(key, manifest.counts[key]) for key in ("read", "kept", "rejected")],
        "sources": source_lines(manifest),
        "rejected": tally(manifest.rejected),
        "repaired": tally(manifest.repaired),
        "splits": split_lines(manifest),
        "checks": manifest.checks,
        "labels": sorted(labels.items(), key=lambda pair: (-pair[1], pair[0])),
        "label_chart": charts.chart_pair(charts.label_chart, labels),
        "token_chart": token_chart(manifest),
    }


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


def token_chart(manifest: DatasetManifest) -> Any:
    """The tokens of the rows of each split, with the limit."""
    tokens = {name: split.tokens.to_json() if split.tokens else {} for name, split in manifest.splits.by_name.items()}
    return charts.chart_pair(charts.token_chart, tokens, manifest.max_length)


def tally(value: object) -> list[tuple[str, float]]:
    """(word, count) of a manifest's counts above zero, the most frequent first, underscores as spaces."""
    pairs = [(str(k).replace("_", " "), n) for k, v in section(value).items() if (n := number(v)) is not None and n > 0]
    return sorted(pairs, key=lambda pair: -pair[1])


def _plan(facts: RunFacts) -> dict[str, Any]:
    lines = promises(facts)
    plan = facts.plan
    if plan is None:
        without: dict[str, Any] = {
            "machine": "",
            "fits": None,
            "capacity": "–",
            "phase": "",
            "assumptions": [],
            "alternatives": [],
        }
        return {"lines": lines, "terms": [], **without} if lines else {}
    memory = plan.memory
    terms = [(name.replace("_", " "), n) for name, n in memory.terms.items()]
    most = max((n for _, n in terms), default=0.0) or 1.0
    return {
        "lines": lines,
        "machine": plan.gpu + (f" × {plan.gpus}" if plan.gpus > 1 else ""),
        "fits": plan.fits,
        "capacity": gib(memory.capacity_gib),
        "phase": memory.phase,
        "terms": [(name, gib(n), 100 * max(n, 0.0) / most) for name, n in sorted(terms, key=lambda t: -t[1])],
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
    """Write `report.html` of a folder: of the run, where it is one, else of the evaluation in it.

    Raises:
        UserError: no such folder, or it holds neither.
    """
    folder = Path(folder)
    if not (folder / EVALUATION).is_file() or (folder / "config.yaml").is_file():
        return write_report(folder)
    path = folder / "report.html"
    write_text(path, render_evaluation(folder))
    return path


def render_evaluation(folder: Path | str) -> str:
    """The page as text; raises `UserError` where there is no evaluation."""
    facts = read_run(folder)
    if not facts.evaluated:
        damaged = next((problem for problem in facts.problems if problem.startswith(EVALUATION)), "No evaluation there")
        raise UserError(damaged, where=str(folder), next_step=f"run `tuneloop evaluate {folder}` first")
    return page_template("eval.html.j2").render(page=_evaluation_page(facts))


def _evaluation_page(facts: RunFacts) -> dict[str, Any]:
    evaluation = facts.evaluation
    metrics = shown_metrics(evaluation)
    lines = systems_of(evaluation, metrics)
    page = {
        **head_part(facts, metrics, lines),
        "gate": gate_part(facts),
        "comparison": comparison_part(facts, metrics, lines),
        "parts": evaluation_parts(evaluation),
        "samples": samples_part(facts),
        "tables": [(form, comparison_as(evaluation, form)) for form in ("markdown", "latex")],
        "settings": [
            (key, str(value))
            for key, value in (evaluation.settings.to_json() if evaluation.settings else {}).items()
            if value and key != "labels"
        ],
        "signatures": sorted(evaluation.signatures.items()),
        "path": str(facts.path),
        **compared_part(evaluation),
        **script_part(),
    }
    page["sections"] = contents(page)
    return page
