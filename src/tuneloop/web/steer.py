"""What a page does to a run: stop, resume, clone with changes; each is the command that a terminal would be given."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuneloop.agents import start_job
from tuneloop.core.confined import PAGE, Roots, confined, confining
from tuneloop.core.errors import UserError
from tuneloop.core.files import flat, make_folder, read_yaml, user_errors_of_the_disk, write_yaml
from tuneloop.core.foreign import appended, lines_of
from tuneloop.core.ids import utc_now
from tuneloop.recipe import Recipe, make_recipe
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
    """A command line for a run, and the folder in which it is given.

    Args:
        run: folder of the run that it works on.
        recipe: what is written there as its recipe before; `changes`: those of its settings that are new.
    """

    words: tuple[str, ...]
    place: Path
    run: Path
    recipe: Recipe | None = None
    changes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """As it is typed."""
        line = f"cd {shlex.quote(str(self.place))} && {shlex.join(('tuneloop', *self.words))}"
        return f"{line}  # with {', '.join(self.changes)}" if self.changes else line


def started_in(run: Path) -> Path:
    """The folder in which a run was started: that from which its own folder and its sources are found.

    Raises:
        UserError: no folder above it is one, as when the run was moved.
    """
    config = read_yaml(run / CONFIG, below=run)
    data = config.get("data")
    sources = [str(source) for source in (data.get("sources") if isinstance(data, dict) else None) or []]
    output = str(config.get("output_dir") or f"runs/{run.name}")
    for parent in run.parents:
        if (parent / output).resolve() == run and all((parent / source).exists() for source in sources):
            return parent
    step = "start it in a terminal, in the folder of its data"
    raise UserError("It can't be seen where this run was started", where=str(run), next_step=step)


def resume_command(sources: Sources, found: Found) -> RunCommand:
    """The command that continues a run. Raises UserError: its recipe names code, or what is outside the folders."""
    start, values = started_in(found.path), read_yaml(found.path / CONFIG, below=found.path)
    arguments = ["run", os.path.relpath(found.path / CONFIG, start)]
    with confined(PAGE, _roots(sources, start)):
        make_recipe(values, where=found.path.name)
    if not values.get("output_dir"):
        arguments.append(f"output_dir={os.path.relpath(found.path, start)}")
    return RunCommand((*arguments,), start, found.path)


def clone_command(sources: Sources, found: Found, name: str, changes: Sequence[str]) -> RunCommand:
    """The command that trains with a run's settings but for some `key=value`, in the folder `name` next to it.

    The values are parsed here, once: the recipe that comes of them is checked, and is what the command gets.

    Raises:
        UserError: the name is taken or none, a change is no `key=value`, is not for pages, or names a place outside
            the folders.
    """
    if not name or name != Path(name).name or name[0] in ".-" or "=" in name:
        raise UserError("This is no name for a folder", where=name[:80], next_step="use letters, digits, . _ -")
    folder = found.path.parent / name
    if folder.exists():
        raise UserError("There is a folder of this name already", where=name, next_step="choose another name")
    if wrong := next((change for change in changes if "=" not in change), ""):
        raise UserError("A change is written as key=value", where=wrong[:80], next_step="as in train.epochs=2")
    start = started_in(found.path)
    output = os.path.relpath(folder, start)
    values = read_yaml(found.path / CONFIG, below=found.path) | {"output_dir": output}
    with confined(PAGE, _roots(sources, start)):
        before, recipe = make_recipe(values, where=found.path.name), make_recipe(values, changes)
    if recipe.output_dir != output:
        raise UserError("The folder of a clone is next to its run", where="output_dir", next_step="give it a name")
    old, new = (flat(settings.model_dump(mode="json")) for settings in (before, recipe))
    shown = tuple(f"{key}={json.dumps(value)}" for key, value in new.items() if old.get(key) != value)
    arguments = ("run", os.path.relpath(folder / CONFIG, start))
    return RunCommand(arguments, start, folder, recipe, shown)


def _roots(sources: Sources, path: Path) -> Roots:
    return Roots(tuple(folder.resolve() for folder in sources.index.folders), path)


def start(sources: Sources, command: RunCommand, action: str) -> None:
    """Start a command in a process of its own, which outlives the page. Raises UserError: the run is worked on."""
    if holder(command.run) is not None:
        raise UserError("This run is running already", where=command.run.name, next_step="load the page again")
    sources.inside(command.run)
    if command.recipe is not None:
        write_yaml(command.run / CONFIG, command.recipe.model_dump(mode="json"))
    environment = {**os.environ, **confining(PAGE, _roots(sources, command.place))}
    start_job(command.run, command.words, command.place, environment)
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
    with suppress(OSError, ValueError):
        for line in lines_of(run / HISTORY, below=run):
            with suppress(ValueError):
                lines.insert(0, PageAction.model_validate_json(line))
    return lines


def _note(sources: Sources, run: Path, action: str, command: str) -> None:
    line = PageAction(time=utc_now(), who=sources.who, action=action, command=command)
    make_folder(run)
    with user_errors_of_the_disk(run), appended(run / HISTORY, below=run) as file:
        file.write(f"{line.model_dump_json()}\n".encode())
