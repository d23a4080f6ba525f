"""What all commands share: progress and lines on stderr, one JSON object on stdout, errors without tracebacks.

All that is printed goes through here, and no control character gets to a terminal: texts of requests, rows, answers and file
names are other people's. What is unsafe is written as JSON writes it, so that a line of JSON means the same as before.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from tuneloop.cli.unread import stop_if_unread
from tuneloop.core.errors import UserError, in_shell
from tuneloop.core.terminal import terminal
from tuneloop.core.urls import masked


@dataclass(frozen=True)
class Result:
    """What a command answers, and its exit status.

    Args:
        record: the object of `--json`.
        text: the same for people: lines, or a function that writes on a console of rich's.
        status: 0 done; 1 the answer is no; 3 inconclusive.
    """

    record: Any
    text: Iterable[str] | Callable[[Any], None] = ()
    status: int = 0


def show(result: Result, as_json: bool) -> None:
    """Print a command's result, as one JSON object or as text.

    Raises:
        typer.Exit: with the result's status where it is not 0.
    """
    if as_json:
        print_json(result.record)
    elif callable(result.text):
        result.text(terminal(markup=False, highlight=False))
    else:
        for line in result.text:
            print(line)
    if result.status:
        raise typer.Exit(result.status)


def print_json(value: Any, *, ascii: bool = False) -> None:
    """One JSON value on a line of stdout."""
    from tuneloop.core.files import plain

    print(json.dumps(plain(value), ensure_ascii=ascii, default=str), flush=True)


def print_live(text: str = "", *, end: str = "\n", err: bool = False) -> None:
    """Text of a command that prints as it works, on stdout or stderr.

    Raises:
        SystemExit: the reader of stdout has left.
    """
    print(text, end=end, file=sys.stderr if err else sys.stdout, flush=True)
    if not err:
        stop_if_unread()


def _is_out_of_memory(error: BaseException) -> bool:
    from tuneloop.core.device import is_out_of_memory

    return isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error)


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Positional arguments and `key=value` settings; a path that exists is never taken for a setting."""
    settings = [a for a in arguments or () if "=" in a and not os.path.exists(a)]
    return [a for a in arguments or () if a not in settings], settings


def one_place(source: str, settings: Sequence[str] | None, what: str = "place") -> tuple[str, list[str]]:
    """The one positional argument, or "", and the settings.

    Raises:
        typer.BadParameter: there are several.
    """
    places, settings = split_arguments([source, *(settings or [])])
    places = [place for place in places if place]
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one {what} too many")
    return "".join(places), settings


def drop_unwritable_output() -> None:
    """Where stdout takes nothing any more, discard what it still holds: else Python complains again as it shuts down."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_PASSWORD = re.compile(r"(postgres(?:ql)?://[^\s:/@]*):\S+@")  # in a URL that was given
_REFUSED = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)  # by the disk
_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
UNEXPECTED = "something that should not happen: "


_PREPARING = ("init", "prepare", "run", "train", "sweep", "advise", "plan")  # commands that take settings of the data


def report_error(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error as a user should see it and return the exit status."""
    if "--debug" in arguments and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("\nInterrupted. What was finished is kept; the same command does the rest.", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        drop_unwritable_output()
    if isinstance(error, OSError) and error.errno in _REFUSED:
        error = UserError(f"The disk refuses: {error.strerror}", where=str(error.filename or "."),
                          next_step="free space, or choose another folder with output_dir=FOLDER; the same command then goes on")  # fmt: skip
    if isinstance(error, OSError) and error.errno in _NO_NAME:
        error = UserError(
            f"Can't open it: {error.strerror}", where=str(error.filename)[:200], next_step="check the path"
        )
    if not isinstance(error, UserError) and _is_out_of_memory(error):
        step = "set train.micro_batch_tokens=512 and a smaller data.max_length, then run the same command again"
        error = UserError("Out of memory", next_step=step)
    elif not isinstance(error, UserError):
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        error = UserError(f"{UNEXPECTED}{what}", next_step="run again with --debug and report it")
    if error.settings and arguments[0] in _PREPARING:
        command = in_shell(["tuneloop", *arguments, *error.settings])
        error = UserError(error.what, where=error.where, next_step=command)
    what, where, step = (masked(_PASSWORD.sub(r"\1@", each)) for each in (error.what, error.where, error.next_step))
    error = UserError(what, where=where, next_step=step)
    print(f"Error: {error}", file=sys.stderr)
    if "--json" in arguments:
        detail = {"what": error.what.removeprefix(UNEXPECTED), "where": error.where, "next": error.next_step}
        print(json.dumps({"error": detail}, ensure_ascii=False))
    return 2
