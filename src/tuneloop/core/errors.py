"""The one error that a user sees."""

from __future__ import annotations


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
