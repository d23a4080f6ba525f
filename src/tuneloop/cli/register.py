"""`tuneloop register`."""

from __future__ import annotations

from pathlib import Path

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag


def command(
    artifact: str = argument("ARTIFACT", "Folder of an exported artifact."),
    name: str = flag(..., "NAME", "Name of the model in the registry.", "-n"),
    run: str = flag("", "FOLDER", "Folder of its run, whose gate is asked at promotion; default: runs/ID."),
    why: str = flag("", "TEXT", "A reason, for the history."),
    *,
    output: Output,
) -> None:
    """Register an artifact as the newest version of a model.

    It becomes the model's candidate. The registry is MLflow's: MLFLOW_REGISTRY_URI, else MLFLOW_TRACKING_URI, else mlflow.db in this folder.
    """
    from tuneloop.registry.registered import register_artifact

    with screen(output.quiet, "registering") as shown:
        found = register_artifact(Path(artifact), name, run=Path(run) if run else None, why=why)
    if output.json:
        print_json({"name": name, **found.model_dump()})
    else:
        named = f" ({', '.join(found.aliases)})" if found.aliases else ""
        print(f"{name} version {found.version}{named}: {found.lineage.artifact}")
