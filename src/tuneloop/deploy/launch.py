"""Put a project up: after a yes, by SkyPilot's own package or by the project's first commands."""

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
from tuneloop.core.units import usd_words
from tuneloop.deploy.skypilot_sdk import Offer, SkyJob, find_offer, load_sky, start


@dataclass(frozen=True)
class Limit:
    """What putting something up may cost."""

    hours: float  # of the machines that are offered, which are paid
    words: str  # for what, in words
    planned: float | None = None  # dollars for these, as planned; None: not known
    usd: float = 0.0  # the most; 0: no limit
    option: str = ""  # of the command line, which sets it


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


def launch_after_yes(launch: Launch, folder: Path, question: str, yes: bool) -> None:
    """Ask, and put a project up: by SkyPilot's package, which first says what it takes now, or by the project's commands.

    Raises:
        UserError: it costs more than the limit, something is missing, or it fails; what it may have left is named.
    """
    if not yes and not sys.stdin.isatty():
        say(f"Nothing was put up. Read {folder}/README.md, then: the same command with --yes")
        return
    sky = load_sky() if launch.sky else None
    if sky is None or launch.sky is None:
        if confirmed(question, yes):
            launch_by_commands(launch, folder)
        return
    _refuse_missing(launch, launch.sky.secrets, folder)
    offer = find_offer(sky, launch.sky, folder)
    _say_offer(offer, launch.limit)
    if confirmed(question, yes):
        say(f"up        {launch.sky.kind} {launch.sky.name}, by SkyPilot")
        start(sky, launch.sky, folder)
        readme = folder / "README.md"
        say(f"up        it is there; {readme} has the commands that follow, `{launch.sky.down}` takes it down")


def _say_offer(offer: Offer, limit: Limit | None) -> None:
    """Say what SkyPilot takes now, and refuse it where that is more than the limit."""
    usd = offer.usd_per_hour
    if limit is None:
        say(f"price     {offer.words}" + ("" if usd is None else f": {usd_words(usd)} an hour"))
        return
    total = None if usd is None else usd * limit.hours
    price = "it names no price"
    if usd is not None and total is not None:
        planned = "" if limit.planned is None else f", planned {usd_words(limit.planned)}"
        price = f"{usd_words(usd)} an hour, {usd_words(total)} {limit.words}{planned}"
    say(f"price     SkyPilot takes {offer.words} now: {price}")
    if limit.usd and (total is None or total > limit.usd):
        raise UserError(
            f"SkyPilot takes {offer.words}: {price}. The limit is {usd_words(limit.usd)}", where=limit.option,
            next_step="raise the limit, name another --gpu, or try later; nothing was started",
        )  # fmt: skip


def launch_by_commands(launch: Launch, folder: Path) -> None:
    """Run a project's first commands in its folder.

    Raises:
        UserError: a tool or a variable is missing, or a command fails; what it may have left is named.
    """
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
    if status := subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL).returncode:
        raise UserError(
            f"Putting it up failed with status {status}; its own words stand above", where=str(folder),
            next_step=f"if anything was created, this takes it down: {launch.down.splitlines()[0]}",
        )  # fmt: skip


def confirmed(question: str, yes: bool) -> bool:
    """Whether to go on with what costs money: said beforehand, or asked."""
    if yes:
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)  # stdout has one JSON object with --json
    return input().strip().lower() in ("y", "yes")


def _refuse_missing(launch: Launch, names: Iterable[str], folder: Path) -> None:
    """Refuse to begin without a variable of the environment."""
    environment = {**os.environ, **launch.environment}
    if missing := sorted(name for name in set(names) if not environment.get(name)):
        raise UserError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set", where=launch.title,
            next_step=f"export {missing[0]}=..., as {folder / 'README.md'} says",
        )  # fmt: skip
