"""How what is stored outlives a release: each form of it has a number, and a step leads to it from the form before.

A store, a record's file and a line of a journal each have one list of steps, oldest first. A step that was released
never changes; whoever changes a form appends one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tuneloop.core.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class MigrationStep(Generic[T]):
    """A change of form.

    Args:
        version: number of the form that it leads to.
        title: what it changes, in a few words for the user.
        apply: makes the change; gets a connection to a store, or a JSON object of which it returns the new one.
    """

    version: int
    title: str
    apply: Callable[[T], Any]


JsonSteps = tuple[MigrationStep[dict[str, Any]], ...]


def latest(steps: Sequence[MigrationStep[T]]) -> int:
    """The number of the form that this version writes; the first form of a file has no step."""
    return steps[-1].version if steps else 1


def missing(steps: Sequence[MigrationStep[T]], version: int, title: str, where: str) -> list[MigrationStep[T]]:
    """The steps that lead from a form to the latest one, oldest first.

    Args:
        version: of what is there.
        title, where: what it is, as in "a store", and its file, for messages.

    Raises:
        UserError: a newer version of tuneloop wrote it.
        ValueError: the list of steps has a gap.
    """
    if version > latest(steps):
        what = f"A newer tuneloop wrote {title}: it is of version {version}, and this one reads {latest(steps)}"
        raise UserError(what, where=where, next_step="use that tuneloop: pip install --upgrade tuneloop")
    left = [step for step in steps if step.version > version]
    if [step.version for step in left] != [*range(version + 1, latest(steps) + 1)]:
        raise ValueError(f"{title}: no step leads from version {version} to {latest(steps)}")
    return left


def upgraded(value: dict[str, Any], steps: JsonSteps, title: str, where: str) -> dict[str, Any]:
    """A JSON object in the latest form; one without `version` is in the first. See `missing`."""
    for step in missing(steps, value.get("version", 1), title, where):
        value = {**step.apply(value), "version": step.version}
    return value
