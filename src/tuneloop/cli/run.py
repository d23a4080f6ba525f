"""`tuneloop run`: the main job."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen


def command(
    recipe: str = typer.Argument(..., help="Recipe in YAML.", metavar="RECIPE.yaml"),
    settings: Settings = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Do the main job: prepare, baselines, plan, train, evaluate, report."""
    from rich.console import Console

    from tuneloop import pipeline
    from tuneloop.recipe import load_recipe

    resolved = load_recipe(recipe, settings or [])
    with screen(quiet) as shown:
        folder = pipeline.run(resolved, progress=shown.progress, say=shown.say)
    if as_json:
        print_json(pipeline.summary(folder))
    else:
        from tuneloop.report.terminal import print_closing

        print_closing(folder, Console())
