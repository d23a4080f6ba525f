"""How a field of a record, or a parameter of a command, is written on a command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Flag:
    """Put into `Annotated` where a pydantic field's name and type do not say it.

    Args:
        names: of the option, as `("--budget",)`, or `("--packing/--no-packing",)` for a yes or no. Short ones alone, as
            `("-o",)`, are added to the field's own name.
        metavar: what stands for the value in the help; empty: by the type.
        help: what the option does.
        least, most: bounds of a number.
        shown: whether the help shows the default.
    """

    names: tuple[str, ...] = ()
    metavar: str = ""
    help: str = ""
    least: float | None = None
    most: float | None = None
    shown: bool = True


def flag(default: Any, metavar: str, help: str, *names: str, **more: Any) -> Any:
    """A field of a dataclass, or the default of a command's parameter, that is an option of a command.

    Args:
        default: of the field; `...` where the option must be given.
        metavar, help, names, more: see `Flag`.
    """
    return field(default=default, metadata={"flag": Flag(names, metavar, help, **more)})


def switch(help: str, *names: str) -> Any:
    """An option that is given or not; the field is true where it is."""
    return flag(False, "", help, *names)
