"""`tuneloop init`."""

from __future__ import annotations

from tuneloop.cli.console import Settings, print_json
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag


def command(
    source: str = argument("FILE", "Your examples."),
    settings: Settings = None,
    out: str = flag("recipe.yaml", "FILE", "Recipe to write; a file that is there is never overwritten.", "-o"),
    *,
    output: Output,
) -> None:
    """Write a recipe for a file of examples."""
    from tuneloop.workflows.recipes import write_starter

    path, found = write_starter(source, out, settings or [])
    if output.json:
        print_json({"recipe": str(path), "format": found.name, "reason": found.reason})
    else:
        print(f"{path}: {found.name} ({found.reason})\nnext: tuneloop run {path}")
