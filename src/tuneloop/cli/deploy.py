"""`tuneloop deploy`."""

from __future__ import annotations

import sys

from tuneloop.cli.console import print_json, screen
from tuneloop.cli.parameters import Output, argument
from tuneloop.core.flag import flag, switch


def command(
    artifact: str = argument("ARTIFACT", "Folder of an artifact, or NAME@ALIAS."),
    to: str = flag("", "HOST", "Where it is served; without it the hosts are listed."),
    out: str = flag("", "FOLDER", "Folder of the project; default: deploy/NAME-HOST.", "-o"),
    dry_run: bool = switch("Write the project and its price, put nothing up."),
    yes: bool = switch("Put it up without asking."),
    hub: str = flag("", "ORG/NAME", "Where the artifact lies on the Hugging Face hub (tuneloop push)."),
    name: str = flag("", "NAME", "Name of the service; default: by the artifact."),
    gpu: str = flag("", "GPU", "Card of a replica, as in plan; default: the cheapest that holds the model."),
    context: int = flag(0, "N", "Most tokens of a prompt and its answer; default: 4,096, or the model's if less."),
    min_replicas: int = flag(1, "N", "Replicas that are always on; 0: none, where the host can start them."),
    max_replicas: int = flag(1, "N", "Most replicas."),
    idle_minutes: float = flag(15.0, "M", "How long an idle replica above the least is kept."),
    *,
    output: Output,
) -> None:
    """Make the project that serves an artifact on a host, with its price, and put it up.

    Nothing is put up with --dry-run, nor without a yes.
    """
    from pathlib import Path

    from tuneloop.core.errors import UserError
    from tuneloop.scale.deployment import Traffic
    from tuneloop.scale.text import price_words
    from tuneloop.workflows.deploy import DeployWish, plan_deployment, put_up, record_of, write_project
    from tuneloop.workflows.registry import local_name

    if not to:
        raise UserError("Where to?", where="--to", next_step=f"name one of {_names()}")
    if not 0 <= min_replicas <= max(max_replicas, 1) or max_replicas < 1 or idle_minutes <= 0:
        raise UserError("Replicas: 0 <= least <= most, and most at least 1", where="--min-replicas, --max-replicas")
    traffic = Traffic(min_replicas, max_replicas, idle_minutes)
    wish = DeployWish(to, hub, name, gpu, context or None, traffic)
    with screen(output.quiet, "checking the artifact") as shown:
        project = plan_deployment(Path(local_name(artifact, say=shown.say)), wish)
        folder = write_project(project, Path(out or f"deploy/{project.job.name}-{to}"))
    if output.json:
        print_json({"folder": str(folder), "up": not dry_run and yes, **record_of(project).to_json()})
    else:
        print(f"{folder}: {', '.join(sorted(project.files))}\n{price_words(project.job)}")
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            print(f"Nothing was put up. Read {folder}/README.md, then: the same command with --yes", file=sys.stderr)
            return
        if input(f"Put it up on {project.host.title} now? [y/N] ").strip().lower() not in ("y", "yes"):
            return
    put_up(project, folder, lambda line: print(line, file=sys.stderr))


def _names() -> str:
    from tuneloop.scale.hosts import hosts

    return ", ".join(hosts())
