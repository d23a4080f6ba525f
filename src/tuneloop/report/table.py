"""The comparison as a table to paste elsewhere: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tuneloop.evaluate.metrics import title_of
from tuneloop.report.facts import (
    ContenderFacts,
    contenders,
    figure,
    gain_header,
    interval,
    p_value,
    section,
    shown_metrics,
)

Format = Literal["markdown", "latex", "csv"]
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$", "−": "$-$"}  # fmt: skip


def comparison_as(evaluation: Mapping[str, Any], form: Format, metrics: Sequence[str] | None = None) -> str:
    """Contenders as rows; metrics with their 95 % intervals, then gain, p-value and verdict of the comparison as columns.

    Args:
        evaluation: `eval.json`.
        form: `markdown`, `latex` (needs the package booktabs), or `csv` (all metrics, bounds in columns of their own).
        metrics: the columns; default: the two or three that matter.
    """
    if form == "csv":
        return _csv(evaluation, metrics or list(section(evaluation.get("metrics"))))
    metrics = list(metrics or shown_metrics(evaluation))
    lines = contenders(evaluation, metrics)
    has_p = any(line.p is not None for line in lines)
    gain, _ = gain_header(evaluation)
    head = ["", *(title_of(m) for m in metrics), *([gain, "p", "verdict"] if has_p else [])]
    rows = [
        [
            line.name,
            *(f"{figure(s.value, m)} {interval(s, m)}".strip() if s else "–" for s, m in zip(line.scores, metrics, strict=True)),
            *(_compared(line, metrics[0]) if has_p else []),
        ]
        for line in lines
    ]  # fmt: skip
    return _markdown(head, rows) if form == "markdown" else _latex(head, rows)


def _compared(line: ContenderFacts, metric: str) -> list[str]:
    if line.delta is None or line.p is None:
        return [""] * 3
    bounds = f"[{figure(line.delta.low, metric)}, {figure(line.delta.high, metric)}]"
    sign = "+" if line.delta.value >= 0 else ""
    return [
        f"{sign}{figure(line.delta.value, metric)} {bounds}",
        p_value(line.p).removeprefix("p ").removeprefix("= "),
        line.verdict,
    ]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)]) + "\n"


def _latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in " ".join(cell.split())) for cell in cells) + r" \\"

    columns = "l" * len(head)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(head), r"\midrule", *map(line, rows), r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}"]) + "\n"


def _csv(evaluation: Mapping[str, Any], metrics: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    beside = ["gain", "gain_low", "gain_high", "p", "verdict"]
    writer.writerow(["contender", *(f"{m}{part}" for m in metrics for part in ("", "_low", "_high")), *beside])
    for line in contenders(evaluation, metrics):
        cells = [v for s in line.scores for v in ((s.value, s.low, s.high) if s else (None,) * 3)]
        # A name that a spreadsheet would take for a formula is text.
        name = re.sub(r"^(?=[=+\-@\t\r])", "'", line.name)
        gain = line.delta
        cells += [gain.value, gain.low, gain.high, line.p] if gain else [None] * 4
        writer.writerow([name, *("" if v is None or v != v else f"{v:.6g}" for v in cells), line.verdict])
    return out.getvalue()
