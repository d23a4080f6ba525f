"""The comparison as one table, which the page, the terminal, Markdown, LaTeX and CSV show."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from tuneloop.core.files import plain_cell
from tuneloop.evaluate.metrics import title_of
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.report.facts import (
    SystemFacts,
    figure,
    gain_header,
    interval,
    p_value,
    shown_metrics,
    signed,
    systems_of,
)

Format = Literal["markdown", "latex", "csv"]
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$", "−": "$-$"}  # fmt: skip
LONGEST_NAME = 24  # columns of a name before it is folded, where verdicts are shown
VERDICT = 10  # columns of "not enough", the longest word pair of a verdict
BETWEEN = 3  # columns that a cell takes apart from its text
GAIN_AND_P = 24  # columns that the gain and the p-value take, with their padding

Cell = tuple[str, str]  # a figure and its 95 % interval, written out


@dataclass(frozen=True)
class Line:
    """One system: each metric, its gain, and the gain's p-value and verdict."""

    name: str
    scores: tuple[Cell, ...]
    gain: Cell
    p: str
    verdict: str
    tuned: bool


@dataclass(frozen=True)
class ComparisonTable:
    """Systems as lines.

    Args:
        metrics: titles of the columns.
        gain, note: what the gains are, for a column's head and in a sentence or two.
    """

    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    gain: str
    note: str

    @property
    def compared(self) -> bool:
        """Whether there is any comparison."""
        return any(line.p for line in self.lines)


def comparison_table(
    evaluation: EvaluationManifest, metrics: Sequence[str], systems: Sequence[SystemFacts] | None = None
) -> ComparisonTable:
    """The table of an `eval.json`; the gain is by the first metric."""
    lines = []
    for system in systems_of(evaluation, metrics) if systems is None else systems:
        gain = system.delta
        lines.append(
            Line(
                name=system.name,
                scores=tuple(
                    (figure(s.value if s else None, m), interval(s, m))
                    for s, m in zip(system.scores, metrics, strict=True)
                ),
                gain=(signed(gain.value, metrics[0]), interval(gain, metrics[0])) if gain else ("", ""),
                p="" if system.p is None else p_value(system.p),
                verdict=system.verdict,
                tuned=system.tuned,
            )
        )
    gain_head, note = gain_header(evaluation)
    return ComparisonTable(tuple(map(title_of, metrics)), tuple(lines), gain_head, note)


def comparison_as(evaluation: EvaluationManifest, form: Format, metrics: Sequence[str] | None = None) -> str:
    """Systems as rows; metrics with their 95 % intervals, then gain, p-value and verdict of the comparison as columns.

    Args:
        evaluation: `eval.json`.
        form: `markdown`, `latex` (needs the package booktabs), or `csv` (all metrics, bounds in columns of their own).
        metrics: the columns; default: the two or three that matter.
    """
    if form == "csv":
        return _csv(evaluation, metrics or list(evaluation.metrics))
    table = comparison_table(evaluation, metrics or shown_metrics(evaluation))
    head = ["", *table.metrics, *([table.gain, "p", "verdict"] if table.compared else [])]
    rows = []
    for line in table.lines:
        cells = [line.name, *(" ".join(cell).strip() for cell in line.scores)]
        if table.compared:
            p = line.p.removeprefix("p ").removeprefix("= ")
            cells += [" ".join(line.gain).replace("−", "-"), p, line.verdict] if line.p and line.gain[0] else [""] * 3
        rows.append([" ".join(cell.split()) for cell in cells])
    return _markdown(head, rows) if form == "markdown" else _latex(head, rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + " --- |" * len(head), *map(line, rows)]) + "\n"


def _latex(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    columns = "l" * len(head)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(head), r"\midrule", *map(line, rows), r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}"]) + "\n"


def _csv(evaluation: EvaluationManifest, metrics: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    last = ["gain", "gain_low", "gain_high", "p", "verdict"]
    writer.writerow(["system", *(plain_cell(f"{m}{part}") for m in metrics for part in ("", "_low", "_high")), *last])
    for line in systems_of(evaluation, metrics):
        cells = [v for s in line.scores for v in ((s.value, s.low, s.high) if s else (None,) * 3)]
        gain = line.delta
        cells += [gain.value, gain.low, gain.high, line.p] if gain else [None] * 4
        writer.writerow(
            [plain_cell(line.name), *("" if v is None or v != v else f"{v:.6g}" for v in cells), line.verdict]
        )
    return out.getvalue()


# --- on the terminal ---------------------------------------------------------------------------


def on_terminal(table: ComparisonTable, width: int, *, title: str = "", verdicts: bool = False) -> Table:
    """The table for a terminal: gains and p-values alone, or (`verdicts`) gains with their intervals and the verdicts too.

    Intervals stand below their figures where verdicts are shown or the terminal is narrow.
    """
    names = max([len(line.name) for line in table.lines] + [10])
    widest = [max(len(" ".join(line.scores[i]).strip()) + 3 for line in table.lines) for i in range(len(table.metrics))]
    below = verdicts or names + sum(widest) + GAIN_AND_P > width
    shown = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    if verdicts:
        shown.add_column("", overflow="fold", max_width=LONGEST_NAME)
    else:
        shown.add_column("", overflow="fold", min_width=min(names, width // 3))
    last = ["gain", "verdict"] if verdicts else ["gain", "p-value"] if table.compared else []
    for head in [*table.metrics, *last]:
        shown.add_column(head, justify="left" if verdicts or head in table.metrics else "right", no_wrap=True)
    for line in table.lines:
        cells = [Text(line.name)]
        for value, bounds in line.scores:
            cell = Text(value)
            if bounds or verdicts:
                cell.append(("\n" if below else " ") + bounds, style="" if line.tuned or verdicts else "dim")
            cells.append(cell)
        if verdicts:
            verdict = f"{textwrap.fill(line.verdict, VERDICT)}\n{line.p}" if line.p else ""
            cells += [Text("\n".join(line.gain).strip().replace("−", "-")), Text(verdict)]
        elif table.compared:
            cells += [Text(line.gain[0]), Text(line.p)]
        shown.add_row(*cells, style="bold green" if line.tuned and not verdicts else "")
    return shown


def metrics_that_fit(table: ComparisonTable, width: int, most: int) -> int:
    """How many metrics' columns fit between name, gain and verdict; at least one, at most `most`."""

    def widest(texts: Sequence[str]) -> int:
        return max(map(len, texts)) + BETWEEN

    names = min(widest([line.name for line in table.lines]), LONGEST_NAME + BETWEEN)
    room = width - names - widest([text for line in table.lines for text in (*line.gain, "gain")]) - VERDICT - BETWEEN
    for i, title in enumerate(table.metrics[:most]):
        room -= widest([title, *(text for line in table.lines for text in line.scores[i])])
        if room < 0:
            return max(i, 1)
    return min(len(table.metrics), most)
