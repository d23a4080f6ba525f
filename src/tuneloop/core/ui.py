"""What a user sees while something works: lines, and how far a stage is.

Who shows them is one context variable: a command puts its screen there (`reporting`), Python code what it likes, and
whatever works says its lines without being handed anything. New threads start with `in_this_context`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Protocol


class Progress(Protocol):
    """Shows how far a stage is; the command line draws a bar with rate and time left.

    Called with a short task name ("training"), units done, units in all, and values to show next to the bar
    (`loss=1.23`). A stage calls it with `count == total` when it ends.
    """

    def __call__(self, task: str, count: float, total: float, /, **info: float | str) -> None: ...


def no_progress(task: str, count: float, total: float, /, **info: float | str) -> None:
    """A `Progress` that stays silent."""


def _silent(line: str) -> None:
    """Say nothing."""


def _no_stage(name: str, outcome: str, seconds: float) -> None:
    """Say nothing of a stage: its lines did."""


@dataclass(frozen=True)
class Reporter:
    """Who shows lines, progress, and what each stage came to."""

    say: Callable[[str], None] = _silent  # gets each line
    progress: Progress = no_progress  # gets each step
    stage: Callable[[str, str, float], None] = _no_stage  # gets each stage that has ended


_SILENT = Reporter()
_reporter: ContextVar[Reporter] = ContextVar("reporter", default=_SILENT)


def reporter() -> Reporter:
    """Who shows lines and progress here, for those that pass on what they get."""
    return _reporter.get()


def say(line: str) -> None:
    """Show a line."""
    _reporter.get().say(line)


def bound_say() -> Callable[[str], None]:
    """`say` as it is here, for what works on in other threads and tasks."""
    return _reporter.get().say


def progress(task: str, count: float, total: float, /, **info: float | str) -> None:
    """Show how far a task is, see `Progress`."""
    _reporter.get().progress(task, count, total, **info)


@contextmanager
def reporting(
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    stage: Callable[[str, str, float], None] | None = None,
) -> Iterator[None]:
    """Show lines, progress and stages here for the time of a block; None leaves each as it is."""
    before = _reporter.get()
    token = _reporter.set(Reporter(say or before.say, progress or before.progress, stage or before.stage))
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def quiet() -> Iterator[None]:
    """Show neither lines nor progress for the time of a block."""
    with reporting(_silent, no_progress, _no_stage):
        yield


def in_this_context(work: Callable[..., Any]) -> Callable[..., Any]:
    """A function that reports where this one does, whichever thread calls it."""
    context = copy_context()
    return lambda *args, **options: context.run(work, *args, **options)


@contextmanager
def busy(task: str) -> Iterator[None]:
    """Show work whose parts can't be counted, from its beginning to its end."""
    progress(task, 0, 1)
    yield
    progress(task, 1, 1)


@contextmanager
def stage(name: str, task: str) -> Iterator[Callable[[str], None]]:
    """A part of a command's work. `task` is what it does while it lasts; the function that it gives takes what it came
    to, in a few words, which are shown with its name and time once it has ended."""
    outcome, began = "", time.monotonic()

    def tell(text: str) -> None:
        nonlocal outcome
        outcome = text

    with busy(task):
        yield tell
    _reporter.get().stage(name, outcome, time.monotonic() - began)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of libraries (tqdm's), which take a moment and are drawn over a command's own lines."""
    from tqdm import tqdm

    before = tqdm.__init__

    def hidden(bar: Any, *args: Any, **options: Any) -> None:
        before(bar, *args, **{**options, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = before
