"""`tuneloop deploy`."""

from __future__ import annotations

import sys
from pathlib import Path

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch
from tuneloop.scale.deployment import DeployWish


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

    Then it is put up, if you say yes; with --dry-run never.
    """
    from tuneloop.scale.text import price_words
    from tuneloop.workflows.deploy import confirmed, launch_of, plan_deployment, put_up, record_of, write_project
    from tuneloop.workflows.registry import local_name

    with screen(output.quiet, "checking the artifact") as shown:
        project = plan_deployment(Path(local_name(artifact, say=shown.say)), wish)
        folder = write_project(project, Path(out or f"deploy/{project.job.name}-{project.host.name}"))
    if output.json:
        print_json({"folder": str(folder), **record_of(project).to_json()})
    else:
        print(f"{folder}: {', '.join(sorted(project.files))}\n{price_words(project.job)}")
    if not dry_run and confirmed(f"Put it up on {project.host.title} now?", yes, folder):
        put_up(launch_of(project), folder, lambda line: print(line, file=sys.stderr))
