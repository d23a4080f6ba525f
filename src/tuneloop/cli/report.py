"""`tuneloop report`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json, screen


def command(
    run: str = typer.Argument(..., help="Folder of a run, an evaluation or a comparison.", metavar="RUN|EVALUATION"),
    table: str = typer.Option("", "--table", help="Print the comparison as markdown, latex or csv instead."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a folder's report.html again, and print its closing table."""
    from pathlib import Path

    from rich.console import Console

    from tuneloop.core.errors import UserError
    from tuneloop.core.files import read_json
    from tuneloop.report.eval_html import write_page
    from tuneloop.report.table import comparison_as
    from tuneloop.report.terminal import print_closing
    from tuneloop.workflows.report import summary

    folder = Path(run)
    if table:
        if table not in ("markdown", "latex", "csv"):
            raise UserError(f"No such table {table!r}", where="--table", next_step="choose markdown, latex or csv")
        text = comparison_as(read_json(folder / "eval.json"), table)  # type: ignore[arg-type]
        print_json({"table": text, "format": table}) if as_json else print(text, end="")
        return
    with screen(quiet):
        page = write_page(folder)
    if as_json:
        print_json(summary(folder) | {"report": str(page)})
    elif not quiet:
        print_closing(folder, Console())
