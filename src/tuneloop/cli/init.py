"""`tuneloop init`."""

from __future__ import annotations

import sys

import typer

from tuneloop.cli.console import Result, print_live
from tuneloop.cli.parameters import SETTINGS, argument, output
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.flag import flag, switch


def command(
    source: str = argument("FILE", "Your examples."),
    settings: list[str] | None = SETTINGS,
    out: str = flag("recipe.yaml", "FILE", "Recipe to write; a file that is there is never overwritten.", "-o"),
    yes: bool = switch("Where columns are only guessed by their values, take the guess without asking."),
) -> Result:
    """Write a recipe for a file of examples."""
    from tuneloop.recipe import write_starter

    settings = settings or []
    try:
        path, form = write_starter(source, out, settings)
    except UserError as error:
        ask = not output().as_json and _at_a_terminal()
        if not error.settings or not (yes or (ask and _agreed(error))):
            raise
        path, form = write_starter(source, out, [*settings, *error.settings])
    lines = [f"{path}: {form.name} ({form.reason})", f"next: tuneloop run {path}"]
    return Result({"recipe": str(path), "format": form.name, "reason": form.reason}, lines)


def _at_a_terminal() -> bool:
    return sys.stdin.isatty()


def _agreed(error: UserError) -> bool:
    """Whether the user takes what was guessed."""
    guess = f"By their values, this may be meant:\n  {in_shell(error.settings)}"
    print_live(f"{error.what} ({error.where}).\n{guess}", err=True)
    return typer.confirm("Write the recipe with it?", default=False, err=True)
