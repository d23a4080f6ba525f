"""The one error that a user sees."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Something the user can put right: what happened, where, and what to do next.

    Printed as one to three lines without a traceback; the exit status is 2.

    Args:
        what: the fault in one sentence.
        where: file, line or key that it concerns.
        next_step: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.next_step = what, where, next_step

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.next_step:
            lines.append(f"  next:  {self.next_step}")
        return "\n".join(lines)


def did_you_mean(
    name: str, known: Iterable[str], otherwise: str = "", *, most: int = 1, shown: Callable[[str], object] = str
) -> str:
    """`did you mean NAME?` with the known name that is most like what was given.

    Args:
        name: what was given.
        known: names.
        otherwise: what is returned where none is alike.
        most: how many names are offered.
        shown: gives what is written for a known name, as its path.
    """
    near = dict.fromkeys(str(shown(found)) for found in difflib.get_close_matches(name, list(known), most, 0.5))
    return f"did you mean {' or '.join(near)}?" if near else otherwise
