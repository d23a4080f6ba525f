"""`tuneloop register`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output


def command(
    artifact: str = typer.Argument(..., help="Folder of an exported artifact.", metavar="ARTIFACT"),
    name: str = typer.Option(..., "--name", "-n", help="Name of the model in the registry.", metavar="NAME"),
    run: str = typer.Option(
        "", "--run", help="Folder of its run, whose gate is asked at promotion; default: runs/ID.", metavar="FOLDER"
    ),
    why: str = typer.Option("", "--why", help="A reason, for the history.", metavar="TEXT"),
    *,
    output: Output,
) -> None:
    """Register an artifact as the newest version of a model, and as its candidate.

    The registry is MLflow's: MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI, else mlflow.db in this folder.
    """
    from pathlib import Path

    from tuneloop.workflows.registry import register_artifact

    with screen(output.quiet, "registering") as shown:
        found = register_artifact(
            Path(artifact), name, run=Path(run) if run else None, why=why, progress=shown.progress, say=shown.say
        )
    if output.json:
        print_json({"name": name, **found.model_dump()})
    else:
        named = f" ({', '.join(found.aliases)})" if found.aliases else ""
        print(f"{name} version {found.version}{named}: {found.lineage.artifact}")
