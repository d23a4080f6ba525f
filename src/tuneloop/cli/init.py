"""`tuneloop init`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json
from tuneloop.cli.parameters import Output


def command(
    source: str = typer.Argument(..., help="Your examples.", metavar="FILE"),
    out: str = typer.Option(
        "recipe.yaml", "--out", "-o", help="Recipe to write; a file that is there is never overwritten.", metavar="FILE"
    ),
    *,
    output: Output,
) -> None:
    """Write a recipe for a file of examples."""
    from tuneloop.workflows.recipes import write_starter

    path, found = write_starter(source, out)
    if output.json:
        print_json({"recipe": str(path), "format": found.name, "reason": found.reason})
    else:
        print(f"{path}: {found.name} ({found.reason})\nnext: tuneloop run {path}")
