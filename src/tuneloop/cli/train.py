"""`tuneloop train` and `tuneloop train sweep`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from tuneloop.cli import prompt
from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SETTINGS, argument, screen
from tuneloop.cli.prepare import print_rendered
from tuneloop.core.errors import UserError
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import plain_table
from tuneloop.deploy import RayOptions, refuse_other_place
from tuneloop.records.record import read_record
from tuneloop.records.run import RunManifest
from tuneloop.records.sweep import as_typed

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.recipe import Recipe
    from tuneloop.records.sweep import SweepManifest


def command(
    source: str = argument("RECIPE.yaml|DATASET", "Recipe, or folder of a prepared data set."),
    settings: list[str] | None = SETTINGS,
    model: str = flag("", "MODEL", "Base model.", "-m"),
    out: str = flag("", "FOLDER", "Folder of the run; default: runs/NAME-HASH.", "-o"),
    preflight: bool = switch("Show what would be trained, with two rows as the model sees them, and stop."),
    anyway: bool = switch("Train also where the time is too short for a result."),
    *,
    options: RayOptions,
) -> Result:
    """Train an adapter, or all weights, on a prepared data set.

    A training that was interrupted continues from its last checkpoint.
    """
    from tuneloop.pipeline import shared_out, train_alone
    from tuneloop.recipe import recipe_of

    recipe = recipe_of(source, settings or [], model=model, out=out)
    if preflight:
        return _preflight(recipe)
    refuse_other_place(options.on)
    if not options.on and (status := shared_out(recipe)) is not None:
        raise typer.Exit(status)
    with screen("running"):
        if options.on:
            from tuneloop.deploy import run_on_ray

            folder = run_on_ray(recipe, options, whole=False)
            run = read_record(RunManifest, folder)
        else:
            folder, run = train_alone(recipe, anyway=anyway)
    lines = [f"{run.result:<9} {folder / run.result}", f"next      tuneloop evaluate {folder}"]
    return Result({"path": str(folder), **run.to_json()}, lines)


def _preflight(recipe: Recipe) -> Result:
    from tuneloop.pipeline import preflight_alone

    with screen("checking before the training"):
        checks, plan, template = preflight_alone(recipe)
    names = [name for name, _ in checks.shown]
    record = {**vars(checks), "shown": names, "plan": plan, "ready": not checks.problems}

    def text(console: Console) -> None:
        print_rendered(template, checks.shown, console)
        lines = [*checks.lines()]
        if plan:
            gib = "{peak_gib:.2f} GiB of {capacity_gib:.1f}".format_map(plan["memory"])
            lines.append(f"memory        {gib} at most; it fits")
        lines += [f"refused       {problem}" for problem in checks.problems] or ["ready         no problem was found"]
        console.print("\n".join(lines), soft_wrap=True)

    return Result(record, text, int(bool(checks.problems)))


def sweep(
    source: str = argument("RECIPE.yaml|DATASET|FILE", "Recipe, prepared data set, or a file of examples."),
    settings: list[str] | None = SETTINGS,
    trials: int = flag(0, "N", "Most combinations; more are drawn by chance. Default: all."),
    out: str = flag("", "FOLDER", "Folder of the search; default: sweeps/NAME-HASH.", "-o"),
    no_evaluate: bool = switch("Leave out the winner's evaluation on the test rows."),
    on: str = flag("", "ray", "Try them at the same time on a Ray cluster, by ASHA: ray, or ray://HOST:PORT."),
) -> Result:
    """Search over settings with several values, and evaluate the winner once.

    Values have commas: train.learning_rate=1e-4,5e-4 train.rank=8,32. Every combination is trained a little, the best
    third of them longer; validation rows decide. With --on ray they are trained at the same time, and the worse ones
    end early.
    """
    from tuneloop.pipeline import search_settings

    refuse_other_place(on)
    if trials < 0 or trials == 1:
        step = "give 2 or more, or leave it out"
        raise UserError("A search has at least two trials", where="--trials", next_step=step)
    with screen("searching"):
        folder, manifest = search_settings(
            source, settings or [], trials=trials, out=out, on=on, evaluate=not no_evaluate
        )
    return Result({"path": str(folder), **manifest.to_json()}, partial(_print_sweep, manifest))


def _print_sweep(manifest: SweepManifest, console: Console) -> None:
    """A table of the trials, the longest and best first, and what to do next."""
    table = plain_table("settings", "passes", "validation loss", "minutes")
    for trial in sorted(
        manifest.trials, key=lambda trial: (-trial.share, trial.val_loss is None, trial.val_loss or 0.0)
    ):
        loss = "failed" if trial.val_loss is None else f"{trial.val_loss:.4f}"
        table.add_row(as_typed(trial.settings), f"{trial.share:.0%}", loss, f"{trial.minutes:.1f}")
    console.print(table)
    console.print(f"\nBest by validation: {as_typed(manifest.best or {})}", soft_wrap=True)
    console.print(f"{manifest.run}\nnext      tuneloop compare {manifest.run}", soft_wrap=True)


commands = {"sweep": sweep, "prompt": prompt.command}
