"""`tuneloop promote`."""

from __future__ import annotations

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output


def command(
    name: str = typer.Argument(..., help="Name of the model in the registry.", metavar="NAME"),
    version: str = typer.Argument("", help="Number or alias of the version; default: candidate.", metavar="[VERSION]"),
    force: bool = typer.Option(False, "--force", help="Overrule a gate that is not green; the history says so."),
    why: str = typer.Option("", "--why", help="A reason, for the history.", metavar="TEXT"),
    *,
    output: Output,
) -> None:
    """Make a version the champion, if the gate allows it; the champion so far becomes the previous one."""
    from tuneloop.workflows.registry import promote_version

    with screen(output.quiet, "reading the registry") as shown:
        model = promote_version(name, version, force=force, why=why, progress=shown.progress, say=shown.say)
    if output.json:
        print_json({"name": name, "aliases": model.aliases, "event": model.history[-1].as_json()})
    else:
        previous = model.aliases.get("previous")
        print(f"{name}@champion is version {model.aliases['champion']}" + (f", before {previous}" if previous else ""))
