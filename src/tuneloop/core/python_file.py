"""A Python file of the user's own, run in this process: scorers, training methods.

It runs only where the user has named it: on the command line, in a recipe named there, or in a call from Python.
What a folder names (a run, an artifact, a data set, a router) may be another person's, and runs with `--trust-code`
alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from tuneloop.core.confined import confinement, refuse_when_confined
from tuneloop.core.errors import UserError

TRUST = "--trust-code"
_TRUSTED = "TUNELOOP_TRUSTED_CODE"  # files, one a line, or *: in the environment, where a command's processes find it
_CODE_FILE = re.compile(r"[^\s=,{}\[\]'\"]+\.py(?=$|[\s:,}\]'\"])")


def trust_code(value: object) -> None:
    """Let the Python files run that the user names in an argument, a recipe's values or any part; `*`: every file.

    What a page or an agent starts trusts none.
    """
    if confinement() is not None:
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            trust_code(part)
    elif isinstance(value, str):
        files = ["*"] if value == "*" else [str(_path(file)) for file in _CODE_FILE.findall(value)]
        os.environ[_TRUSTED] = "\n".join(dict.fromkeys([*_trusted(), *files]))


@contextlib.contextmanager
def code_of_a_command(arguments: Sequence[str]) -> Iterator[None]:
    """Trust the files that a command line names, and with `--trust-code` every file, until it ends."""
    before = os.environ.get(_TRUSTED)
    trust_code(["*" if argument == TRUST else argument for argument in arguments if argument != "*"])
    try:
        yield
    finally:
        os.environ.pop(_TRUSTED, None)
        os.environ.update({} if before is None else {_TRUSTED: before})


def _trusted() -> list[str]:
    return os.environ.get(_TRUSTED, "").splitlines()


def _path(file: str) -> Path:
    return Path(file).expanduser().resolve()


def need_trust(file: str, where: str) -> None:
    """Refuse, by a UserError, a file with code that a folder names and the user does not, or any for a page."""
    refuse_when_confined("Code is not run", f"{where}: {file}")
    if not {"*", str(_path(file))} & set(_trusted()):
        message = f"{file} is code that a folder names and you have not: it is not run"
        step = f"read the file; where you trust it, run the same command with {TRUST}"
        raise UserError(message, where=where, next_step=step)


def run_python_file(file: str, where: str, description: str) -> ModuleType:
    """The module that a file makes, which runs with everything that the user may do.

    UserError: there is no such file, it fails, or a folder names it and not the user.

    Args:
        file: its path, from the current folder.
        description: what it is, in words, as in `scorer's file`.
    """
    refuse_when_confined("Code is not run", f"{where}: {file}")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"No file {file!r}", where=where, next_step="the path starts at the current folder")
    need_trust(file, where)
    spec = importlib.util.spec_from_file_location(f"tuneloop_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"Not a Python file: {file!r}", where=where, next_step="name a file that ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        description = f"The {description} fails: {error_with_line(error, path)}"
        raise UserError(description, where=where, next_step="correct the file") from None
    return module


def error_with_line(error: Exception, path: Path) -> str:
    """An error with the line of the user's file where it happened."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    line = next((frame.lineno for frame in frames if Path(frame.filename) == path), None)
    return f"{type(error).__name__}: {error}{f' (line {line})' if line else ''}"
