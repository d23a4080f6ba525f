"""`tuneloop train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tuneloop.cli.console import Settings, print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.deploy.clusters import RayWish, refuse_other_place
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest

if TYPE_CHECKING:
    from tuneloop.recipe import Recipe


def command(
    source: str = argument("RECIPE.yaml|DATASET", "Recipe, or folder of a prepared data set."),
    settings: Settings = None,
    model: str = flag("", "MODEL", "Base model.", "-m"),
    out: str = flag("", "FOLDER", "Folder of the run; default: runs/NAME-HASH.", "-o"),
    preflight: bool = switch("Show what would be trained, with two rows as the model sees them, and stop."),
    *,
    wish: RayWish,
    output: Output,
) -> None:
    """Train an adapter, or all weights, on a prepared data set.

    A training that was interrupted goes on from its last checkpoint.
    """
    from tuneloop.pipeline.distributed import shared_out
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.train import train_alone

    recipe = recipe_of(source, settings or [], model=model, out=out)
    if preflight:
        _preflight(recipe, output.json, output.quiet)
        return
    refuse_other_place(wish.on)
    if not wish.on and (status := shared_out(recipe)) is not None:
        raise typer.Exit(status)
    with screen(output.quiet, "running") as shown:
        if wish.on:
            from tuneloop.deploy.on_ray import run_on_ray

            folder = run_on_ray(recipe, wish, whole=False)
            run = read_record(RunManifest, folder)
        else:
            folder, run = train_alone(recipe)
    if output.json:
        print_json({"path": str(folder), **run.to_json()})
    else:
        print(f"{run.result:<9} {folder / run.result}\nnext      tuneloop evaluate {folder}")


def _preflight(recipe: Recipe, as_json: bool, quiet: bool) -> None:
    from tuneloop.cli.rows import print_rendered
    from tuneloop.pipeline.train import preflight_alone

    with screen(quiet, "checking before the training") as shown:
        checked, plan, template = preflight_alone(recipe)
    if as_json:
        print_json(
            {**vars(checked), "shown": [name for name, _ in checked.shown], "plan": plan, "ready": not checked.problems}
        )
    else:
        print_rendered(template, checked.shown)
        print("\n".join(checked.lines()))
        if recipe.train.range_test:
            print("              a range test before the first step will find the learning rate")
        if plan:
            print(
                f"memory        {plan['memory']['peak_gib']:.2f} GiB of {plan['memory']['capacity_gib']:.1f} at most; it fits"
            )
        print(
            "\n".join(f"refused       {problem}" for problem in checked.problems)
            or "ready         no problem was found"
        )
    if checked.problems:
        raise typer.Exit(1)
