"""Parameters of which a few are tested by day; the others, which go through the same lines, have the marker `nightly`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def by_day(values: Iterable[Any], kept: int | Collection[Any]) -> list[Any]:
    """All values, of which `kept` have no further marker: so many of them, evenly spread, or these."""
    values = list(values)
    if isinstance(kept, int):
        day = {round(number * (len(values) - 1) / max(kept - 1, 1)) for number in range(kept)}
    else:
        day = {number for number, value in enumerate(values) if value in kept}
        assert len(day) >= len(kept), f"not among the values: {kept}"
    return [value if number in day else at_night(value) for number, value in enumerate(values)]


def at_night(value: Any) -> Any:
    """A value, or a parameter with markers of its own, that is tested at night."""
    if hasattr(value, "marks"):
        return pytest.param(*value.values, id=value.id, marks=(*value.marks, pytest.mark.nightly))
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.nightly)
