"""The comparison as one table (page, terminal, Markdown, LaTeX, CSV), and what else differs: settings and losses."""

from __future__ import annotations

import contextlib
import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from tuneloop.core import written as w
from tuneloop.core.errors import UserError
from tuneloop.core.files import FROM_FILE, plain_cell
from tuneloop.core.units import counted
from tuneloop.evaluation.metrics import gain_interval, interval, metric_text, signed, title_of
from tuneloop.recipe import Recipe
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.report import facts as f
from tuneloop.report.charts.curves import MOST_RUNS, Curve, overlay_chart, points_of
from tuneloop.report.charts.svg import chart_pair

if TYPE_CHECKING:
    from rich.console import Console


Format = Literal["markdown", "latex", "csv"]
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$", "−": "$-$"}  # fmt: skip
LONGEST_NAME = 24  # columns of a name before it is folded, where verdicts are shown
NARROWEST_NAME = 12  # columns that names are folded to at most
VERDICT = 10  # columns of "not enough", the longest word pair of a verdict
BETWEEN, EDGES = 3, 2  # columns between cells, and at the table's two sides
PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1)}

Cell = tuple[str, str]  # a value and its 95 % interval, written out


@dataclass(frozen=True)
class ComparisonLine:
    """One system."""

    name: str
    scores: tuple[Cell, ...]  # of each metric
    gain: Cell  # gain, p, verdict: of the comparison
    p: str
    verdict: str
    tuned: bool


@dataclass(frozen=True)
class ComparisonTable:
    """Systems as lines."""

    metrics: tuple[str, ...]  # titles of the columns
    lines: tuple[ComparisonLine, ...]
    gain: str  # gain, note: what the gains are, for a column's head and in a sentence or two
    note: str

    @property
    def compared(self) -> bool:
        """Whether there is any comparison."""
        return any(line.p for line in self.lines)


def comparison_table(
    evaluation: EvaluationManifest, metrics: Sequence[str], systems: Sequence[f.SystemFacts] | None = None
) -> ComparisonTable:
    """The table of an `eval.json`; the gain is by the first metric."""
    lines = []
    for system in f.systems_of(evaluation, metrics) if systems is None else systems:
        pairs = zip(system.scores, metrics, strict=True)
        scores = tuple((metric_text(s.value if s else None, m), interval(s, m)) for s, m in pairs)
        gain = ("", "")
        if system.delta:
            gain = signed(system.delta.value, metrics[0]), gain_interval(system.delta, metrics[0])
        p = "" if system.p is None else w.p_value(system.p)
        lines.append(ComparisonLine(system.name, scores, gain, p, system.verdict, system.tuned))
    return ComparisonTable(tuple(map(title_of, metrics)), tuple(lines), *f.gain_header(evaluation))


def comparison_as(evaluation: EvaluationManifest, form: Format, metrics: Sequence[str] | None = None) -> str:
    """Systems as rows; metrics with their 95 % intervals, then gain, p-value and verdict of the comparison as columns.

    Args:
        form: `markdown`, `latex` (needs the package booktabs), or `csv` (all metrics, bounds in their own columns).
        metrics: the columns; default: the two or three that matter.
    """
    if form == "csv":
        return _csv(evaluation, metrics or list(evaluation.metrics))
    table = comparison_table(evaluation, metrics or f.shown_metrics(evaluation))
    head = ["", *table.metrics, *([table.gain, "p", "verdict"] if table.compared else [])]
    rows = []
    for line in table.lines:
        cells = [line.name, *(" ".join(cell).strip() for cell in line.scores)]
        if table.compared:
            p = line.p.removeprefix("p ").removeprefix("= ")
            cells += [" ".join(line.gain).replace("−", "-"), p, line.verdict] if line.p and line.gain[0] else [""] * 3
        rows.append([" ".join(cell.split()) for cell in cells])
    if form == "markdown":
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in [head, *rows]]
        return "\n".join([lines[0], "|" + " --- |" * len(head), *lines[1:]]) + "\n"
    escaped = [["".join(LATEX.get(c, c) for c in cell) for cell in cells] for cells in [head, *rows]]
    first, *lines = [" & ".join(cells) + r" \\" for cells in escaped]
    body = [rf"\begin{{tabular}}{{{'l' * len(head)}}}", r"\toprule", first, r"\midrule", *lines, r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}"]) + "\n"


def _csv(evaluation: EvaluationManifest, metrics: Sequence[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    last = ["gain", "gain_low", "gain_high", "p", "verdict"]
    writer.writerow(["system", *(plain_cell(f"{m}{part}") for m in metrics for part in ("", "_low", "_high")), *last])
    for line in f.systems_of(evaluation, metrics):
        cells = [v for s in line.scores for v in ((s.value, s.low, s.high) if s else (None,) * 3)]
        gain = line.delta
        cells += [gain.value, gain.low, gain.high, line.p] if gain else [None] * 4
        numbers = ["" if v is None or v != v else f"{v:.6g}" for v in cells]
        writer.writerow([plain_cell(line.name), *numbers, line.verdict])
    return out.getvalue()


def on_terminal(table: ComparisonTable, width: int, *, title: str = "", verdicts: bool = False) -> Table:
    """The table for a terminal: gains and p-values, or (`verdicts`) gains with their intervals and the verdicts.

    Intervals are below their values where verdicts are shown or the terminal is narrow. Where it is too narrow for the
    columns, each system is a block of lines: names are folded, never cut.
    """
    view = Table(title=title or None, title_justify="left", title_style="bold", **PLAIN)
    below = verdicts or not _fits(_columns(table, verdicts, below=False), table, width, LONGEST_NAME)
    columns = _columns(table, verdicts, below=below)
    if not _fits(columns, table, width):
        return _in_blocks(table, view, verdicts)
    view.add_column("", overflow="fold", min_width=NARROWEST_NAME, max_width=LONGEST_NAME if verdicts else None)
    for head, *_ in columns:
        view.add_column(head, justify="left" if verdicts or head in table.metrics else "right", no_wrap=True)
    for i, line in enumerate(table.lines):
        cells = [Text(column[i + 1]) for column in columns]
        if not line.tuned and not verdicts:
            for cell in cells:
                cell.highlight_regex(r"\[.*\]", "dim")
        view.add_row(Text(line.name), *cells, style="bold green" if line.tuned and not verdicts else "")
    return view


def metrics_that_fit(table: ComparisonTable, width: int, most: int) -> int:
    """How many metrics' columns, at most `most`, fit between name, gain and verdict; 0: not even one."""
    for names in (LONGEST_NAME, NARROWEST_NAME):  # rather fewer metrics than folded names
        for metrics in range(min(len(table.metrics), most) if names == LONGEST_NAME else 1, 0, -1):
            if _fits(_columns(table, True, below=True, metrics=metrics), table, width, names):
                return metrics
    return 0


def _columns(table: ComparisonTable, verdicts: bool, *, below: bool, metrics: int | None = None) -> list[list[str]]:
    part = "\n" if below else " "
    titles = table.metrics[:metrics]
    scores = [[t, *(part.join(line.scores[i]).strip() for line in table.lines)] for i, t in enumerate(titles)]
    if verdicts:
        filled = [f"{textwrap.fill(line.verdict, VERDICT)}\n{line.p}" if line.p else "" for line in table.lines]
        bounded = ["\n".join(line.gain).strip().replace("−", "-") for line in table.lines]
        return [*scores, ["gain", *bounded], ["verdict", *filled]]
    gains = [["gain", *(line.gain[0] for line in table.lines)], ["p-value", *(line.p for line in table.lines)]]
    return scores + (gains if table.compared else [])


def _fits(columns: Sequence[Sequence[str]], table: ComparisonTable, width: int, names: int = NARROWEST_NAME) -> bool:
    widths = [max(len(part) for cell in column for part in cell.split("\n")) for column in columns]
    longest = max((len(line.name) for line in table.lines), default=0)
    return min(longest, names) + sum(widths) + BETWEEN * len(widths) + EDGES <= width


def _in_blocks(table: ComparisonTable, view: Table, verdicts: bool) -> Table:
    view.box, view.show_header = None, False
    view.add_column(overflow="fold")
    for line in table.lines:
        parts = [f"{title}: {' '.join(cell).strip()}" for title, cell in zip(table.metrics, line.scores, strict=True)]
        if line.p:
            gain = " ".join(line.gain).strip().replace("−", "-")
            parts.append(", ".join(filter(None, [f"gain: {gain}", line.p, line.verdict if verdicts else ""])))
        text = Text(line.name, style="bold green" if line.tuned and not verdicts else "bold")
        view.add_row(text.append("".join(f"\n  {part}" for part in parts), style="not bold"))
    return view


# The place of a run and the source of its data differ always, and change no result.
NOT_SETTINGS = ("version", "output_dir")
LONGEST = 300  # characters of a value that a table shows


@dataclass(frozen=True)
class Changed:
    """A setting, written out."""

    key: str  # as on the command line
    value: str
    default: str


def changed_settings(config: Mapping[str, Any]) -> list[Changed]:
    """Settings of a resolved config that are not the defaults, in its order.

    A learning rate is compared with the default of the run's method and loss.
    """
    plain = flat(Recipe().model_dump(mode="json"))
    train = w.section(config.get("train"))
    settings = {key: train[key] for key in ("method", "loss") if key in train}
    with contextlib.suppress(ValidationError, UserError):  # a method of one's own, or a config of another version
        recipe = Recipe.model_validate({"train": settings}, context=FROM_FILE)
        plain["train.learning_rate"] = recipe.train.learning_rate
    return [
        Changed(key, shown(value), shown(plain.get(key)))
        for key, value in flat(config).items()
        if key not in NOT_SETTINGS and value != plain.get(key, ...) and not (value in ({}, []) and not plain.get(key))
    ]


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(key, value of each) of the settings in which configs differ, in the order of the first."""
    flats = [flat(config) for config in configs]
    keys = dict.fromkeys(key for flat_config in flats for key in flat_config if key not in NOT_SETTINGS)
    return [
        (key, [shown(flat_config.get(key)) for flat_config in flats])
        for key in keys
        if any(flat_config.get(key) != flats[0].get(key) for flat_config in flats[1:])
    ]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config by keys as on the command line: `train.epochs`."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            keys |= flat(value, f"{prefix}{key}.")
        else:
            keys[f"{prefix}{key}"] = value
    return keys


def shown(value: object) -> str:
    """A value as it is written on the command line; `–` for one that is not set."""
    if value is None or value == "" or value == [] or value == {}:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if isinstance(value, list | float):
        text = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}"
    return w.clean(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def compared_part(evaluation: EvaluationManifest) -> dict[str, Any]:
    """`differ` and `overlay` of the runs that a comparison names (`runs`: system -> folder) and that still exist."""
    runs = _runs(evaluation)
    curves = [
        Curve(name, points_of(files.steps, "loss"), points_of(files.validations, "val_loss"))
        for name, files in runs.items()
    ]
    losses = [c for c in curves if c.train or c.val]
    overlay = {"chart": chart_pair(overlay_chart, losses), "left_out": [c.name for c in losses[MOST_RUNS:]]}
    return {"differ": _differ(runs), "overlay": overlay if len(losses) > 1 else {}}


def _runs(evaluation: EvaluationManifest) -> dict[str, f.RunFiles]:
    runs = {}
    for name, folder in evaluation.runs.items():
        with contextlib.suppress(UserError):  # moved or deleted since
            runs[name] = f.read_run(folder)
    return runs


def _differ(runs: Mapping[str, f.RunFiles]) -> dict[str, Any]:
    configs = [files.config for files in runs.values()]
    return {"names": list(runs), "rows": differing_settings(configs)} if len(runs) > 1 and all(configs) else {}


MOST_SETTINGS = 20  # lines of settings that differ
MOST_METRICS = 3  # columns; eval.json and the page have all metrics


def print_comparison(result: EvaluationManifest, console: Console) -> None:
    """Print a comparison so that its table fits the console's width.

    `result`: `eval.json` of the comparison; `console`: without markup and highlighting; sentences are wrapped at
    words on a terminal, and left whole in a file or a pipe.
    """
    wrapped = console.is_terminal
    metrics = f.shown_metrics(result)
    table = comparison_table(result, metrics)
    console.print(result.words[0], soft_wrap=not wrapped)
    console.print()
    console.print(f"{counted(result.n, 'row')}, paired. {table.note}", soft_wrap=not wrapped)
    fit = metrics_that_fit(table, console.width, MOST_METRICS) or min(len(metrics), MOST_METRICS)
    console.print(on_terminal(comparison_table(result, metrics[:fit]), console.width, verdicts=True))
    if fit < len(metrics):
        more = ", ".join(map(title_of, metrics[fit:]))
        console.print(f"On the page, too wide for here: {more}.", soft_wrap=not wrapped)
    for line in result.words[1:]:
        console.print(line, soft_wrap=not wrapped)
    apart: list[tuple[str, list[str]]] = _differ(_runs(result)).get("rows", [])
    if not apart:
        if len(result.runs) > 1:
            console.print("The runs have the same settings.")
        return
    differences = Table(**PLAIN)
    for head in ("settings that differ", *result.runs):
        differences.add_column(head, overflow="fold")
    for key, values in apart[:MOST_SETTINGS]:
        differences.add_row(key, *values)
    console.print(differences)
    if len(apart) > MOST_SETTINGS:
        console.print(f"... and {len(apart) - MOST_SETTINGS} more: the page shows all")
