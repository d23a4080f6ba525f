"""`tuneloop init`."""

from __future__ import annotations

import sys

import typer

from tuneloop.cli.console import Settings, print_json
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.flag import flag, switch


def command(
    source: str = argument("FILE", "Your examples."),
    settings: Settings = None,
    out: str = flag("recipe.yaml", "FILE", "Recipe to write; a file that is there is never overwritten.", "-o"),
    yes: bool = switch("Where columns are only guessed by their values, take the guess without asking."),
    *,
    output: Output,
) -> None:
    """Write a recipe for a file of examples."""
    from tuneloop.pipeline.recipes import write_starter

    settings = settings or []
    try:
        path, found = write_starter(source, out, settings)
    except UserError as error:
        if not error.settings or not (yes or _agreed(error, ask=not output.json and _at_a_terminal())):
            raise
        path, found = write_starter(source, out, [*settings, *error.settings])
    if output.json:
        print_json({"recipe": str(path), "format": found.name, "reason": found.reason})
    else:
        print(f"{path}: {found.name} ({found.reason})\nnext: tuneloop run {path}")


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _agreed(error: UserError, *, ask: bool) -> bool:
    """Whether the user takes what was guessed; without a terminal there is no one to ask."""
    if not ask:
        return False
    print(
        f"{error.what} ({error.where}).\nBy their values, this may be meant:\n  {in_shell(error.settings)}",
        file=sys.stderr,
    )
    return typer.confirm("Write the recipe with it?", default=False, err=True)
