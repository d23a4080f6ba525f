"""`tuneloop train sweep`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.cli.console import Result
from tuneloop.cli.parameters import SETTINGS, Output, argument
from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash
from tuneloop.core.flag import flag, switch
from tuneloop.core.terminal import plain_table, screen
from tuneloop.deploy.clusters import refuse_other_place

if TYPE_CHECKING:
    from rich.console import Console

    from tuneloop.pipeline.sweep import SweepManifest


def command(
    source: str = argument("RECIPE.yaml|DATASET|FILE", "Recipe, prepared data set, or a file of examples."),
    settings: list[str] | None = SETTINGS,
    trials: int = flag(0, "N", "Most combinations; more are drawn by chance. Default: all."),
    out: str = flag("", "FOLDER", "Folder of the search; default: sweeps/NAME-HASH.", "-o"),
    no_evaluate: bool = switch("Leave out the winner's evaluation on the test rows."),
    on: str = flag("", "ray", "Try them side by side on a Ray cluster, by ASHA: ray, or ray://HOST:PORT."),
    *,
    output: Output,
) -> Result:
    """Search over settings with several values, and evaluate the winner once.

    Values stand with commas: train.learning_rate=1e-4,5e-4 train.rank=8,32. Every combination is trained a little, the best
    third of them longer; validation rows decide. With --on ray they are trained at the same time, and the worse ones end early.
    """
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.sweep import search_of, sweep

    refuse_other_place(on)
    if trials < 0 or trials == 1:
        raise UserError(
            "A search has at least two trials", where="--trials", next_step="give 2 or more, or leave it out"
        )
    search, fixed = search_of(settings or [], trials, 0)
    recipe = recipe_of(source, fixed)
    folder = Path(out or f"sweeps/{recipe.name}-{content_hash([source, fixed, search.settings])[:8]}")
    with screen(output.quiet, "searching"):
        found = sweep(recipe, search, folder, on=on, evaluate=not no_evaluate)
    return Result({"path": str(folder), **found.to_json()}, partial(_print, found))


def _print(found: SweepManifest, console: Console) -> None:
    """A table of the trials, the longest and best first, and what to do next."""
    from tuneloop.pipeline.sweep import words

    table = plain_table("settings", "passes", "validation loss", "minutes")
    for trial in sorted(found.trials, key=lambda each: (-each.share, each.val_loss is None, each.val_loss or 0.0)):
        loss = "failed" if trial.val_loss is None else f"{trial.val_loss:.4f}"
        table.add_row(words(trial.settings), f"{trial.share:.0%}", loss, f"{trial.minutes:.1f}")
    console.print(table)
    best = f"\nBest by validation: {words(found.best or {})}\n{found.run}\nnext      tuneloop compare {found.run}"
    console.print(best, soft_wrap=True)
