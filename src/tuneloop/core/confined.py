"""What a command may read and run that a page or an agent starts: places within some folders, no addresses, no code.

Texts come from a model, a form or a file that anyone may have written, so a place is refused by how it is written
before the disk is touched, and then by where it leads: links are followed. A command that is started for a page or an
agent finds its folders in the environment, and checks the recipe that it has parsed, as it will use it: whatever a
setting was called, and however it was quoted. Python files it runs by no means.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json

if TYPE_CHECKING:
    from pydantic import BaseModel

PAGE, AGENT = "a page", "an agent"
CONFINED = "TUNELOOP_CONFINED"  # of the environment: who starts the command, and the folders that it may name
LONGEST = 4096  # characters of a place: PATH_MAX of Linux
MOST_VALUES = 64 * 1024  # characters of all settings together
MOST_FILES = 100_000  # entries of a folder or pattern that are looked at
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CODE = re.compile(r"\.(py(:\w+)?|ya?ml)$|^\S*\.(py|ya?ml)[:,]")  # YAML: tasks of lm-eval hold Python
_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_HOME = re.compile(r"~[^/\\]*([/\\]|$)")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*(\.\d+)?")


def leads_into(path: Path | str, folders: Iterable[Path | str]) -> bool:
    """Whether a path is one of the folders or in it, links followed: the one place where this is decided."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


@dataclass(frozen=True)
class Holds:
    """What a setting's texts are, put into `Annotated`. One without it is no affair of pages and agents: its default
    stays.

    Args:
        kind: `text`, which means nothing to the machine, as a column's name; `place`: files, folders or models;
            `name`: of something that tuneloop or a library brings with it, and no file.
    """

    kind: Literal["text", "place", "name"]


TEXT, PLACE, NAME = Holds("text"), Holds("place"), Holds("name")


@dataclass(frozen=True)
class Roots:
    """The folders whose files may be read and written.

    Args:
        folders: absolute, without links.
        start: where relative places start; default: at the first of the folders.
    """

    folders: tuple[Path, ...]
    start: Path | None = None

    @property
    def base(self) -> Path:
        """The folder where relative places start."""
        return self.start or self.folders[0]

    def place(self, text: str, subject: str = "path") -> str:
        """A place as it was written, once it is known to be within the folders; "" where none was given.

        A name of a model or a new file need not exist. A folder or pattern is refused for a link in it that leads out.

        Raises:
            UserError: it leads, or could lead, out of the folders.
        """
        if text.startswith("-"):
            self._refuse(text, subject, "it begins with -")
        if "=" in text and not os.path.lexists(self.base / text):  # a command would take it for a setting
            self._refuse(text, subject, "it holds = and is no file")
        self._check(text, subject)
        return text

    def _check(self, text: str, subject: str) -> None:
        """Refuse a text, or one of several with commas, that leads out of the folders."""
        for part in dict.fromkeys((text, *map(str.strip, text.split(",")))):
            if problem := self._problem(part):
                self._refuse(text, subject, problem)

    def _refuse(self, text: str, subject: str, problem: str) -> NoReturn:
        allowed = ", ".join(map(str, self.folders))
        step = f"name a place within {allowed}; other folders are opened by tuneloop mcp --root FOLDER"
        raise UserError(f"This {subject} is refused: {problem}", where=text[:200], next_step=step)

    def settings(self, values: Mapping[str, Any], subject: str = "settings") -> list[str]:
        """Nested settings as `key=value` words of a command, once all they name is known to be allowed.

        Raises:
            UserError: a place out of the folders, code, a key that is none, or too much text.
        """
        if len(repr(values)) > MOST_VALUES:
            raise UserError(f"The {subject} are too long", next_step="put long texts into a recipe file")
        self.allow(values, subject)
        return [f"{key}={_as_yaml(value)}" for key, value in _flat(values, subject)]

    def check(self, record: BaseModel, prefix: str = "") -> None:
        """Check parsed settings: each text that is not a default is of a kind that may be chosen here; see `Holds`.

        Raises:
            UserError: a place out of the folders, code, or a setting that pages and agents may not change.
        """
        for name, info in type(record).model_fields.items():
            value, key = getattr(record, name), f"{prefix}{name}"
            if hasattr(value, "model_fields"):
                self.check(value, f"{key}.")
            elif value != info.get_default(call_default_factory=True):
                kind = next((mark.kind for mark in info.metadata if isinstance(mark, Holds)), "")
                if not kind and _may_hold_text(info.annotation) and (texts := [*_texts(value)]):
                    message = f"{key} may name code or an address: it is not set by a page or an agent"
                    step = "a person who trusts the value runs the command in a terminal"
                    raise UserError(message, where=texts[0][:200], next_step=step)
                for text in _texts(value) if kind in ("place", "name") else ():
                    if kind == "name" and not _NAME.fullmatch(text):
                        _refuse_code(key, text)
                    self._check(text, f"value of {key}")
                    if _CODE.search(text.strip()):
                        _refuse_code(key, text)

    def allow(self, value: Any, subject: str) -> None:
        """Check each text in a value: it names no place out of the folders, and no code.

        Raises:
            UserError: see `place`.
        """
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for part in value:
                self.allow(part, subject)
        elif isinstance(value, str):
            if _CODE.search(value.strip()):
                _refuse_code(subject, value)
            if "\n" not in value and len(value) <= LONGEST:
                self._check(value, f"value of {subject}")
            elif value.startswith("/"):
                raise UserError(
                    "A text that begins like a path is refused", where=subject, next_step="begin it otherwise"
                )

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
        if os.path.isabs(text) and not leads_into(text, self.folders):
            return "it is absolute and not within the server's folders"
        # FOLDER:NAME picks a system of an evaluation, so what stands before a colon is a place too.
        parts = text.split(":")
        written = [":".join(parts[:i]) for i in range(1, len(parts) + 1)]
        if outside := next(filter(None, map(self._outside, filter(None, written))), ""):
            return f"{outside} leads out of the server's folders"
        return ""

    def _outside(self, text: str) -> str:
        """What there is at a place, in it, or behind a pattern, and leads out of the folders; "": nothing does."""
        path = os.path.join(self.base, text)
        there = [path] if os.path.lexists(path) else glob.iglob(path, recursive=True)
        for entry in itertools.islice(itertools.chain([path], there), MOST_FILES):
            if not leads_into(entry, self.folders):
                return entry
            if os.path.isdir(entry):
                links = (link for link in _links(entry) if not leads_into(link, self.folders))
                if link := next(links, ""):
                    return link
        return ""


def _links(folder: str) -> Iterator[str]:
    """The symbolic links below a folder; those to folders are not entered."""
    looked = 0
    for root, folders, files in os.walk(folder):
        looked += len(folders) + len(files)
        yield from (path for name in (*folders, *files) if os.path.islink(path := os.path.join(root, name)))
        if looked > MOST_FILES:
            return


def _flat(values: Mapping[str, Any], subject: str, before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted keys."""
    for key, value in values.items():
        if not _KEY.fullmatch(key):
            raise UserError(f"No such key {key[:80]!r}", where=subject, next_step="as in {'train': {'epochs': 2}}")
        if isinstance(value, Mapping) and value:
            yield from _flat(value, subject, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _as_yaml(value: Any) -> str:
    """A value as a command reads it: JSON, which YAML reads too; a text must not become a number."""
    return json.dumps(value, ensure_ascii=False)


def _refuse_code(subject: str, value: str) -> NoReturn:
    step = "a person who trusts the file runs the command in a terminal"
    raise UserError("Code is not run for a page or an agent", where=f"{subject}: {value[:200]}", next_step=step)


def _may_hold_text(annotation: Any) -> bool:
    """Whether a type has texts other than those that it lists."""
    if get_origin(annotation) is Literal:
        return False
    return annotation in (str, Any, object) or any(map(_may_hold_text, get_args(annotation)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from (text for part in value for text in _texts(part))


# --- of a process, or of a part of its work ----------------------------------------------------


@dataclass(frozen=True)
class Confinement:
    """Who started a command, as in `a page`; `roots`: None where what it names was chosen before."""

    who: str
    roots: Roots | None = None


_here: ContextVar[Confinement | None] = ContextVar("confinement", default=None)


def confining(who: str, roots: Roots | None = None) -> dict[str, str]:
    """The variable of the environment that confines a command, and all that it starts."""
    folders = None if roots is None else [str(folder) for folder in roots.folders]
    return {CONFINED: json.dumps({"who": who, "folders": folders})}


@contextlib.contextmanager
def confined(who: str, roots: Roots) -> Iterator[None]:
    """Confine what is done here, as `confining` does a command."""
    token = _here.set(Confinement(who, roots))
    try:
        yield
    finally:
        _here.reset(token)


def confinement() -> Confinement | None:
    """What confines this work; None: a person typed the command."""
    if (here := _here.get()) is not None or (text := os.environ.get(CONFINED)) is None:
        return here
    value = parse_json(text)
    folders = value["folders"]
    roots = None if folders is None else Roots(tuple(map(Path, folders)), Path.cwd())
    return Confinement(str(value["who"]), roots)


def refuse_when_confined(message: str, where: str) -> None:
    """Refuse, by a UserError, what no page and no agent may do: run a file, open an address."""
    if (now := confinement()) is not None:
        step = "a person who trusts it runs the command in a terminal"
        raise UserError(f"{message} for {now.who}", where=where[:200], next_step=step)


def refuse_outside(path: Path) -> None:
    """Refuse, by a UserError, a file outside the folders that confine this work, links followed."""
    now = confinement()
    if now is not None and now.roots is not None and not leads_into(path, now.roots.folders):
        raise UserError("This file is outside the folders", where=str(path)[:200], next_step="name another one")
