"""What a page does to a run: stop, resume, clone with changes; each is the command that a terminal would be given."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuneloop.agents.jobs import start_job
from tuneloop.agents.roots import Roots
from tuneloop.core.errors import UserError
from tuneloop.core.files import make_folder, read_yaml
from tuneloop.core.ids import utc_now
from tuneloop.records.record import Part
from tuneloop.web.index import Found
from tuneloop.web.runs import CONFIG, holder
from tuneloop.web.sources import Sources

HISTORY = "actions.jsonl"


class PageAction(Part):
    """A line of `RUN/actions.jsonl`: what was done to a run on the page, when (ISO 8601), by whom, by which command."""

    time: str
    who: str
    action: str
    command: str
    folder: str = ""


@dataclass(frozen=True)
class RunCommand:
    """A command line for a run, and the folder in which it is given."""

    words: tuple[str, ...]
    place: Path
    run: Path  # folder of the run that it works on

    @property
    def line(self) -> str:
        """As it is typed."""
        return f"cd {shlex.quote(str(self.place))} && {shlex.join(('tuneloop', *self.words))}"


def started_in(run: Path) -> Path:
    """The folder in which a run was started: that from which its own folder and its sources are found.

    Raises:
        UserError: no folder above it is one, as when the run was moved.
    """
    config = read_yaml(run / CONFIG)
    sources = [str(source) for source in (config.get("data") or {}).get("sources") or []]
    output = str(config.get("output_dir") or f"runs/{run.name}")
    for place in run.parents:
        if (place / output).resolve() == run and all((place / source).exists() for source in sources):
            return place
    step = "start it in a terminal, in the folder of its data"
    raise UserError("It can't be seen where this run was started", where=str(run), next_step=step)


def resume_command(found: Found) -> RunCommand:
    """The command that continues a run."""
    place = started_in(found.path)
    words = ["run", os.path.relpath(found.path / CONFIG, place)]
    if not read_yaml(found.path / CONFIG).get("output_dir"):
        words.append(f"output_dir={os.path.relpath(found.path, place)}")
    return RunCommand((*words,), place, found.path)


def clone_command(sources: Sources, found: Found, name: str, changes: Sequence[str]) -> RunCommand:
    """The command that trains with a run's settings but for some `key=value`, in the folder `name` next to it.

    Raises:
        UserError: the name is taken or none, a change is no `key=value` or names a place outside the folders.
    """
    if not name or name != Path(name).name or name[0] in ".-" or "=" in name:
        raise UserError("This is no name for a folder", where=name[:80], next_step="use letters, digits, . _ -")
    folder = found.path.parent / name
    if folder.exists():
        raise UserError("There is a folder of this name already", where=name, next_step="choose another name")
    pairs = [change.partition("=") for change in changes]
    if wrong := next((change for change, (_, sign, _) in zip(changes, pairs, strict=True) if not sign), ""):
        raise UserError("A change is written as key=value", where=wrong[:80], next_step="as in train.epochs=2")
    roots = Roots(tuple(folder.resolve() for folder in sources.index.folders))
    for key, _, value in pairs:
        roots.settings({key: value})
    place = started_in(found.path)
    words = ("run", os.path.relpath(found.path / CONFIG, place), f"output_dir={os.path.relpath(folder, place)}")
    return RunCommand((*words, *changes), place, folder)


def start(sources: Sources, command: RunCommand, action: str) -> None:
    """Start a command in a process of its own, which outlives the page. Raises UserError: the run is worked on."""
    if holder(command.run) is not None:
        raise UserError("This run is running already", where=command.run.name, next_step="load the page again")
    sources.inside(command.run)
    start_job(command.run, command.words, command.place, dict(os.environ))
    _note(sources, command.run, action, command.line)


def stop(sources: Sources, found: Found) -> None:
    """End a run as SIGTERM does: a checkpoint is saved first. Raises UserError: it does not work on this machine."""
    pid = holder(found.path)
    if pid is None:
        step = "it has ended, or runs elsewhere: stop it there"
        raise UserError("No process on this machine works on this run", where=found.path.name, next_step=step)
    os.kill(pid, signal.SIGTERM)
    _note(sources, found.path, "stop", f"kill -TERM {pid}")


def history(run: Path) -> list[PageAction]:
    """What was done to a run on a page, the latest first."""
    lines: list[PageAction] = []
    with suppress(OSError):
        for line in (run / HISTORY).read_bytes().splitlines():
            with suppress(ValueError):
                lines.insert(0, PageAction.model_validate_json(line))
    return lines


def _note(sources: Sources, run: Path, action: str, command: str) -> None:
    line = PageAction(time=utc_now(), who=sources.who, action=action, command=command)
    make_folder(run)
    with (run / HISTORY).open("a", encoding="utf-8") as file:
        file.write(line.model_dump_json() + "\n")
