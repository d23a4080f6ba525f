"""Several processes that hold the same model answer together: each asks its own part of the rows, and all are joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tuneloop.core.ui import reporter, reporting
from tuneloop.models.adapters import ATTACHED, applied

if TYPE_CHECKING:
    from tuneloop.inference.local.target import LocalTarget


@dataclass(frozen=True)
class SharedWork:
    """Rows to be answered by several processes.

    Args:
        call: the method of `LocalTarget` that answers them.
        rows: requests, or rendered rows for `fits`.
        options: further arguments of that method.
        adapter: the adapter that applies to the rows, see `models.adapters`.
    """

    call: Literal["complete", "score", "fits"]
    rows: Sequence[Any]
    options: Mapping[str, Any]
    adapter: str = ATTACHED

    def part(self, target: LocalTarget, rank: int, world: int) -> dict[int, Any]:
        """The answers of one process, by the places of their rows: every `world`th row, so that long ones are spread."""
        outer = reporter().progress
        places = range(rank, len(self.rows), world)

        def of_all(task: str, done: float, total: float, /, **info: float | str) -> None:
            outer(task, min(done * world, len(self.rows)), len(self.rows), **info)

        adapter = nullcontext() if self.adapter == ATTACHED else applied(self.adapter)
        with adapter, reporting(progress=of_all):
            answers = getattr(target, self.call)([self.rows[i] for i in places], **self.options)
            return dict(zip(places, answers, strict=True))


# Asks all processes and returns the answers in the order of the rows.
Crew = Callable[[SharedWork], list[Any]]
