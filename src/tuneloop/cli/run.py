"""`tuneloop run`: the main job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.cli.console import Settings, print_json, screen, terminal
from tuneloop.cli.parameters import Output, argument
from tuneloop.deploy.clusters import RemoteWish, is_ray, refuse_options_of_rented

if TYPE_CHECKING:
    from tuneloop.recipe import Recipe


def command(
    source: str = argument(
        "RECIPE.yaml|DATA", "Recipe in YAML, or a file of examples or prepared data set for the defaults."
    ),
    settings: Settings = None,
    *,
    wish: RemoteWish,
    output: Output,
) -> None:
    """Do all stages in one go: prepare, baselines, plan, train, evaluate, report.

    With --on ray a Ray cluster does it. With another place the data are prepared here, and a project is written that does the
    rest there.
    """

    from tuneloop.pipeline.distributed import shared_out
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.report import summary
    from tuneloop.pipeline.run import run

    resolved = recipe_of(source, settings or [])
    on_ray = is_ray(wish.on)
    if on_ray:
        refuse_options_of_rented(wish)
    if wish.on and not on_ray:
        _elsewhere(resolved, wish, output)
        return
    if not on_ray and (status := shared_out(resolved)) is not None:
        raise typer.Exit(status)
    with screen(output.quiet, "running") as shown:
        if on_ray:
            from tuneloop.deploy.on_ray import run_on_ray

            folder = run_on_ray(resolved, wish, whole=True)
        else:
            folder = run(resolved)
    if output.json:
        print_json(summary(folder))
    else:
        from tuneloop.report.terminal import print_closing

        print_closing(folder, terminal())


def _elsewhere(recipe: Recipe, wish: RemoteWish, output: Output) -> None:
    from tuneloop.deploy.launch import put_up_after_yes
    from tuneloop.deploy.remote import launch_of, price_words, write_remote

    folder = Path(wish.project or f"remote/{recipe.name}-{wish.on}")
    with screen(output.quiet, "preparing") as shown:
        written = write_remote(recipe, wish, folder)
    cluster, job = written.cluster, written.job
    if output.json:
        print_json({"folder": str(folder), "on": cluster.name, **vars(job), "plan": written.plan})
    else:
        print(
            f"{folder}: recipe.yaml, dataset, {', '.join(cluster.project(job))}, README.md\n{price_words(written.plan, cluster)}"
        )
    if not wish.dry_run:
        question = f"Start it on {cluster.title} now?"
        put_up_after_yes(
            launch_of(written, wish), folder, question, wish.yes, lambda line: print(line, file=sys.stderr)
        )
