"""The one error that a user sees."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Iterable, Sequence

INSTALL = "pip install 'tuneloop[all]'"  # what to do where a package is missing


class UserError(Exception):
    """Something the user can put right, printed as one to three lines without a traceback; the exit status is 2.

    Args:
        message: the fault in one sentence; `where`: file, line or key that it concerns; `next_step`: what to do.
        settings: `key=value` that, added to the same command, may be what is meant.
    """

    def __init__(self, message: str, *, where: str = "", next_step: str = "", settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.what, self.where, self.next_step, self.settings = message, where, next_step, tuple(settings)

    def __str__(self) -> str:
        where = f"\n  where: {self.where}" if self.where else ""
        return self.what + where + (f"\n  next:  {self.next_step}" if self.next_step else "")


def did_you_mean(
    name: str, names: Iterable[str], otherwise: str = "", *, most: int = 1, shown: Callable[[str], object] = str
) -> str:
    """`did you mean NAME?` with those of the names that are most similar, written by `shown`; `otherwise`: none is."""
    near = dict.fromkeys(str(shown(match)) for match in difflib.get_close_matches(name, list(names), most, 0.5))
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def in_shell(arguments: Iterable[str]) -> str:
    """Arguments as a line that can be pasted into a shell; of `key=value` only the value is quoted."""

    def quoted(argument: str) -> str:
        key, equals, value = argument.partition("=")
        return f"{key}={shlex.quote(value)}" if equals and key == shlex.quote(key) else shlex.quote(argument)

    return " ".join(map(quoted, arguments))
