"""Numbers as people write them on a command line: `3000`, `3,000`, `3_000`, `3e3`, `3k`, `1.5M`, `$600`."""

from __future__ import annotations

import math
import re

import typer

SIZES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
WRITTEN = re.compile(
    r"([+-]?(?:\d{1,3}(?:[_,]\d{3})+|\d+|(?=\.\d))(?:\.\d*)?(?:e[+-]?\d{1,4})?)([kmbgt]?)", re.ASCII | re.IGNORECASE
)


def amount(text: str | float) -> float:
    """A number, in whole or in parts.

    Raises:
        typer.BadParameter: it is not a number; typer names the option.
    """
    if not isinstance(text, str):
        return float(text)
    found = WRITTEN.fullmatch(text.strip().removeprefix("$").strip())
    value = float(found[1].replace(",", "").replace("_", "")) * SIZES[found[2].lower()] if found else math.inf
    if not math.isfinite(value):
        raise typer.BadParameter(f"{text[:40]!r} is not a number; write it as 3000, 3_000, 3e3 or 3k")
    return value


def count(text: str | float) -> int:
    """A whole number.

    Raises:
        typer.BadParameter: it is not a number, or has a fraction.
    """
    if isinstance(text, str) and re.fullmatch(r"[+-]?\d{1,300}", text.strip(), re.ASCII):
        return int(text)  # exact, however large
    value = amount(text)
    if value != int(value):
        raise typer.BadParameter(f"{str(text)[:40]!r} is not a whole number")
    return int(value)
