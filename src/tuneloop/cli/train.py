"""`tuneloop train`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen


def command(
    source: str = typer.Argument(..., help="Recipe, or folder of a prepared data set.", metavar="RECIPE.yaml|DATASET"),
    settings: Settings = None,
    model: str = typer.Option("", "--model", "-m", help="Base model."),
    out: str = typer.Option("", "--out", "-o", help="Folder of the run; default: runs/NAME-HASH."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an adapter; goes on from the last checkpoint when it was cut short."""
    from tuneloop import pipeline

    recipe = pipeline.recipe_of(source, settings or [], model=model, out=out)
    with screen(quiet) as shown:
        folder, manifest = pipeline.train_alone(recipe, progress=shown.progress, say=shown.say)
    if as_json:
        print_json({"path": str(folder), **manifest})
    else:
        print(f"adapter   {folder / 'adapter'}\nnext      tuneloop evaluate {folder}")
