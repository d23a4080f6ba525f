"""A Python file of the user's own, run in this process: scorers, training methods."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from tuneloop.core.errors import UserError


def run_python_file(file: str, where: str, what: str) -> ModuleType:
    """The module that a file makes.

    It runs with everything that the user may do: only files that the user names are given here.

    Args:
        file: its path, from the current folder.
        where: the setting that names it, for errors.
        what: what it is, in words, as in `scorer's file`.

    Raises:
        UserError: there is no such file, or it fails.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"No file {file!r}", where=where, next_step="the path starts at the current folder")
    spec = importlib.util.spec_from_file_location(f"tuneloop_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"Not a Python file: {file!r}", where=where, next_step="name a file that ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"The {what} fails: {error_with_line(error, path)}", where=where, next_step="correct the file"
        ) from None
    return module


def error_with_line(error: Exception, path: Path) -> str:
    """An error with the line of the user's file where it happened."""
    line = next(
        (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if Path(f.filename) == path), None
    )
    place = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {error}{place}"
