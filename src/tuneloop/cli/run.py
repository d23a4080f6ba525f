"""`tuneloop run`: the main job."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tuneloop.cli.console import Result, print_live, show
from tuneloop.cli.parameters import SETTINGS, argument, output, screen
from tuneloop.core.ui import reporting
from tuneloop.deploy.clusters import RemoteOptions, is_ray, refuse_options_of_rented

if TYPE_CHECKING:
    from tuneloop.recipe import Recipe


def command(
    source: str = argument("RECIPE.yaml|DATA", "Recipe in YAML, or examples or a prepared data set for the defaults."),
    settings: list[str] | None = SETTINGS,
    *,
    place: RemoteOptions,
) -> Result | None:
    """Do all stages in one go, from the rows to the report.

    With --on ray a Ray cluster does it. With another place the data are prepared here, and a project is written that
    does the rest there.
    """
    from tuneloop.pipeline.context import summary
    from tuneloop.pipeline.distributed import shared_out
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.run import run

    resolved = recipe_of(source, settings or [])
    on_ray = is_ray(place.on)
    if on_ray:
        refuse_options_of_rented(place)
    elif place.on:
        _elsewhere(resolved, place)
        return None
    elif (status := shared_out(resolved)) is not None:
        raise typer.Exit(status)
    with screen("running"):
        if on_ray:
            from tuneloop.deploy.on_ray import run_on_ray

            folder = run_on_ray(resolved, place, whole=True)
        else:
            folder = run(resolved)
    from tuneloop.report.terminal import print_closing

    return Result(summary(folder), partial(print_closing, folder))


def _elsewhere(recipe: Recipe, place: RemoteOptions) -> None:
    from tuneloop.deploy.launch import launch_after_yes
    from tuneloop.deploy.remote import launch_of, price_words, write_remote

    folder = Path(place.project or f"remote/{recipe.name}-{place.on}")
    with screen("preparing"):
        project = write_remote(recipe, place, folder)
    cluster, job = project.cluster, project.job
    files = f"{folder}: recipe.yaml, dataset, {', '.join(cluster.project(job))}, README.md"
    record = {"folder": str(folder), "on": cluster.name, **vars(job), "plan": project.plan}
    show(Result(record, [files, price_words(project.plan, cluster)]), output().as_json)
    if not place.dry_run:
        question = f"Start it on {cluster.title} now?"
        with reporting(say=partial(print_live, err=True)):
            launch_after_yes(launch_of(project, place), folder, question, place.yes)
