"""The one error that a user sees."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence


class UserError(Exception):
    """Something the user can put right: what happened, where, and what to do next.

    Printed as one to three lines without a traceback; the exit status is 2.

    Args:
        what: the fault in one sentence.
        where: file, line or key that it concerns.
        next_step: what to do about it.
        settings: `key=value` that, added to the same command, may be what is meant.
    """

    def __init__(self, what: str, *, where: str = "", next_step: str = "", settings: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what, self.where, self.next_step, self.settings = what, where, next_step, tuple(settings)

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
        otherwise: what is returned where none is alike.
        shown: gives what is written for a known name, as its path.
    """
    near = dict.fromkeys(str(shown(found)) for found in difflib.get_close_matches(name, list(known), most, 0.5))
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def in_shell(arguments: Iterable[str]) -> str:
    """Arguments as a line that can be pasted into a shell; of `key=value` only the value is quoted."""

    def quoted(argument: str) -> str:
        key, equals, value = argument.partition("=")
        return f"{key}={shlex.quote(value)}" if equals and key == shlex.quote(key) else shlex.quote(argument)

    return " ".join(map(quoted, arguments))
