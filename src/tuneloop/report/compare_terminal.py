"""A comparison of evaluations on the terminal: the verdict, a line for each, what it means, and the settings that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from tuneloop.core.units import counted
from tuneloop.evaluate.metrics import title_of
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.report.compared import settings_apart
from tuneloop.report.facts import shown_metrics
from tuneloop.report.table import comparison_table, metrics_that_fit, on_terminal

if TYPE_CHECKING:
    from rich.console import Console

MOST_SETTINGS = 20  # lines of settings that differ
MOST_METRICS = 3  # columns; eval.json and the page have all metrics


def print_comparison(result: EvaluationManifest, console: Console) -> None:
    """Print a comparison so that its table fits the console's width.

    Args:
        result: `eval.json` of the comparison.
        console: without markup and highlighting; sentences are wrapped at words on a terminal, and left whole in a file or a pipe.
    """
    wrapped = console.is_terminal
    metrics = shown_metrics(result)
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
    _print_settings(result, console)


def _print_settings(result: EvaluationManifest, console: Console) -> None:
    """The settings in which the compared runs differ: what else than the training could be behind a gain."""
    apart = settings_apart(result)
    if not apart:
        if len(result.runs) > 1:
            console.print("The runs have the same settings.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for head in ("settings that differ", *result.runs):
        table.add_column(head, overflow="fold")
    for key, values in apart[:MOST_SETTINGS]:
        table.add_row(key, *values)
    console.print(table)
    if len(apart) > MOST_SETTINGS:
        console.print(f"... and {len(apart) - MOST_SETTINGS} more: the page shows all")
