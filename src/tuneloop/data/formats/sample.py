"""What a sample of records shows: the building blocks of `find_...` functions, and what they give."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.turns import PLAIN_KEYS, TurnKeys

TEXT_NAMES = (
    "text", "sentence", "utterance", "message", "content", "body", "query", "question", "description", "title",
)  # fmt: skip
NO_CONTENT_NAMES = ("id", "uuid", "index", "idx", "created", "time", "timestamp", "date", "fold", "split")
BESIDES = ("input", "context", "passage")  # what a question or an instruction is about

NEARLY = 0.9  # share of a column's values from which the others are of a wrong type
SYSTEM = ("system", ("system", "system_prompt"))
TOOLS = ("tools", ("tools", "functions"))
HISTORY = ("history", ("history",))

Record = Mapping[str, Any]
Sample = Sequence[Record]


@dataclass(frozen=True)
class FormatGuess:
    """The shape of the records, as the sample shows it.

    Args:
        name: the format.
        columns: columns by role.
        reason: how it was found, for people.
        keys: how turns are written.
        texts: columns that hold strings in nearly all records; numbers and booleans there are refused.
        many_labels: the label is a list of labels.
        classes: labels that look like "no value" but are frequent enough to be classes.
        scale: lowest and highest rating, where thumbs are numbers.
    """

    name: str
    columns: dict[str, str]
    reason: str
    keys: TurnKeys = PLAIN_KEYS
    texts: frozenset[str] = frozenset()
    many_labels: bool = False
    classes: frozenset[str] = frozenset()
    scale: tuple[float, float] | None = None

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Columns that go into the conversation. Thumbs and class ids are further facts about it."""
        beside = {"thumb"} | ({"label"} if "label_name" in self.columns else set())
        used = {column for role, column in self.columns.items() if role not in beside}
        return frozenset(used | ({"system", "tools"} if self.name not in ("text_label", "text") else set()))


Find = Callable[[Sample, PrepareConfig], FormatGuess | None]


def columns_of(records: Iterable[Record]) -> dict[str, int]:
    """Columns with the number of records that have them, in order of appearance."""
    counts: dict[str, int] = {}
    for record in records:
        for name in record:
            counts[name] = counts.get(name, 0) + 1
    return counts


def count_with(sample: Sample, columns: Iterable[str]) -> int:
    return sum(all(column in record for column in columns) for record in sample)


def is_usual(sample: Sample, *columns: str) -> bool:
    """Whether at least half of the records have all the columns."""
    return bool(sample) and 2 * count_with(sample, columns) >= len(sample)


def mostly(values: Iterable[Any], fits: Callable[[Any], bool], share: float = 0.5) -> bool:
    """Whether a share of the values that are not null fit, and at least one."""
    known = [value for value in values if value is not None]
    number = sum(map(fits, known))
    return number > 0 and number >= share * len(known)


def values_of(sample: Sample, column: str) -> list[Any]:
    return [record.get(column) for record in sample]


def text_columns(sample: Sample, columns: Iterable[str]) -> frozenset[str]:
    """Columns with strings in nearly all records: a number there is a mistake."""
    return frozenset(
        column for column in columns if mostly(values_of(sample, column), lambda value: isinstance(value, str), NEARLY)
    )


def first_present(sample: Sample, names: Iterable[str]) -> str | None:
    """The first of some columns that the sample has."""
    return next((name for name in names if any(name in record for record in sample)), None)


def seen(sample: Sample, columns: Iterable[str], what: str = "") -> str:
    """How many records show some columns, as told to people."""
    columns = list(columns)
    number = count_with(sample, columns)
    share = f"all {number:,}" if number == len(sample) else f"{number:,} of {len(sample):,}"
    return f"{share} records looked at have {' and '.join(map(repr, columns))}{what}"


def alongside(sample: Sample, *roles: tuple[str, tuple[str, ...]]) -> dict[str, str]:
    """Columns that go with others: for each role the first of its names that the sample has."""
    found = {role: first_present(sample, names) for role, names in roles}
    return {role: column for role, column in found.items() if column is not None}


def is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def is_about(name: str, names: Iterable[str]) -> bool:
    """Whether a column is about the record, by its name: an id, a time, a source."""
    return name.casefold() in names or name.casefold().endswith(("_id", "_at", "-id"))
