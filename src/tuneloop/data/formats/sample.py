"""What a sample of records shows: the building blocks of `find_...` functions, and what they give."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.turns import PLAIN_KEYS, TurnKeys

TEXT_NAMES = (
    "text", "sentence", "utterance", "message", "content", "body", "query", "question", "description", "title",
)  # fmt: skip
NO_CONTENT_NAMES = ("id", "uuid", "index", "idx", "created", "time", "timestamp", "date", "fold", "split")
ABOUT_PARTS = {"fold", "folds", "split", "partition", "index", "idx", "uuid", "guid"}  # also within a name: fold_no
BESIDES = ("input", "context", "passage")  # what a question or an instruction is about

NEARLY = 0.9  # share of a column's values from which the others are of a wrong type
SYSTEM = ("system", ("system", "system_prompt"))
TOOLS = ("tools", ("tools", "functions"))
HISTORY = ("history", ("history",))

Record = Mapping[str, Any]


@dataclass(frozen=True)
class FormatGuess:
    """The shape of the records, as the sample shows it."""

    name: str  # the format
    columns: dict[str, str]  # columns by role
    reason: str  # how it was found, for people
    keys: TurnKeys = PLAIN_KEYS  # how turns are written
    texts: frozenset[str] = frozenset()  # columns with strings in nearly all records: numbers there are refused
    many_labels: bool = False  # the label is a list of labels
    classes: frozenset[str] = frozenset()  # labels that look like "no value" but are frequent enough to be classes
    scale: tuple[float, float] | None = None  # lowest and highest rating, where thumbs are numbers
    guessed: tuple[str, ...] = ()  # settings that say what only the values suggest, for the user to agree to
    objects: frozenset[str] = frozenset()  # columns with objects or arrays, or JSON, in nearly all: all else is refused
    labelled: bool = False  # the answers are few, short and repeated: labels, whatever the format

    @functools.cached_property
    def used(self) -> frozenset[str]:
        """Columns that go into the conversation. Thumbs and class ids are further facts about it."""
        further = {"thumb"} | ({"label"} if "label_name" in self.columns else set())
        used = {column for role, column in self.columns.items() if role not in further}
        return frozenset(used | ({"system", "tools"} if self.name not in ("text_label", "text") else set()))


class RecordSample(list[Record]):
    """The first records of the sources, which show the format."""

    @functools.cached_property
    def columns(self) -> dict[str, int]:
        """Columns with the number of records that have them, in order of appearance."""
        return dict(Counter(name for record in self for name in record))

    def of(self, column: str) -> list[Any]:
        """The values of a column, None where it is missing."""
        return [record.get(column) for record in self]

    def having(self, columns: Iterable[str]) -> int:
        """The number of records that have all the columns."""
        return sum(all(column in record for column in columns) for record in self)

    def is_usual(self, *columns: str) -> bool:
        """Whether at least half of the records have all the columns."""
        return bool(self) and 2 * self.having(columns) >= len(self)

    def mostly(self, column: str, fits: Callable[[Any], bool]) -> bool:
        """Whether half of the values of a column that are not null fit, and at least one."""
        return mostly(self.of(column), fits)

    def nearly(self, column: str, fits: Callable[[Any], bool]) -> bool:
        """Whether nearly all values of a column that are not null fit, so that the others are mistakes."""
        return mostly(self.of(column), fits, NEARLY)

    def text_columns(self, columns: Iterable[str]) -> frozenset[str]:
        """Columns with strings in nearly all records: a number there is a mistake."""
        return frozenset(c for c in columns if self.nearly(c, lambda value: isinstance(value, str)))

    def first(self, names: Iterable[str]) -> str | None:
        """The first of some columns that the sample has."""
        return next((name for name in names if name in self.columns), None)

    def seen(self, columns: Iterable[str], what: str = "") -> str:
        """How many records have some columns, in words."""
        columns = list(columns)
        number = self.having(columns)
        share = f"all {number:,}" if number == len(self) else f"{number:,} of {len(self):,}"
        records, have = ("record", "has") if number == len(self) == 1 else ("records", "have")
        return f"{share} {records} looked at {have} {' and '.join(map(repr, columns))}{what}"

    def further(self, *roles: tuple[str, tuple[str, ...]]) -> dict[str, str]:
        """Columns that go with others: for each role the first of its names that the sample has."""
        return {role: column for role, names in roles if (column := self.first(names)) is not None}


Find = Callable[[RecordSample, PrepareConfig], FormatGuess | None]


def mostly(values: Iterable[Any], fits: Callable[[Any], bool], share: float = 0.5) -> bool:
    """Whether a share of the values that are not null fit, and at least one."""
    present = [value for value in values if value is not None]
    number = sum(map(fits, present))
    return number > 0 and number >= share * len(present)


def is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def as_value(value: Any) -> Any:
    """A value, read where it is an object or array in JSON."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def first(record: Mapping[str, Any], *paths: str) -> Any:
    """The first value that is there, by paths that may lead into objects, as in `metadata.user`."""
    return next((value for path in paths if (value := _at(record, path)) is not None and value != ""), None)


def _at(record: Any, path: str) -> Any:
    """The value at a path; a key may have dots of its own, as those of OpenTelemetry's attributes."""
    if not isinstance(record, Mapping) or path in record:
        return record[path] if isinstance(record, Mapping) else None
    heads = [path[:place] for place, sign in enumerate(path) if sign == "."]
    inner = (as_value(_at(as_value(record[head]), path[len(head) + 1 :])) for head in heads if head in record)
    return next((value for value in inner if value is not None), None)


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def is_about(name: str, further: Iterable[str] = ()) -> bool:
    """Whether a column is about the record, by its name: an id, a time, or one of `further` names."""
    low = name.casefold()
    parts = ABOUT_PARTS.intersection(re.split(r"[^a-z0-9]+", low))
    return bool(parts) or low in (*NO_CONTENT_NAMES, *further) or low.endswith(("_id", "_at", "-id"))
