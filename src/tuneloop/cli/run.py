"""`tuneloop run`: the main job."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Settings, print_json, screen
from tuneloop.cli.parameters import Output, argument


def command(
    source: str = argument(
        "RECIPE.yaml|DATA", "Recipe in YAML, or a file of examples or prepared data set for the defaults."
    ),
    settings: Settings = None,
    *,
    output: Output,
) -> None:
    """Do all stages in one go: prepare, baselines, plan, train, evaluate, report."""
    from rich.console import Console

    from tuneloop.workflows.distributed import shared_out
    from tuneloop.workflows.recipes import recipe_of
    from tuneloop.workflows.report import summary
    from tuneloop.workflows.run import run

    resolved = recipe_of(source, settings or [])
    if (status := shared_out(resolved)) is not None:
        raise typer.Exit(status)
    with screen(output.quiet, "running") as shown:
        folder = run(resolved, progress=shown.progress, say=shown.say)
    if output.json:
        print_json(summary(folder))
    else:
        from tuneloop.report.terminal import print_closing

        print_closing(folder, Console())
