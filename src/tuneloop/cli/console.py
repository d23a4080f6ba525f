"""What all commands share: progress and lines on stderr, one JSON object on stdout, errors without tracebacks.

All that is printed goes through here, and no control character gets to a terminal: texts of requests, rows, answers and
file names are other people's. What is unsafe is written as JSON writes it, so that a line of JSON means the same as
before. Where the reader has left, as in `tuneloop prepare FILE | head -1`, the work continues, and what it prints is
dropped; a command that only prints ends then, with the status that the shell gives to a program that SIGPIPE ends.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from tuneloop.core.errors import INSTALL, UserError, in_shell
from tuneloop.core.terminal import terminal
from tuneloop.core.urls import is_url, masked

UNREAD = 128 + 13  # exit status: SIGPIPE
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # a pipe, a socket, a terminal that was closed
_left: set[int] = set()  # descriptors whose reader has left


class _Output(io.FileIO):
    """A descriptor that takes anything once its reader has left."""

    def write(self, data: object) -> int:
        """Write, or drop what no one reads."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in _GONE:
                raise
        _left.add(self.fileno())
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # also for what is started from now on
        os.close(nothing)
        return memoryview(data).nbytes  # type: ignore[arg-type]


def drop_unread_output() -> None:
    """From now on, nothing that is printed fails because its reader has left, or was never there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who has started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            raw = _Output(stream.fileno(), "w", closefd=False)
            unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python -u
            settings: dict[str, Any] = {key: getattr(stream, key) for key in ("line_buffering", "write_through")}
            buffer = raw if unbuffered else io.BufferedWriter(raw)
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **settings))


def stop_if_unread() -> None:
    """End, by a SystemExit with `UNREAD`, a command that only prints, once no one reads it."""
    if 1 in _left:
        raise SystemExit(UNREAD)


@dataclass(frozen=True)
class Result:
    """What a command answers, and its exit status."""

    record: Any  # the object of `--json`
    text: Iterable[str] | Callable[[Any], None] = ()  # the same for people: lines, or what writes on rich's console
    status: int = 0  # 0 done; 1 the answer is no; 3 inconclusive


def minute(time: str) -> str:
    """A time in ISO 8601 as people read it, to the minute."""
    return time[:16].replace("T", " ")


def short(value: object, longest: int, *, end: bool = False) -> str:
    """One line of a text, its begin or its end."""
    from tuneloop.core.written import clean

    text = " ".join(clean(value).split())
    if len(text) <= longest:
        return text
    return "…" + text[1 - longest :] if end else text[: longest - 1] + "…"


def show(result: Result, as_json: bool) -> None:
    """Print a command's result, as one JSON object or as text; leaves by typer.Exit where the status is not 0."""
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
    """Text of a command that prints as it works, on stdout or stderr; ends it when stdout's reader has left."""
    print(text, end=end, file=sys.stderr if err else sys.stdout, flush=True)
    if not err:
        stop_if_unread()


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Positional arguments and `key=value` settings; an address, or a path that exists, is never one."""
    settings = [a for a in arguments or () if "=" in a and not is_url(a) and not os.path.exists(a)]
    return [a for a in arguments or () if a not in settings], settings


def one_place(source: str, settings: Sequence[str] | None, kind: str = "place") -> tuple[str, list[str]]:
    """The one positional argument, or "", and the settings; a typer.BadParameter refuses a second one."""
    places, settings = split_arguments([source, *(settings or [])])
    places = [argument for argument in places if argument]
    if len(places) > 1:
        raise typer.BadParameter(f"{places[1]} is one {kind} too many")
    return "".join(places), settings


def drop_unwritable_output() -> None:
    """Where stdout takes nothing any more, discard what it still holds: else Python complains again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_PASSWORD = re.compile(r"(postgres(?:ql)?://[^\s:/@]*):\S+@")  # in a URL that was given
_REFUSED = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT)  # by the disk, whatever the file
_PREPARING = (
    "init",
    "prepare",
    "run",
    "train",
    "sweep",
    "prompt",
    "advise",
    "plan",
)  # commands that take settings of the data
UNEXPECTED = "something that should not happen: "


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
    if not isinstance(error, UserError):
        error = _as_user_error(error)
    if error.settings and arguments[0] in _PREPARING:
        command = in_shell(["tuneloop", *arguments, *error.settings])
        error = UserError(error.what, where=error.where, next_step=command)
    message, where, step = (masked(_PASSWORD.sub(r"\1@", text)) for text in (error.what, error.where, error.next_step))
    print(f"Error: {UserError(message, where=where, next_step=step)}", file=sys.stderr)
    if "--json" in arguments:
        detail = {"what": message.removeprefix(UNEXPECTED), "where": where, "next": step}
        print(json.dumps({"error": detail}, ensure_ascii=False))
    return 2


def _as_user_error(error: BaseException) -> UserError:
    from tuneloop.core.device import is_out_of_memory
    from tuneloop.core.files import disk_error
    from tuneloop.models.chat import TemplateError

    if isinstance(error, OSError) and (error.filename or error.errno in _REFUSED):
        return disk_error(error, ".")
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tuneloop"):
        package = error.name.partition(".")[0]
        return UserError(f"This needs the Python package {package}, which is not installed", next_step=INSTALL)
    if isinstance(error, TemplateError):
        step = "`tuneloop data check --template MODEL DATA` shows the row; correct the template, or take another model"
        return UserError(f"{str(error)[:1].upper()}{str(error)[1:]}", where="the model's chat template", next_step=step)
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        step = "set train.micro_batch_tokens=512 and a smaller data.max_length, then run the same command again"
        return UserError("Out of memory", next_step=step)
    message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return UserError(f"{UNEXPECTED}{message}", next_step="run again with --debug and report it")
