"""`tuneloop run`: the main job."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tuneloop.cli import init
from tuneloop.cli.console import Result, print_live, show
from tuneloop.cli.parameters import SETTINGS, VERBOSE, argument, output, screen
from tuneloop.core.flag import flag, switch
from tuneloop.core.ui import reporting
from tuneloop.deploy import RemoteOptions, is_ray, is_service, refuse_options_of_rented

if TYPE_CHECKING:
    from tuneloop.recipe import Recipe


def command(
    source: str = argument("RECIPE.yaml|DATA", "Recipe in YAML, or examples or a prepared data set for the defaults."),
    settings: list[str] | None = SETTINGS,
    out: str = flag("", "FOLDER", "Folder of the run, as output_dir=FOLDER; default: runs/NAME-HASH.", "-o"),
    anyway: bool = switch("Train also where the time is too short for a result."),
    *,
    verbose: bool = VERBOSE,
    place: RemoteOptions,
) -> Result | None:
    """Do all stages in one go, from the rows to the report.

    With --on ray a Ray cluster does it. With another place the data are prepared here, and a project is written that
    does the rest there. A service (--on openai) trains one of its models on a prepared data set; the same command
    continues to follow it.
    """
    from tuneloop.pipeline.context import summary
    from tuneloop.pipeline.distributed import shared_out
    from tuneloop.pipeline.recipes import recipe_of
    from tuneloop.pipeline.run import run

    resolved = recipe_of(source, settings or [], out=out)
    on_ray = is_ray(place.on)
    if on_ray:
        refuse_options_of_rented(place)
    elif is_service(place.on):
        return _on_service(resolved, source, place)
    elif place.on:
        _elsewhere(resolved, place)
        return None
    elif (status := shared_out(resolved)) is not None:
        raise typer.Exit(status)
    with screen("running", brief=not verbose):
        if on_ray:
            from tuneloop.deploy import run_on_ray

            folder = run_on_ray(resolved, place, whole=True)
        else:
            folder = run(resolved, anyway=anyway)
    from tuneloop.report import print_closing

    return Result(summary(folder), partial(print_closing, folder, verbose=verbose))


def _on_service(recipe: Recipe, source: str, place: RemoteOptions) -> Result:
    from tuneloop.deploy import plan_hosted, run_hosted

    plan = plan_hosted(recipe, source, place.on, place.max_usd)
    title = plan.service.title
    record: dict[str, Any] = {"folder": str(plan.folder), "on": title, "plan": vars(plan.order)}
    started = (plan.folder / "hosted.json").is_file() or place.cancel
    if not_begun := _without_a_yes(f"{plan.folder}: {plan.words}", title, started, record, place):
        return not_begun
    with screen("training"):
        run = run_hosted(plan, cancel=place.cancel)
    after = f"next      tuneloop compare {plan.folder}" if run.model else "next      the same command without --cancel"
    return Result({**record, "run": run.to_json()}, [f"{run.on} {run.job}: {run.state} {run.model}", after])


def _without_a_yes(
    words: str, title: str, started: bool, record: dict[str, Any], place: RemoteOptions
) -> Result | None:
    """What to answer where nothing may be sent; None after a yes, and where a run continues."""
    if place.dry_run or not (started or place.yes or sys.stdin.isatty()):
        return Result(record, [words, "Nothing was sent: the same command with --yes begins."])
    print_live(words, err=True)
    from tuneloop.deploy import confirmed

    if not started and not confirmed(f"Send it to {title} now?", place.yes):
        return Result(record, ["Nothing was sent."])
    return None


def _elsewhere(recipe: Recipe, place: RemoteOptions) -> None:
    from tuneloop.deploy import launch_after_yes, write_remote

    folder = Path(place.project or f"remote/{recipe.name}-{place.on}")
    with screen("preparing"):
        project = write_remote(recipe, place, folder)
    cluster, job = project.cluster, project.job
    files = f"{folder}: recipe.yaml, dataset, {', '.join(cluster.project(job))}, README.md"
    record = {"folder": str(folder), "on": cluster.name, **vars(job), "plan": project.plan}
    show(Result(record, [files, project.price_words()]), output().as_json)
    if not place.dry_run:
        question = f"Start it on {cluster.title} now?"
        with reporting(say=partial(print_live, err=True)):
            launch_after_yes(project.launch, folder, question, place.yes)


commands = {"init": init.command}
