"""Dollars and hours as people say them."""

from __future__ import annotations

import math


def usd_words(value: float) -> str:
    """Dollars: `$1,234` from 100 on and where they are whole, else with cents; below a cent with one figure, as in `$0.0004`."""
    if not math.isfinite(value):
        return "without end"
    sign, size = "-" if value < 0 else "", abs(value)
    if size == 0:
        return "$0"
    if size < 1e-6:
        return f"{sign}under $0.000001"
    if size < 0.01:
        return f"{sign}${float(f'{size:.1g}'):.6f}".rstrip("0")
    whole = size >= 99.995 or abs(size - round(size)) < 0.005
    return f"{sign}${size:,.0f}" if whole else f"{sign}${size:,.2f}"


def hours_words(hours: float) -> str:
    """Hours: seconds below a minute and a half, minutes below two hours, days above two of them."""
    seconds = hours * 3600
    if seconds < 90:
        return counted(seconds, "second")
    if hours < 2:
        return counted(seconds / 60, "minute")
    return f"{hours:.1f} hours" if hours < 48 else counted(hours / 24, "day")


def counted(number: float, unit: str) -> str:
    """A whole number of things: "1 step", "1,234 steps"."""
    return f"{number:,.0f} {unit}{'' if round(number) == 1 else 's'}"
