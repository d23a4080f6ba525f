"""`report.html` of an evaluation or a comparison by itself: one self-contained page, made from its folder's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import write_text
from tuneloop.records.evaluation import EVALUATION
from tuneloop.report.compared import compared_part
from tuneloop.report.eval_parts import evaluation_parts
from tuneloop.report.facts import RunFacts, read_run, shown_metrics, systems_of
from tuneloop.report.head import gate_part, head_part
from tuneloop.report.html import comparison_part, contents, page_template, script_part, write_report
from tuneloop.report.samples import samples_part
from tuneloop.report.table import comparison_as


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
    return page_template("eval.html.j2").render(page=page_of(facts))


def page_of(facts: RunFacts) -> dict[str, Any]:
    """Everything the template shows, computed and written out."""
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
