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
    options: RemoteOptions,
) -> Result | None:
    """Do all stages in one go, from the rows to the report.

    With --on ray a Ray cluster does it. With another place the data are prepared here, and a project is written that
    does the rest there. A service (--on openai) trains one of its models on a prepared data set; the same command
    continues to follow it.
    """
    from tuneloop.pipeline import run_job, shared_out, summary
    from tuneloop.recipe import recipe_of

    resolved = recipe_of(source, settings or [], out=out)
    on_ray = is_ray(options.on)
    if on_ray:
        refuse_options_of_rented(options)
    elif is_service(options.on):
        return _on_service(resolved, source, options)
    elif options.on:
        _elsewhere(resolved, options)
        return None
    elif (status := shared_out(resolved)) is not None:
        raise typer.Exit(status)
    with screen("running", brief=not verbose):
        if on_ray:
            from tuneloop.deploy import run_on_ray

            folder = run_on_ray(resolved, options, whole=True)
        else:
            folder = run_job(resolved, anyway=anyway)
    from tuneloop.report import print_closing

    return Result(summary(folder), partial(print_closing, folder, verbose=verbose))


def _on_service(recipe: Recipe, source: str, options: RemoteOptions) -> Result:
    from tuneloop.deploy import plan_hosted, run_hosted

    plan = plan_hosted(recipe, source, options.on, options.max_usd)
    title = plan.service.title
    record: dict[str, Any] = {"folder": str(plan.folder), "on": title, "plan": vars(plan.order)}
    started = (plan.folder / "hosted.json").is_file() or options.cancel
    if not_begun := _without_a_yes(f"{plan.folder}: {plan.words}", title, started, record, options):
        return not_begun
    with screen("training"):
        run = run_hosted(plan, cancel=options.cancel)
    after = f"next      tuneloop compare {plan.folder}" if run.model else "next      the same command without --cancel"
    return Result({**record, "run": run.to_json()}, [f"{run.on} {run.job}: {run.state} {run.model}", after])


def _without_a_yes(
    summary: str, title: str, started: bool, record: dict[str, Any], options: RemoteOptions
) -> Result | None:
    """What to answer where nothing may be sent; None after a yes, and where a run continues."""
    if options.dry_run or not (started or options.yes or sys.stdin.isatty()):
        return Result(record, [summary, "Nothing was sent: the same command with --yes begins."])
    print_live(summary, err=True)
    from tuneloop.deploy import confirmed

    if not started and not confirmed(f"Send it to {title} now?", options.yes):
        return Result(record, ["Nothing was sent."])
    return None


def _elsewhere(recipe: Recipe, options: RemoteOptions) -> None:
    from tuneloop.deploy import launch_after_yes, write_remote

    folder = Path(options.project or f"remote/{recipe.name}-{options.on}")
    with screen("preparing"):
        project = write_remote(recipe, options, folder)
    cluster, job = project.cluster, project.job
    files = f"{folder}: recipe.yaml, dataset, {', '.join(cluster.project(job))}, README.md"
    record = {"folder": str(folder), "on": cluster.name, **vars(job), "plan": project.plan}
    show(Result(record, [files, project.price_words()]), output().as_json)
    if not options.dry_run:
        question = f"Start it on {cluster.title} now?"
        with reporting(say=partial(print_live, err=True)):
            launch_after_yes(project.launch, folder, question, options.yes)


commands = {"init": init.command}
