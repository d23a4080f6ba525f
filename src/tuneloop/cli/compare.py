"""`tuneloop compare`."""

from __future__ import annotations

from typing import Any

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json


def command(
    evaluations: list[str] = typer.Argument(
        ..., help="Two or more folders with eval.json; FOLDER:NAME picks a baseline in it.", metavar="A B..."
    ),
    out: str = typer.Option("", "--out", "-o", help="Folder for eval.json; default: in evals/."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare evaluations of the same rows, paired, against the first."""
    from tuneloop.evaluations import compare_evaluations

    found = compare_evaluations(evaluations, out)
    from tuneloop.files import read_json

    result = read_json(found.folder / "eval.json")
    if as_json:
        print_json({"path": str(found.folder), **result})
        return
    _print(result, evaluations)
    print(f"{found.folder / 'eval.json'}")


MOST_METRICS = 3  # columns that fit a terminal; eval.json and the page have all


def _print(result: dict[str, Any], names: list[str]) -> None:
    """One table: a line a contender, the metric that decides with its difference to the first, then what it means."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tuneloop.report.facts import figure, interval, metric_title, p_value, score_of, shown_metrics, with_interval

    metrics = shown_metrics(result)[:MOST_METRICS]
    of = {**result["baselines"], result["name"]: result["metrics"]}
    pairs = {c["b"]: c for c in result["comparisons"] if c["metric"] == metrics[0]}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(f"{result['n']:,} rows", overflow="fold")
    for metric in metrics:
        table.add_column(metric_title(metric))
    for title in (f"against {names[0]}", "p", "verdict"):
        table.add_column(title, overflow="fold")
    for name in names:
        cells = [with_interval(score_of(of[name].get(metric)), metric) for metric in metrics]
        pair = pairs.get(name)
        if pair is None:
            table.add_row(name, *cells, "", "", "")
            continue
        sign = "+" if pair["delta"] >= 0 else "-"
        gain = f"{sign}{figure(abs(pair['delta']), metrics[0])}"
        bounds = interval(score_of({"value": pair["delta"], **pair}), metrics[0])
        more = f", {pair['more_rows']:,} more rows would settle it" if pair["more_rows"] else ""
        table.add_row(name, *cells, f"{gain} {bounds}".strip(), p_value(pair["p_holm"]), pair["verdict"] + more)
    Console(highlight=False).print(table)
    for line in result["words"]:
        print(line)
