"""Dollars, hours and seconds as people say them."""

from __future__ import annotations

import math


def usd_words(value: float, digits: int = 1) -> str:
    """Dollars: `$1,234` from 100 on and where they are whole, else with cents; below a cent one digit: `$0.0004`. With
    two `digits` two below ten cents: `$0.0014`."""
    if not math.isfinite(value):
        return "without end"
    sign, size = "-" if value < 0 else "", abs(value)
    if size == 0:
        return "$0"
    if size < 1e-6:
        return f"{sign}under $0.000001"
    if size < 10.0 ** (digits - 3):
        return f"{sign}${float(f'{size:.{digits}g}'):.6f}".rstrip("0")
    whole = size >= 99.995 or abs(size - round(size)) < 0.005
    return f"{sign}${size:,.0f}" if whole else f"{sign}${size:,.2f}"


def span_words(seconds: float) -> str:
    """A short time in two digits: `1.2 s`, `35 ms`; below 10 ms with two decimals, `0.52 ms`."""
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.{0 if seconds >= 0.01 else 2}f} ms"


def hours_words(hours: float) -> str:
    """Hours: seconds below a minute and a half, minutes below two hours, days above two of them."""
    seconds = hours * 3600
    if seconds < 90:
        return counted(seconds, "second")
    if hours < 2:
        return counted(seconds / 60, "minute")
    return f"{hours:.1f} hours" if hours < 48 else counted(hours / 24, "day")


def hours_expected(hours: float, low: float, high: float) -> str:
    """Hours and the span that they may come to: "5 minutes (4 to 6 minutes)"; the span only where its words differ."""
    first, last = hours_words(low), hours_words(high)
    if first == last == hours_words(hours):
        return last
    number, _, unit = first.partition(" ")
    same = unit.rstrip("s") == last.partition(" ")[2].rstrip("s")
    return f"{hours_words(hours)} ({number if same else first} to {last})"


def counted(number: float, unit: str) -> str:
    """A whole number of things: "1 step", "1,234 steps", "2 copies"."""
    return f"{number:,.0f} {unit if round(number) == 1 else _several(unit)}"


def _several(unit: str) -> str:
    if unit.endswith("y") and unit[-2] not in "aeou":
        return f"{unit[:-1]}ies"
    return f"{unit}es" if unit.endswith(("s", "x", "tch", "nch")) else f"{unit}s"


def exactly(number: float, unit: str) -> str:
    """A number of units that need not be whole: "1 minute", "1.5 hours"."""
    return f"{number:g} {unit if number == 1 else _several(unit)}"


def verb(number: float, singular: str, many: str) -> str:
    """The verb behind a count: "1 row is", "3 rows are"."""
    return singular if round(number) == 1 else many
