"""`tuneloop init`."""

from __future__ import annotations

import sys

import typer

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.parameters import SETTINGS, Output, argument
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.flag import flag, switch


def command(
    source: str = argument("FILE", "Your examples."),
    settings: list[str] | None = SETTINGS,
    out: str = flag("recipe.yaml", "FILE", "Recipe to write; a file that is there is never overwritten.", "-o"),
    yes: bool = switch("Where columns are only guessed by their values, take the guess without asking."),
    *,
    output: Output,
) -> Result:
    """Write a recipe for a file of examples."""
    from tuneloop.pipeline.recipes import write_starter

    settings = settings or []
    try:
        path, found = write_starter(source, out, settings)
    except UserError as error:
        if not error.settings or not (yes or _agreed(error, ask=not output.as_json and _at_a_terminal())):
            raise
        path, found = write_starter(source, out, [*settings, *error.settings])
    lines = [f"{path}: {found.name} ({found.reason})", f"next: tuneloop run {path}"]
    return Result({"recipe": str(path), "format": found.name, "reason": found.reason}, lines)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _agreed(error: UserError, *, ask: bool) -> bool:
    """Whether the user takes what was guessed; without a terminal there is no one to ask."""
    if not ask:
        return False
    print_live(
        f"{error.what} ({error.where}).\nBy their values, this may be meant:\n  {in_shell(error.settings)}", err=True
    )
    return typer.confirm("Write the recipe with it?", default=False, err=True)
