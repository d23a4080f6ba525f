"""How a field of a config record is written on a command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Flag:
    """Put into `Annotated` where a field's name and type do not say it.

    Args:
        names: of the option, as `("--budget",)`, or `("--packing/--no-packing",)` for a yes or no.
        metavar: what stands for the value in the help; empty: by the type.
    """

    names: tuple[str, ...] = ()
    metavar: str = ""
