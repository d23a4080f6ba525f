"""What all commands share: progress and lines on stderr, one JSON object on stdout, errors without tracebacks."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no lines on the way.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, as in train.epochs=2.", show_default=False),
]


class Screen:
    """Progress bars and lines on stderr; plain lines where it is no terminal, nothing when quiet."""

    EVERY = 10.0  # seconds between plain progress lines

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.spoke: dict[str, float] = {}
        self.began: dict[str, float] = {}

    def progress(self, task: str, done: float, total: float, /, **info: float | str) -> None:
        """A `Progress`."""
        if self.quiet:
            return
        note = "  ".join(_shown(key, value) for key, value in info.items())
        if self.bars is not None:
            self._bar(task, done, total, note)
        else:
            self._line(task, done, total, note)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.bars is not None:
            self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _bar(self, task: str, done: float, total: float, note: str) -> None:
        if task not in self.tasks:
            if done >= total:
                return
            self.tasks[task] = self.bars.add_task(task, total=total, note="", completed=done)
        self.bars.update(self.tasks[task], completed=done, total=total, note=note)
        if done >= total:
            self.bars.remove_task(self.tasks.pop(task))

    def _line(self, task: str, done: float, total: float, note: str) -> None:
        now = time.monotonic()
        began = self.began.setdefault(task, now)
        if done >= total:
            self.began.pop(task, None)
            self.spoke.pop(task, None)
            return
        if now - self.spoke.setdefault(task, now) < self.EVERY or not done:
            return
        self.spoke[task] = now
        left = (now - began) / done * (total - done)
        rate = done / max(now - began, 1e-9)
        print(
            f"{task}: {done:,.0f}/{total:,.0f}  {rate:,.1f}/s  {left:.0f} s left  {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


def _shown(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if key == "tokens_per_second":
        return f"{value:,.0f} tokens/s"
    if key == "learning_rate":
        return f"rate {value:.2g}"
    if key == "memory":
        return f"{value:.2f} GiB"
    return f"{key} {value:.3f}"


@contextmanager
def screen(quiet: bool) -> Iterator[Screen]:
    """A `Screen` for the time of a command."""
    shown = Screen(quiet)
    if quiet or not sys.stderr.isatty():
        yield shown
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units a second since the task began."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(
                "" if not speed else f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each", style="dim"
            )

    columns = [
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), Rate(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", style="dim"),
    ]  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=60) as bars:
        shown.bars = bars
        yield shown


def print_json(value: Any) -> None:
    """The one JSON object of `--json`."""
    from tuneloop.files import plain

    print(json.dumps(plain(value), ensure_ascii=False))


def _is_out_of_memory(error: BaseException) -> bool:
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    from tuneloop.train.batches import is_out_of_memory

    return is_out_of_memory(error)


def split_arguments(arguments: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Positional arguments and `key=value` settings; a path that exists is never taken for a setting."""
    settings = [a for a in arguments or () if "=" in a and not os.path.exists(a)]
    return [a for a in arguments or () if a not in settings], settings


def drop_unwritable_output() -> None:
    """Where stdout takes nothing any more, discard what it still holds: else Python complains again as it shuts down."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_error(error: BaseException, arguments: Sequence[str]) -> int:
    """Print an error as a user should see it and return the exit status."""
    import errno

    from tuneloop.types import UserError

    if "--debug" in arguments and not isinstance(error, KeyboardInterrupt):
        import traceback

        traceback.print_exception(error)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    if isinstance(error, OSError):
        drop_unwritable_output()
    if isinstance(error, BrokenPipeError):
        return 0
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
        error = UserError(f"The disk refuses: {error.strerror}", where=str(error.filename or "."),
                          next_step="free space, or choose another folder with output_dir=FOLDER; the same command then goes on")  # fmt: skip
    if isinstance(error, UserError):
        print(f"Error: {error}", file=sys.stderr)
        detail = {"what": error.what, "where": error.where, "next": error.next_step}
    elif _is_out_of_memory(error):
        what = "Out of memory"
        step = "set train.micro_batch_tokens=512 and a smaller data.max_length, then run the same command again"
        print(f"Error: {what}\n  next:  {step}", file=sys.stderr)
        detail = {"what": what, "where": "", "next": step}
    else:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        print(
            f"Error: something that should not happen: {what}\n  next:  run again with --debug and report it",
            file=sys.stderr,
        )
        detail = {"what": what, "where": "", "next": "run again with --debug and report it"}
    if "--json" in arguments:
        print(json.dumps({"error": detail}, ensure_ascii=False))
    return 2
