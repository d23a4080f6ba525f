"""How a stage reports how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Say = Callable[[str], None]  # what is to be done with a line for the user


class Progress(Protocol):
    """How a stage tells how far it is; the command line draws it as a bar with rate and time left.

    Called with a short task name ("training"), units done, units in all, and figures to show
    next to the bar (`loss=1.23`). A stage calls it with `done == total` when it ends.
    """

    def __call__(self, task: str, done: float, total: float, /, **info: float | str) -> None: ...


def no_progress(task: str, done: float, total: float, /, **info: float | str) -> None:
    """A `Progress` that stays silent."""


@contextmanager
def busy(progress: Progress, task: str) -> Iterator[None]:
    """Tell of work whose parts can't be counted, from its beginning to its end."""
    progress(task, 0, 1)
    yield
    progress(task, 1, 1)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of libraries (tqdm's), which take a moment and are drawn over a command's own lines."""
    from tqdm import tqdm

    before = tqdm.__init__

    def hidden(bar: Any, *args: Any, **named: Any) -> None:
        before(bar, *args, **{**named, "disable": True})

    tqdm.__init__ = hidden
    try:
        yield
    finally:
        tqdm.__init__ = before
