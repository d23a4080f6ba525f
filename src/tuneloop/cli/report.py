"""`tuneloop report`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, print_json


def command(
    run: str = typer.Argument(..., help="Folder of a run.", metavar="RUN"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run's report.html again, and print its closing table."""
    from pathlib import Path

    from rich.console import Console

    from tuneloop import pipeline
    from tuneloop.report.html import write_report
    from tuneloop.report.terminal import print_closing

    page = write_report(Path(run))
    if as_json:
        print_json(pipeline.summary(Path(run)) | {"report": str(page)})
    elif not quiet:
        print_closing(Path(run), Console())
