"""`tuneloop train`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tuneloop.cli import sweep
from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SETTINGS, Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import screen
from tuneloop.deploy.clusters import RayOptions, refuse_other_place
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.recipe import Recipe


def command(
    source: str = argument("RECIPE.yaml|DATASET", "Recipe, or folder of a prepared data set."),
    settings: list[str] | None = SETTINGS,
    model: str = flag("", "MODEL", "Base model.", "-m"),
    out: str = flag("", "FOLDER", "Folder of the run; default: runs/NAME-HASH.", "-o"),
    preflight: bool = switch("Show what would be trained, with two rows as the model sees them, and stop."),
    *,
    wish: RayOptions,
    output: Output,
) -> Result:
    """Train an adapter, or all weights, on a prepared data set.

    A training that was interrupted goes on from its last checkpoint.
    """
    from tuneloop.pipeline.distributed import shared_out
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.train import train_alone

    recipe = recipe_of(source, settings or [], model=model, out=out)
    if preflight:
        return _preflight(recipe, quiet=output.quiet)
    refuse_other_place(wish.on)
    if not wish.on and (status := shared_out(recipe)) is not None:
        raise typer.Exit(status)
    with screen(output.quiet, "running"):
        if wish.on:
            from tuneloop.deploy.on_ray import run_on_ray

            folder = run_on_ray(recipe, wish, whole=False)
            run = read_record(RunManifest, folder)
        else:
            folder, run = train_alone(recipe)
    lines = [f"{run.result:<9} {folder / run.result}", f"next      tuneloop evaluate {folder}"]
    return Result({"path": str(folder), **run.to_json()}, lines)


def _preflight(recipe: Recipe, *, quiet: bool) -> Result:
    from tuneloop.pipeline.train import preflight_alone

    with screen(quiet, "checking before the training"):
        checked, plan, template = preflight_alone(recipe)
    record = {
        **vars(checked), "shown": [name for name, _ in checked.shown], "plan": plan, "ready": not checked.problems,
    }  # fmt: skip

    def text(console: Console) -> None:
        from tuneloop.cli.rows import print_rendered

        print_rendered(template, checked.shown, console)
        lines = [*checked.lines()]
        if recipe.train.range_test:
            lines.append("              a range test before the first step will find the learning rate")
        if plan:
            memory = plan["memory"]
            gib = f"{memory['peak_gib']:.2f} GiB of {memory['capacity_gib']:.1f}"
            lines.append(f"memory        {gib} at most; it fits")
        lines += [f"refused       {problem}" for problem in checked.problems]
        lines += [] if checked.problems else ["ready         no problem was found"]
        console.print("\n".join(lines), soft_wrap=True)

    return Result(record, text, int(bool(checked.problems)))


commands = {"sweep": sweep}
