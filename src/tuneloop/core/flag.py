"""How a field of a settings record, or a parameter of a command, is written on a command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field


@dataclass(frozen=True)
class Flag:
    """Put into `Annotated` where a pydantic field's name and type do not say it."""

    # as `("--budget",)`, or `("--packing/--no-packing",)` for a yes or no; short ones are added to the field's name
    names: tuple[str, ...] = ()
    metavar: str = ""  # the placeholder for the value in the help; empty: by the type
    show: bool = True  # whether the help shows the default


def flag(
    default: Any,
    metavar: str,
    help: str,
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    show: bool = True,
) -> Any:
    """A field of a `Config`, or the default of a command's parameter, that is an option of a command; see `Flag`.

    Args:
        default: of the field; `...` where the option must be given.
        least, above, most: bounds of a number; it is more than `above`.
    """
    info = Field(default, description=help, ge=least, gt=above, le=most)
    info.metadata.append(Flag(names, metavar, show))
    return info


def switch(help: str, *names: str) -> Any:
    """An option that is given or not; the field is true where it is."""
    return flag(False, "", help, *names)


def option(description: str, default: Any = None, **limits: Any) -> Any:
    """A field that may be left out, by its own name; `limits` are pydantic's."""
    return Field(default, description=description, **limits)
