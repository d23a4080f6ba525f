"""Start a project: after a yes, by SkyPilot's own package or by the project's first commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop.core.errors import UserError
from tuneloop.core.ui import say
from tuneloop.core.units import hours_words, usd_words, verb
from tuneloop.deploy.hosts import J, JobSite
from tuneloop.deploy.skypilot_sdk import Offer, SkyJob, find_offer, load_sky, start
from tuneloop.planning.catalogue import all_gpus


@dataclass(frozen=True)
class Limit:
    """What a start may cost."""

    hours: float  # of the machines that are offered, which are paid
    planned: float | None = None  # dollars for these, as planned; None: not known
    usd: float = 0.0  # the most; 0: no limit


@dataclass(frozen=True)
class Launch:
    """How a project is started."""

    title: str  # of the host
    up: str  # up, down: commands for a shell, the second for what is left when the first fails
    down: str
    variables: tuple[str, ...] = ()  # of the environment, which they need
    environment: Mapping[str, str] = field(default_factory=dict)  # further ones, which are set for them
    sky: SkyJob | None = None  # what SkyPilot's package starts in place of the commands, where it is installed
    limit: Limit | None = None  # what it may cost, where SkyPilot says what it takes


def launch_at(
    site: JobSite[J],
    job: J,
    variables: tuple[str, ...],
    *,
    environment: Mapping[str, str] | None = None,
    limit: Limit | None = None,
) -> Launch:
    """How a job is started at a place."""
    (up, _), *_, (down, _) = site.commands(job)
    sky = site.sky(job) if site.sky else None
    return Launch(site.title, up, down, variables, environment or {}, sky, limit)


def no_card(site: JobSite[J], key: str) -> UserError:
    """The refusal of a card that a place does not have."""
    name = all_gpus()[key].name if key in all_gpus() else key
    return UserError(f"{site.title} has no {name}", where="--gpu", next_step=f"it has {', '.join(site.gpus)}")


def launch_after_yes(launch: Launch, folder: Path, question: str, yes: bool) -> None:
    """Ask, and start a project: by SkyPilot's package, which first says what it takes now, or by its commands.

    A UserError says that it costs more than the limit, that something is missing, or that it failed and what is left.
    """
    if not yes and not sys.stdin.isatty():
        say(f"Nothing was started. Read {folder}/README.md, then: the same command with --yes")
        return
    sky = load_sky() if launch.sky else None
    if sky is None or launch.sky is None or launch.limit is None:
        if confirmed(question, yes):
            launch_by_commands(launch, folder)
        return
    _refuse_missing(launch, launch.sky.secrets, folder)
    offer = find_offer(sky, launch.sky, folder)
    _say_offer(offer, launch.limit)
    if confirmed(question, yes):
        say(f"up        {launch.sky.kind} {launch.sky.name}, by SkyPilot")
        start(sky, launch.sky, folder)
        after = f"{folder}/README.md has the commands that follow, `{launch.sky.down}` takes it down"
        say(f"up        it is there; {after}")


def _say_offer(offer: Offer, limit: Limit) -> None:
    """Say what SkyPilot takes now, and refuse it where that is more than the limit."""
    usd = offer.usd_per_hour
    total = None if usd is None else usd * limit.hours
    price = "it names no price"
    if usd is not None and total is not None:
        planned = "" if limit.planned is None else f", planned {usd_words(limit.planned)}"
        price = f"{usd_words(usd)} an hour, {usd_words(total)} for {hours_words(limit.hours)} of training{planned}"
    say(f"price     SkyPilot takes {offer.words} now: {price}")
    if limit.usd and (total is None or total > limit.usd):
        message = f"SkyPilot takes {offer.words}: {price}. The limit is {usd_words(limit.usd)}"
        step = "raise the limit, name another --gpu, or try later; nothing was started"
        raise UserError(message, where="--max-usd", next_step=step)


def launch_by_commands(launch: Launch, folder: Path) -> None:
    """Run a project's first commands in its folder; a UserError says what is missing, or failed and may be left."""
    lines = [line.split("#")[0].strip() for line in launch.up.splitlines()]
    lines = [line for line in lines if line and not line.startswith("pip install")]
    variables = {name for name in re.findall(r"\$\{?([A-Z][A-Z0-9_]+)", launch.up) if name != "PWD"}
    _refuse_missing(launch, {*variables, *launch.variables}, folder)
    for line in lines:
        tool = next(word for word in line.split() if "=" not in word)
        if shutil.which(tool) is None and tool != "cd":
            raise UserError(f"No command {tool!r} here", where=launch.title, next_step=f"see {folder / 'README.md'}")
    say(f"up        {' && '.join(lines)}")
    script, environment = "\n".join(lines), {**os.environ, **launch.environment}
    command = ["bash", "-euo", "pipefail", "-c", script]
    # What they print goes to stderr: stdout holds the one object of --json.
    if status := subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=2).returncode:
        step = f"if anything was created, this takes it down: {launch.down.splitlines()[0]}"
        raise UserError(f"The start failed with status {status}, see above", where=str(folder), next_step=step)


def confirmed(question: str, yes: bool) -> bool:
    """Whether to start what costs money: with `--yes`, or after a question."""
    if yes:
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # stdout has one JSON object with --json
    return input().strip().lower() in ("y", "yes")


def _refuse_missing(launch: Launch, names: Iterable[str], folder: Path) -> None:
    environment = {**os.environ, **launch.environment}
    if missing := sorted(name for name in set(names) if not environment.get(name)):
        message = f"{', '.join(missing)} {verb(len(missing), 'is', 'are')} not set"
        step = f"export {missing[0]}=..., as {folder / 'README.md'} says"
        raise UserError(message, where=launch.title, next_step=step)
