"""`tuneloop compare`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json


def command(
    evaluations: list[str] = typer.Argument(
        ..., help="Two or more folders with eval.json; FOLDER:NAME picks a baseline in it.", metavar="A B..."
    ),
    out: str = typer.Option("", "--out", "-o", help="Also write eval.json and samples.jsonl to this folder."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare evaluations of the same rows, paired, against the first."""
    from tuneloop import pipeline

    comparisons = pipeline.compare_alone(evaluations, out)
    if as_json:
        print_json({"comparisons": comparisons})
        return
    for c in comparisons:
        print(
            f"{c.metric:<22} {c.b} against {c.a}: {c.delta:+.3f} [{c.low:+.3f}, {c.high:+.3f}]  p {c.p:.3g}  {c.verdict}"
        )
