"""How numbers and texts of unknown origin are written for people, on pages and terminals alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tuneloop.core.stats.tests import p_words
from tuneloop.core.units import counted

# Control characters would reach the terminal as commands, or break the page; newline and tab stay.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: object) -> str:
    """Text without control characters and lone surrogates."""
    return UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n"))


def clean_all(value: Any) -> Any:
    """`clean` for every string of a JSON-like value."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(key): clean_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean_all(item) for item in value]
    return value


def between_words(text: str, longest: int) -> str:
    """The beginning of a text, which ends between words where there is a gap near the end."""
    head = text[:longest].rstrip()
    at = max(head.rfind(" "), head.rfind("\n")) if len(text) > longest and not text[longest].isspace() else -1
    return head[:at].rstrip() if at > longest // 2 else head


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def section(value: object) -> dict[str, Any]:
    """A mapping, or an empty one where a file holds something else."""
    return value if isinstance(value, dict) else {}


def count(n: float, unit: str = "") -> str:
    """A count with thin groups of three and its unit in the right number: `1,234 rows`."""
    return counted(n, unit) if unit else f"{n:,.0f}"


def short_count(n: float | None) -> str:
    """A large count in three digits: `1.24 M`."""
    if n is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(n) >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,.0f}" if n == int(n) else f"{n:.3g}"


def p_value(p: float | None) -> str:
    """`p < 0.001`, `p = 0.034`."""
    return "–" if p is None else p_words(p)


def minutes(value: float | None) -> str:
    """Minutes as `4.2 min`, hours from two hours on."""
    if value is None:
        return "–"
    if value >= 120:
        return f"{value / 60:.1f} h"
    return f"{value:.1f} min" if value >= 0.1 else f"{value * 60:.0f} s"


def gib(value: float | None) -> str:
    """`1.3 GiB`."""
    if value is None:
        return "–"
    return f"{value:.1f} GiB" if value >= 0.1 or value == 0 else f"{value * 1024:.0f} MiB"


def usd(value: float | None, digits: int = 1) -> str:
    """`$0.01`; smaller amounts keep one digit, or more, so that they do not read as nothing."""
    if value is None:
        return "–"
    if value == 0:
        return "$0"
    if value < 1e-5:
        return "< $0.00001"
    if value >= 10 ** (digits - 3):  # cents have as many digits
        return f"${value:,.2f}"
    return f"${float(f'{value:.{digits}g}'):.7f}".rstrip("0")


def off_words(actual: float | None, low: float | None, high: float | None, expected: float | None) -> str:
    """A number and its prediction: `as predicted` within the range, else `took 38 % less`, `took 2.1 times as much`."""
    if actual is None or low is None or high is None or not expected:
        return ""
    if low <= actual <= high:
        return "as predicted"
    ratio = actual / expected
    if ratio >= 2:
        return f"took {ratio:.1f} times as much"
    return f"took {abs(100 * (ratio - 1)):.0f}\u00a0% {'more' if ratio > 1 else 'less'}"
