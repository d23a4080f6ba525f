"""A comparison of evaluations on the terminal: the verdict, a line for each, what it means, and the settings that differ."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneloop.evaluate.metrics import lower_is_better, title_of
from tuneloop.report.compared import settings_apart
from tuneloop.report.facts import corrected_bounds, figure, gain_header, interval, p_value, score_of, shown_metrics

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_SETTINGS = 20  # lines of settings that differ
MOST_METRICS = 3  # columns; eval.json and the page have all metrics
LONGEST_NAME = 24  # columns of a name before it is folded
VERDICT = 10  # columns of "not enough", the longest word pair of a verdict
BETWEEN = 3  # columns that a cell takes beside its text


def print_comparison(result: Mapping[str, Any], names: Sequence[str], console: Console) -> None:
    """Print a comparison so that its table fits the console's width.

    Args:
        result: `eval.json` of the comparison.
        names: the contenders in the order given, the first is the one that the others are compared with.
        console: without markup and highlighting; sentences are wrapped at words on a terminal, and left whole in a file or a pipe.
    """
    wrapped = console.is_terminal
    console.print(result["words"][0], soft_wrap=not wrapped)
    console.print()
    console.print(f"{result['n']:,} rows, paired. {gain_header(result)[1]}", soft_wrap=not wrapped)
    metrics = shown_metrics(result)
    shown = metrics[: _metrics_that_fit(result, names, metrics, console.width)]
    console.print(comparison_table(result, names, shown))
    if len(shown) < len(metrics):
        more = ", ".join(map(title_of, metrics[len(shown) :]))
        console.print(f"On the page, too wide for here: {more}.", soft_wrap=not wrapped)
    for line in result["words"][1:]:
        console.print(line, soft_wrap=not wrapped)
    _print_settings(result, console)


def comparison_table(result: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> Table:
    """A line for each contender: metrics with their intervals below, the gain in the first one, verdict and p-value."""
    from rich import box
    from rich.table import Table

    pairs = {c["b"]: c for c in result["comparisons"] if c["metric"] == metrics[0]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", overflow="fold", max_width=LONGEST_NAME)
    for title in (*map(title_of, metrics), "gain"):
        table.add_column(title, no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in names:
        pair = pairs.get(name)
        verdict = "" if pair is None else f"{textwrap.fill(pair['verdict'], VERDICT)}\n{p_value(pair['p_holm'])}"
        table.add_row(name, *_cells(result, name, metrics), "" if pair is None else _gain(pair, metrics[0]), verdict)
    return table


def _cells(result: Mapping[str, Any], name: str, metrics: Sequence[str]) -> list[str]:
    of = {**result["baselines"], result["name"]: result["metrics"]}
    scores = [(score_of(of[name].get(metric)), metric) for metric in metrics]
    return [f"{figure(s.value if s else None, metric)}\n{interval(s, metric)}" for s, metric in scores]


def _gain(pair: Mapping[str, Any], metric: str) -> str:
    """The difference and its interval, positive where the line is better."""
    delta, (low, high) = pair["delta"], corrected_bounds(pair)
    if lower_is_better(metric):
        delta, low, high = -delta, -high if high is not None else None, -low if low is not None else None
    bounds = interval(score_of({"value": delta, "low": low, "high": high}), metric)
    return f"{'+' if delta >= 0 else '-'}{figure(abs(delta), metric)}\n{bounds}"


def _metrics_that_fit(result: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str], width: int) -> int:
    """How many metrics' columns fit beside name, gain and verdict; at least one."""

    def widest(texts: Sequence[str]) -> int:
        return max(len(line) for text in texts for line in text.split("\n")) + BETWEEN

    gains = [_gain(c, metrics[0]) for c in result["comparisons"] if c["metric"] == metrics[0]]
    room = width - min(widest(names), LONGEST_NAME + BETWEEN) - widest([*gains, "gain"]) - VERDICT - BETWEEN
    for count, metric in enumerate(metrics[:MOST_METRICS]):
        room -= widest([title_of(metric), *(_cells(result, name, [metric])[0] for name in names)])
        if room < 0:
            return max(count, 1)
    return min(len(metrics), MOST_METRICS)


def _print_settings(result: Mapping[str, Any], console: Console) -> None:
    """The settings in which the compared runs differ: what else than the training could be behind a gain."""
    from rich import box
    from rich.table import Table

    apart = settings_apart(result)
    if not apart:
        if len(result.get("runs") or {}) > 1:
            console.print("The runs have the same settings.")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for head in ("settings that differ", *result["runs"]):
        table.add_column(head, overflow="fold")
    for key, values in apart[:MOST_SETTINGS]:
        table.add_row(key, *values)
    console.print(table)
    if len(apart) > MOST_SETTINGS:
        console.print(f"... and {len(apart) - MOST_SETTINGS} more: the page shows all")
