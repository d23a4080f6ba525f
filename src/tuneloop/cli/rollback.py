"""`tuneloop rollback`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output


def command(
    name: str = typer.Argument(..., help="Name of the model in the registry.", metavar="NAME"),
    why: str = typer.Option("", "--why", help="A reason, for the history.", metavar="TEXT"),
    *,
    output: Output,
) -> None:
    """Make the previous version the champion again."""
    from tuneloop.release.registry import rollback
    from tuneloop.workflows.registry import open_registry

    with screen(output.quiet, "reading the registry") as shown:
        model = rollback(open_registry(say=shown.say), name, why=why)
    event = model.history[-1]
    if output.json:
        print_json({"name": name, "aliases": model.aliases, "event": event.as_json()})
    else:
        print(f"{name}@champion is version {event.model_version} again, no longer {event.before['champion']}")
