"""The table of checks: each function with the decorator `check` is one, in the order in which they are written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tuneloop.data.checks.overview import Found, Overview

Level = Literal["ok", "warn", "error"]


class Finding(NamedTuple):
    """What a check says.

    Args:
        level: `error` stops `run` and `train`.
        message: one sentence.
        rows: number of rows concerned.
        remedy: one sentence on what to do.
        found: the rows for `flagged.jsonl`, and those to show.
    """

    level: Level
    message: str
    rows: int
    remedy: str = ""
    found: Found = Found((), ())


Run = Callable[[Overview], Finding | None]


@dataclass(frozen=True)
class CheckEntry:
    """A check.

    Args:
        name: as it stands in `dataset.json`.
        title: what it looks for, for the reference.
        run: gives the finding; None where the check does not apply to the data.
        tasks: tasks that it is for; empty: all.
        slow: it needs nothing but the rows and runs in another process while files are written.
    """

    name: str
    title: str
    run: Run
    tasks: tuple[str, ...] = ()
    slow: bool = False

    def is_for(self, overview: Overview) -> bool:
        """Whether it is for the task of these data."""
        return not self.tasks or overview.task in self.tasks


CHECKS: dict[str, CheckEntry] = {}  # by name, in the order in which they are reported


def check(name: str, title: str, *, tasks: tuple[str, ...] = (), slow: bool = False) -> Callable[[Run], Run]:
    """Make a function from an overview to a finding a check: see `CheckEntry`."""

    def register(run: Run) -> Run:
        CHECKS[name] = CheckEntry(name, title, run, tasks, slow)
        return run

    return register
