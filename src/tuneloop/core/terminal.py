"""Lines and progress on a terminal: bars with rate and time left, or plain lines now and then where it is none."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tuneloop.core.machine import is_first
from tuneloop.core.ui import reporting

# Control characters but tab and line feed, halves of surrogate pairs, and what turns the direction of text around.
_CONTROL, _DIRECTION = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f", "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[{_CONTROL}{_DIRECTION}\ud800-\udfff]|\r(?!\n)")


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

    class VisibleConsole(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            parts = (part if part.control else Segment(visible(part.text), part.style) for part in buffer)
            return super()._render_buffer(parts)

    return VisibleConsole(**settings)


# Held by the thread that writes. No process is forked meanwhile: its copy of stderr would stay locked for ever.
_SPEAKING = threading.RLock()
if hasattr(os, "register_at_fork"):
    _release = _SPEAKING.release
    os.register_at_fork(before=_SPEAKING.acquire, after_in_parent=_release, after_in_child=_release)


IDLE = "working"  # in place of a task's name


@dataclass
class _Task:
    began: float  # seconds of the clock
    first: float  # units that were done then
    count: float = 0.0
    total: float = 1.0
    announced: bool = False
    note: str = ""
    bar: Any = None  # on a terminal


class Screen:
    """Progress bars and lines on stderr; plain lines where it is no terminal, nothing when quiet.

    It is never silent for long: `beat`, which a thread calls, names the task where nothing else was said.

    Args:
        quiet: say nothing.
        clock: seconds.
        doing: what happens while no task says so.
        brief: of stages show one line each, with its time, and of their other lines only warnings.
    """

    FIRST = 1.5  # seconds until something that begins is shown
    SELDOM = 60.0  # between plain lines of a brief screen
    EVERY, MOST = 10.0, 30.0  # least and most seconds between further plain lines: a sixth of the task's time so far

    def __init__(
        self, quiet: bool, clock: Callable[[], float] = time.monotonic, doing: str = IDLE, brief: bool = False
    ) -> None:
        self.quiet, self.clock, self.doing, self.brief = quiet, clock, doing, brief
        self.continued = True  # whether the line before was shown, for those that continue it
        self.losses: list[float] = []  # of the training, for its small curve
        self.bars: Any = None
        self.tasks: dict[str, _Task] = {}  # the one that said something last at the end
        self.idle: Any = None  # bar of the time in which no task tells of itself
        self.spoke = clock()
        self.nothing = _Task(self.spoke, 0.0)  # that time

    def progress(self, task: str, count: float, total: float, /, **info: float | str) -> None:
        """A `Progress`."""
        if self.quiet:
            return
        with _SPEAKING:
            earlier = self.tasks.pop(task, None)
            if count >= total:
                if earlier and self.bars is not None:
                    self.bars.remove_task(earlier.bar)
                self.nothing = _Task(self.clock(), 0.0)
                return
            now = earlier or _Task(self.clock(), count)
            now.count, now.total = count, total
            now.note = "  ".join(_words(key, value) for key, value in info.items())
            if self.bars is not None and isinstance(loss := info.get("loss"), float):
                self.losses = [*self.losses[-(MOST_LOSSES - 1) :], loss]
                now.note = f"{_curve(self.losses)} {now.note}"
            self.tasks[task] = now
            if self.bars is not None:
                if now.bar is None:
                    self._idle_bar(needed=False)
                    now.bar = self.bars.add_task(task, total=total, note="", completed=count)
                self.bars.update(now.bar, completed=count, total=total, note=now.note)
            self.beat()

    def stage(self, name: str, outcome: str, seconds: float) -> None:
        """A stage has ended; only a brief screen says so, others have shown its lines."""
        if self.brief:
            width = min(shutil.get_terminal_size((100, 24)).columns, 110) - 12
            text = f"✓ {name:<10}{outcome}"
            text = text if len(text) <= width else text[: width - 1] + "…"
            self._print(f"{text:<{width}} {_span(seconds):>9}")

    def say(self, line: str) -> None:
        """A line that stays; of a stage on a brief screen only a warning does."""
        head = line[:10].strip()
        if head:
            self.continued = not self.brief or head not in BRIEFLY or "warn" in line
        if self.continued:
            self._print(line)

    def _print(self, line: str) -> None:
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
        """Name the task if it is time to: a plain line, or a bar where no task has one."""
        with _SPEAKING:
            now = self.clock()
            name, task = next(reversed(self.tasks.items()), (self.doing, self.nothing))
            seconds = now - task.began
            if self.bars is not None:
                self._idle_bar(needed=task is self.nothing and seconds >= self.FIRST)
            elif now - self.spoke >= self._pause(task, seconds):
                self.spoke, task.announced = now, True
                print(_line(name, task, seconds), file=sys.stderr, flush=True)

    def _pause(self, task: _Task, seconds: float) -> float:
        """Seconds without a word after which a plain line names a task that has taken so many."""
        if self.brief:
            return self.SELDOM
        return min(max(self.EVERY, seconds / 6), self.MOST) if task.announced else self.FIRST

    def _idle_bar(self, *, needed: bool) -> None:
        if needed and self.idle is None:
            self.idle = self.bars.add_task(self.doing, total=None, note="")
        elif not needed and self.idle is not None:
            self.bars.remove_task(self.idle)
            self.idle = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """`beat` four times a second, in a thread."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(0.25):
                self.beat()

        thread = threading.Thread(target=beat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


# Heads of lines that a brief screen leaves out: one line of their stage says what they came to.
BRIEFLY = frozenset(
    ("advise", "baseline", "baselines", "data", "data set", "evaluate", "plan", "predicted", "preflight", "prepare",
     "prompts", "time", "train")
)  # fmt: skip
MOST_LOSSES = 40  # steps of the small curve


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _curve(values: list[float]) -> str:
    """The last values in eight characters, each the mean of its part: `▇▅▃▂▂▁▁▁`."""
    parts = [values[len(values) * at // 8 : len(values) * (at + 1) // 8] for at in range(8)]
    means = [sum(part) / len(part) for part in parts if part]
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / ((high - low) or 1.0))] for mean in means)


EARLY = 20  # before a twentieth is done the rate says little of the rest: the first answers of a batch come late


def _line(name: str, task: _Task, seconds: float) -> str:
    """`zero-shot: 28/75  2.2/s  21 s left`, or the time that it has taken where that is all there is to tell."""
    parts = [f"{seconds:.0f} s"] if seconds >= 1 else []
    if task.total > 1:
        if task.count > task.first:
            rate = (task.count - task.first) / max(seconds, 1e-9)
            early = EARLY * (task.count - task.first) < task.total - task.first
            left = f"{(task.total - task.count) / rate:.0f} s left"
            parts = [f"{rate:,.1f}/s", f"{seconds:.0f} s" if early else left]
        parts.insert(0, f"{math.floor(task.count):,}/{task.total:,.0f}")
    if task.note:
        parts.append(task.note)
    return f"{name}: {'  '.join(parts)}" if parts else name


def _words(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    forms = {"tokens_per_second": "{:,.0f} tokens/s", "learning_rate": "rate {:.2g}", "memory": "{:.2f} GiB"}
    return forms.get(key, key + " {:.3f}").format(value)


def plain_table(*columns: str, **settings: Any) -> Any:
    """A table of rich's without lines; the first column keeps its words together, the others break where they must."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), **settings)
    for i, column in enumerate(columns):
        table.add_column(column, **({"no_wrap": True} if not i else {"overflow": "fold"}))
    return table


@contextmanager
def screen(quiet: bool, doing: str = IDLE, *, brief: bool = False) -> Iterator[Screen]:
    """A `Screen` for the time of a command, on which all that works reports; see `drawn`."""
    with drawn(quiet, doing) as display, reporting(display.say, display.progress, display.stage):
        display.brief = brief
        yield display


@contextmanager
def drawn(quiet: bool, doing: str = IDLE) -> Iterator[Screen]:
    """A `Screen` for the time of a block; `doing` says in a word or two what happens while no task does."""
    quiet = quiet or not is_first()
    display = Screen(quiet, doing=doing)
    if quiet:
        yield display
        return
    with _bars() if sys.stderr.isatty() else nullcontext() as bars:
        display.bars = bars
        with display.beating():
            yield display


@contextmanager
def _bars() -> Iterator[Any]:
    from rich import progress
    from rich.text import Text

    class Rate(progress.ProgressColumn):
        """Units a second since the task began."""

        def render(self, task: progress.Task) -> Text:
            speed = task.finished_speed or task.speed or 0.0
            slow = f"{1 / speed:,.1f} s each" if speed else ""
            return Text(f"{speed:,.1f}/s" if speed >= 1 else slow, style="dim")

    class Left(progress.TimeRemainingColumn):
        """Time left, once enough is done to tell."""

        def render(self, task: progress.Task) -> Text:
            return Text("") if EARLY * task.completed < (task.total or 0) else super().render(task)

    columns = [
        progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=24), progress.MofNCompleteColumn(),
        Rate(), progress.TimeElapsedColumn(), progress.TextColumn("left"), Left(),
        progress.TextColumn("{task.fields[note]}", style="dim"),
    ]  # fmt: skip
    bars = progress.Progress(*columns, console=terminal(stderr=True), transient=True, speed_estimate_period=60)
    with bars, visible_output():  # it has taken the place of both
        yield bars
