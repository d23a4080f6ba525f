"""`tuneloop deploy`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from tuneloop.cli.console import Result, print_live, show
from tuneloop.cli.parameters import argument, output, screen
from tuneloop.core.flag import flag, switch
from tuneloop.core.ui import reporting
from tuneloop.deploy import DeployOptions


def command(
    artifact: str = argument("ARTIFACT", "Folder of an artifact, or NAME@ALIAS."),
    out: str = flag("", "FOLDER", "Folder of the project; default: deploy/NAME-HOST.", "-o"),
    dry_run: bool = switch("Write the project and its price, start nothing."),
    yes: bool = switch("Start it without asking."),
    *,
    options: DeployOptions,
) -> Result | None:
    """Make the project that serves an artifact on a host.

    Its price is shown. Then it is started, if you say yes; with --dry-run never. Where --to is the folder of a running
    `tuneloop serve`, or is left out next to `serve/`, that server takes the version: it swaps when the new engine has
    answered its test rows.
    """
    from tuneloop.deploy import launch_after_yes, plan_deployment, write_project
    from tuneloop.records.server import ServerState
    from tuneloop.registry import local_name

    server = Path(options.to or "serve")
    if (server / ServerState.file).is_file():
        return _to_server(server, artifact, options.name)
    with screen("checking the artifact"):
        project = plan_deployment(Path(local_name(artifact)), options)
        folder = write_project(project, Path(out or f"deploy/{project.job.name}-{project.host.name}"))
    text = [f"{folder}: {', '.join(sorted(project.files))}", project.price_words()]
    show(Result({"folder": str(folder), **project.record().to_json()}, text), output().as_json)
    if not dry_run:
        question = f"Start it on {project.host.title} now?"
        with reporting(say=partial(print_live, err=True)):
            launch_after_yes(project.launch, folder, question, yes)
    return None


def _to_server(folder: Path, source: str, name: str) -> Result:
    from tuneloop.serving import deploy_to_server

    with screen("waiting for the server"):
        swap = deploy_to_server(folder, source, name=name)
    if swap.swapped:
        line = f"{swap.name} is served from {swap.source}"
    elif swap.swapped is False:
        line = f"{swap.name} stays as it was: {swap.why}"
    else:
        when = "the server has not swapped yet; its log says why" if swap.running else "from the server's next start"
        line = f"{swap.name} from {swap.source}: {when}"
    return Result(asdict(swap), [line], int(swap.swapped is False))
