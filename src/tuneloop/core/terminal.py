"""Lines and progress on a terminal: bars with rate and time left, or plain lines now and then where it is none."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tuneloop.core.machine import is_first
from tuneloop.core.ui import reporting

# Control characters but tab and line feed, halves of surrogate pairs, and what turns the direction of text around.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""A text as a terminal may show it: an escape character is `\u001b`."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class _Visible:
    """A text stream that writes what is `visible`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        while hasattr(stream, "rich_proxied_file"):
            stream = stream.rich_proxied_file
        self.rich_proxied_file = stream  # where rich writes itself, its own control characters included: see `terminal`

    def write(self, text: str) -> int:
        return int(self.stream.write(visible(text)))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """For a while stdout and stderr take no control characters."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Visible(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def terminal(**settings: Any) -> Any:
    """A console of rich's for tables and bars; what is in them is `visible`."""
    from rich.console import Console
    from rich.segment import Segment

    class Shown(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                part if part.control else Segment(visible(part.text), part.style) for part in buffer
            )

    return Shown(**settings)


# Held by whoever writes. No process is forked meanwhile: its copy of stderr would stay locked for ever.
_SPEAKING = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_SPEAKING.acquire, after_in_parent=_SPEAKING.release, after_in_child=_SPEAKING.release
    )  # fmt: skip


IDLE = "working"  # what goes on, where nothing better is known


@dataclass
class _Task:
    """Something that goes on: since when, from how much on, how far it is, and its bar on a terminal."""

    began: float
    first: float
    done: float = 0.0
    total: float = 1.0
    shown: bool = False
    note: str = ""
    bar: Any = None


class Screen:
    """Progress bars and lines on stderr; plain lines where it is no terminal, nothing when quiet.

    It is never silent for long: `beat`, which a thread calls, says what goes on where nobody else has said anything.

    Args:
        quiet: say nothing.
        clock: seconds.
        doing: what goes on while no task says so.
    """

    FIRST = 1.5  # seconds until something that begins is shown
    EVERY, MOST = (
        10.0,
        30.0,
    )  # seconds between further plain lines: these, then a sixth of the time that the task has taken

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic, doing: str = IDLE) -> None:
        self.quiet, self.clock, self.doing = quiet, clock, doing
        self.bars: Any = None
        self.tasks: dict[str, _Task] = {}  # the one that said something last at the end
        self.idle: Any = None  # bar of the time in which no task tells of itself
        self.spoke = clock()
        self.nothing = _Task(self.spoke, 0.0)  # that time

    def progress(self, task: str, done: float, total: float, /, **info: float | str) -> None:
        """A `Progress`."""
        if self.quiet:
            return
        with _SPEAKING:
            known = self.tasks.pop(task, None)
            if done >= total:
                if known and self.bars is not None:
                    self.bars.remove_task(known.bar)
                self.nothing = _Task(self.clock(), 0.0)
                return
            found = known or _Task(self.clock(), done)
            found.done, found.total = done, total
            found.note = "  ".join(_shown(key, value) for key, value in info.items())
            self.tasks[task] = found
            if self.bars is not None:
                self._bar(task, found)
            self.beat()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        with _SPEAKING:
            self.spoke = self.clock()
            self.nothing = _Task(self.spoke, 0.0)
            if self.bars is not None:
                self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(visible(line), file=sys.stderr, flush=True)

    def beat(self) -> None:
        """Say what goes on if it is time to: a plain line, or a bar where no task has one."""
        with _SPEAKING:
            now = self.clock()
            name, task = next(reversed(self.tasks.items()), (self.doing, self.nothing))
            going = now - task.began
            if self.bars is not None:
                self._idle_bar(wanted=task is self.nothing and going >= self.FIRST)
            elif now - self.spoke >= (min(max(self.EVERY, going / 6), self.MOST) if task.shown else self.FIRST):
                self.spoke, task.shown = now, True
                print(_line(name, task, going), file=sys.stderr, flush=True)

    def _bar(self, name: str, task: _Task) -> None:
        if task.bar is None:
            self._idle_bar(wanted=False)
            task.bar = self.bars.add_task(name, total=task.total, note="", completed=task.done)
        self.bars.update(task.bar, completed=task.done, total=task.total, note=task.note)

    def _idle_bar(self, *, wanted: bool) -> None:
        if wanted and self.idle is None:
            self.idle = self.bars.add_task(self.doing, total=None, note="")
        elif not wanted and self.idle is not None:
            self.bars.remove_task(self.idle)
            self.idle = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """`beat` four times a second, in a thread."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(0.25):
                self.beat()

        thread = threading.Thread(target=go_on, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


EARLY = 20  # before a twentieth is done the rate says little of the rest: the first answers of a batch come late


def _line(name: str, task: _Task, seconds: float) -> str:
    """`zero-shot: 28/75  2.2/s  21 s left`, or the time that it has taken where that is all there is to tell."""
    parts = [f"{seconds:.0f} s"] if seconds >= 1 else []
    if task.total > 1:
        if task.done > task.first:
            rate = (task.done - task.first) / max(seconds, 1e-9)
            early = EARLY * (task.done - task.first) < task.total - task.first
            parts = [f"{rate:,.1f}/s", f"{seconds:.0f} s" if early else f"{(task.total - task.done) / rate:.0f} s left"]
        parts.insert(0, f"{math.floor(task.done):,}/{task.total:,.0f}")
    if task.note:
        parts.append(task.note)
    return f"{name}: {'  '.join(parts)}" if parts else name


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


def plain_table(*columns: str, **settings: Any) -> Any:
    """A table of rich's without lines; the first column keeps its words together, the others break where they must."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), **settings)
    for i, column in enumerate(columns):
        table.add_column(column, **({"no_wrap": True} if not i else {"overflow": "fold"}))
    return table


@contextmanager
def screen(quiet: bool, doing: str = IDLE) -> Iterator[Screen]:
    """A `Screen` for the time of a command, on which all that works reports; see `drawn`."""
    with drawn(quiet, doing) as shown, reporting(shown.say, shown.progress):
        yield shown


@contextmanager
def drawn(quiet: bool, doing: str = IDLE) -> Iterator[Screen]:
    """A `Screen` for the time of a block.

    Args:
        quiet: say nothing.
        doing: what the command does, in a word or two; said while no task says what goes on.
    """
    quiet = quiet or not is_first()
    shown = Screen(quiet, doing=doing)
    if quiet:
        yield shown
        return
    if not sys.stderr.isatty():
        with shown.beating():
            yield shown
        return
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

    class Left(TimeRemainingColumn):
        """Time left, once enough is done to tell."""

        def render(self, task: Task) -> Text:
            return Text("") if EARLY * task.completed < (task.total or 0) else super().render(task)

    columns = [
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), Rate(), TimeElapsedColumn(),
        TextColumn("left"), Left(), TextColumn("{task.fields[note]}", style="dim"),
    ]  # fmt: skip
    bars = Progress(*columns, console=terminal(stderr=True), transient=True, speed_estimate_period=60)
    with bars, visible_output():  # it has taken the place of both
        shown.bars = bars
        with shown.beating():
            yield shown
