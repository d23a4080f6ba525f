"""What a coding agent may name: places within the folders that the server was given, and no code.

Texts come from a model that may have read anything, so a place is refused by how it is written before the disk is
asked, and then by where it leads: links are followed. What a recipe or a run's settings name is checked as well.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_yaml

LONGEST = 4096  # characters of a place: PATH_MAX of Linux
MOST_VALUES = 64 * 1024  # characters of all settings together
MOST_FILES = 100_000  # entries of a folder or pattern that are looked at
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CODE = re.compile(r"\.(py(:\w+)?|ya?ml)$|^\S*\.(py|ya?ml)[:,]")  # YAML: tasks of lm-eval hold Python
_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_HOME = re.compile(r"~[^/\\]*([/\\]|$)")


@dataclass(frozen=True)
class Roots:
    """The folders whose files may be read and written.

    Args:
        folders: absolute, without links; relative places start at the first one.
    """

    folders: tuple[Path, ...]

    def place(self, text: str, what: str = "path") -> str:
        """A place as it was written, once it is known to be within the folders; "" where none was given.

        A name of a model or a new file need not exist. A folder or pattern is refused for a link in it that leads out.

        Raises:
            UserError: it leads, or could lead, out of the folders.
        """
        if text.startswith("-"):
            self._refuse(text, what, "it begins with -")
        if "=" in text and not os.path.lexists(self.folders[0] / text):  # a command would take it for a setting
            self._refuse(text, what, "it holds = and is no file")
        self._check(text, what)
        return text

    def _check(self, text: str, what: str) -> None:
        """Refuse a text, or one of several with commas, that leads out of the folders."""
        for part in dict.fromkeys((text, *map(str.strip, text.split(",")))):
            if problem := self._problem(part):
                self._refuse(text, what, problem)

    def _refuse(self, text: str, what: str, problem: str) -> NoReturn:
        allowed = ", ".join(map(str, self.folders))
        step = f"name a place within {allowed}; other folders are opened by tuneloop mcp --root FOLDER"
        raise UserError(f"This {what} is refused: {problem}", where=text[:200], next_step=step)

    def settings(self, values: Mapping[str, Any], what: str = "settings") -> list[str]:
        """Nested settings as `key=value` words of a command, once all they name is known to be allowed.

        Raises:
            UserError: a place out of the folders, code, a key that is none, or too much text.
        """
        if len(repr(values)) > MOST_VALUES:
            raise UserError(f"The {what} are too long", next_step="put long texts into a recipe file")
        self.allow(values, what)
        return [f"{key}={_as_yaml(value)}" for key, value in _flat(values, what)]

    def recipe(self, source: str) -> str:
        """A source of rows like any place; of a recipe, or a run's, everything that it names is checked too.

        Raises:
            UserError: see `place`; the file can't be read.
        """
        self.place(source, "source")
        path = self.folders[0] / source
        for file in (path, path / "config.yaml"):
            if file.suffix in (".yaml", ".yml") and file.is_file():
                self.allow(read_yaml(file), source)
        return source

    def allow(self, value: Any, what: str) -> None:
        """Check each text in a value: it names no place out of the folders, and no code.

        Raises:
            UserError: see `place`.
        """
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for part in value:
                self.allow(part, what)
        elif isinstance(value, str):
            if _CODE.search(value.strip()):
                step = "a person who trusts the file runs the command on a terminal"
                raise UserError("Code is not run for an agent", where=f"{what}: {value[:200]}", next_step=step)
            if "\n" not in value and len(value) <= LONGEST:
                self._check(value, f"value of {what}")
            elif value.startswith("/"):
                raise UserError("A text that begins like a path is refused", where=what, next_step="begin it otherwise")

    def _problem(self, text: str) -> str:
        """Why a place is refused; "": it is not."""
        if not text:
            return ""
        if len(text) > LONGEST or "\0" in text:
            return "it is too long, or holds a zero byte"
        if _SCHEME.match(text) or text.lower().startswith("file:"):
            return "addresses are not opened for an agent"
        if _HOME.match(text):
            return "it names a home folder"
        if ".." in re.split(r"[/\\]", text):
            return "it holds .."
        if os.path.isabs(text) and not self._within(text):
            return "it is absolute and not within the server's folders"
        # FOLDER:NAME picks a system of an evaluation, so what stands before a colon is a place too.
        parts = text.split(":")
        written = [":".join(parts[:i]) for i in range(1, len(parts) + 1)]
        if outside := next(filter(None, map(self._outside, filter(None, written))), ""):
            return f"{outside} leads out of the server's folders"
        return ""

    def _outside(self, text: str) -> str:
        """What there is at a place, in it, or behind a pattern, and leads out of the folders; "": nothing does."""
        path = os.path.join(self.folders[0], text)
        there = [path] if os.path.lexists(path) else glob.iglob(path, recursive=True)
        for entry in itertools.islice(itertools.chain([path], there), MOST_FILES):
            if not self._within(entry):
                return entry
            if os.path.isdir(entry):
                links = (link for link in _links(entry) if not self._within(link))
                if link := next(links, ""):
                    return link
        return ""

    def _within(self, path: str) -> bool:
        """Whether a path leads into the folders, links followed."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(folder) for folder in self.folders)


def _links(folder: str) -> Iterator[str]:
    """The symbolic links below a folder; those to folders are not entered."""
    looked = 0
    for place, folders, files in os.walk(folder):
        looked += len(folders) + len(files)
        yield from (path for name in (*folders, *files) if os.path.islink(path := os.path.join(place, name)))
        if looked > MOST_FILES:
            return


def _flat(values: Mapping[str, Any], what: str, before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted keys."""
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            raise UserError(f"No such key {key[:80]!r}", where=what, next_step="as in {'train': {'epochs': 2}}")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, what, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _as_yaml(value: Any) -> str:
    """A value as a command reads it: JSON, which YAML reads too; a text must not become a number."""
    return json.dumps(value, ensure_ascii=False)
