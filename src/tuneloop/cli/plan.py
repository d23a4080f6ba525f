"""`tuneloop plan`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import Debug, Json, Quiet, Settings, print_json, screen


def command(
    source: str = typer.Argument(..., help="Recipe, or folder of a prepared data set.", metavar="RECIPE.yaml|DATASET"),
    settings: Settings = None,
    model: str = typer.Option("", "--model", "-m", help="Base model."),
    out: str = typer.Option("", "--out", "-o", help="Write plan.json to this folder."),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what training takes on this machine: memory, minutes, dollars. Exit status 1 when it does not fit."""
    from tuneloop import pipeline

    with screen(quiet) as shown:
        plan = pipeline.plan_alone(
            pipeline.recipe_of(source, settings or [], model=model), out, progress=shown.progress, say=shown.say
        )
    if as_json:
        print_json(plan)
    else:
        print(pipeline.plan_line(plan))
        for name, gib in plan["memory"]["terms"].items():
            print(f"  {gib:7.2f} GiB  {name}")
        print(f"  {plan['memory']['peak_gib']:7.2f} GiB  peak, of {plan['memory']['capacity_gib']:.1f} GiB")
        for line in plan["assumptions"]:
            print(f"  assumed: {line}")
        for change in plan["alternatives"]:
            print(f"  instead: {change['change']} ({change['why']})")
    if not plan["fits"]:
        raise typer.Exit(1)
