"""`tuneloop deploy`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import typer

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.deploy.deployment import DeployWish


def command(
    artifact: str = argument("ARTIFACT", "Folder of an artifact, or NAME@ALIAS."),
    out: str = flag("", "FOLDER", "Folder of the project; default: deploy/NAME-HOST.", "-o"),
    dry_run: bool = switch("Write the project and its price, put nothing up."),
    yes: bool = switch("Put it up without asking."),
    *,
    wish: DeployWish,
    output: Output,
) -> None:
    """Make the project that serves an artifact on a host, with its price.

    Then it is put up, if you say yes; with --dry-run never. Where --to is the folder of a running `tuneloop serve`, or
    is left out next to `serve/`, that server takes the version: it swaps when the new engine has answered its test rows.
    """
    from tuneloop.deploy.command import launch_of, plan_deployment, record_of, write_project
    from tuneloop.deploy.launch import put_up_after_yes
    from tuneloop.deploy.project_text import price_words
    from tuneloop.records.server import ServerState
    from tuneloop.registry.registered import local_name

    place = Path(wish.to or "serve")
    if (place / ServerState.file).is_file():
        _to_server(place, artifact, wish.name, output)
        return
    with screen(output.quiet, "checking the artifact") as shown:
        project = plan_deployment(Path(local_name(artifact)), wish)
        folder = write_project(project, Path(out or f"deploy/{project.job.name}-{project.host.name}"))
    if output.json:
        print_json({"folder": str(folder), **record_of(project).to_json()})
    else:
        print(f"{folder}: {', '.join(sorted(project.files))}\n{price_words(project.host, project.job)}")
    if not dry_run:
        question = f"Put it up on {project.host.title} now?"
        put_up_after_yes(launch_of(project, wish), folder, question, yes, lambda line: print(line, file=sys.stderr))


def _to_server(folder: Path, source: str, name: str, output: Output) -> None:
    from tuneloop.serving.swap import deploy_to_server

    with screen(output.quiet, "waiting for the server"):
        found = deploy_to_server(folder, source, name=name)
    if output.json:
        print_json(asdict(found))
    elif found.swapped:
        print(f"{found.name} is served from {found.source}")
    elif found.swapped is False:
        print(f"{found.name} stays as it was: {found.why}")
    else:
        when = "the server has not swapped yet; its log says why" if found.running else "from the server's next start"
        print(f"{found.name} from {found.source}: {when}")
    if found.swapped is False:
        raise typer.Exit(1)
