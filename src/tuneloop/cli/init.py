"""`tuneloop init`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json


def command(
    source: str = typer.Argument(..., help="Your examples.", metavar="FILE"),
    out: str = typer.Option("recipe.yaml", "--out", "-o", help="Recipe to write; never overwritten."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look at a file of examples and write a recipe for it."""
    from tuneloop.workflows.recipes import write_starter

    path, found = write_starter(source, out)
    if as_json:
        print_json({"recipe": str(path), "format": found.name, "reason": found.reason})
    else:
        print(f"{path}: {found.name} ({found.reason})\nnext: tuneloop run {path}")
