"""What all formats share: how a sample of records shows a format, and how a record becomes a conversation.

A format's `find` looks at a `RecordSample` and gives a `FormatGuess`; its `parse` makes a `Draft` of each record, which
`checked` turns into a `Parsed` one.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.core.foreign import parse_json
from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.turns import (
    PLAIN_KEYS,
    Refused,
    TurnKeys,
    as_text,
    assistant,
    json_text,
    ordered,
    read_turns,
    short,
    user,
)
from tuneloop.data.sources.parse import json_type
from tuneloop.records.rows import Message

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

    def to_json(self) -> dict[str, Any]:
        """What `dataset.json` says of the records' format."""
        keys, facts = self.keys, {"name": self.name, "columns": self.columns, "reason": self.reason}
        written = {**vars(keys), "usual": sorted(keys.usual), "greetings": sorted(keys.greetings)}
        further = {"texts": sorted(self.texts), "many_labels": self.many_labels}
        further |= {"turns": written} if keys != PLAIN_KEYS else {}
        return facts | {name: value for name, value in further.items() if value}

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

    def seen(self, columns: Iterable[str], detail: str = "") -> str:
        """How many records have some columns, in words."""
        columns = list(columns)
        number = self.having(columns)
        share = f"all {number:,}" if number == len(self) else f"{number:,} of {len(self):,}"
        records, have = ("record", "has") if number == len(self) == 1 else ("records", "have")
        return f"{share} {records} looked at {have} {' and '.join(map(repr, columns))}{detail}"

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
            return parse_json(value)
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
    heads = [path[:index] for index, sign in enumerate(path) if sign == "."]
    inner = (as_value(_at(as_value(record[head]), path[len(head) + 1 :])) for head in heads if head in record)
    return next((value for value in inner if value is not None), None)


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none where it is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def is_about(name: str, further: Iterable[str] = ()) -> bool:
    """Whether a column is about the record, by its name: an id, a time, or one of `further` names."""
    low = name.casefold()
    parts = ABOUT_PARTS.intersection(re.split(r"[^a-z0-9]+", low))
    return bool(parts) or low in (*NO_CONTENT_NAMES, *further) or low.endswith(("_id", "_at", "-id"))


_NEEDED = ("turns", "instruction", "output", "prompt", "completion", "text", "label", "chosen", "rejected", "answers")
_UP = (
    "up true 1 yes good like liked positive desirable chosen upvote upvoted helpful satisfied correct +1 👍 thumbsup "
    "thumbs_up thumb_up thumbs-up"
)
_DOWN = (
    "down false 0 no bad dislike disliked negative undesirable rejected downvote downvoted unhelpful dissatisfied "
    "incorrect -1 👎 thumbsdown thumbs_down thumb_down thumbs-down"
)
_THUMBS = dict.fromkeys(_UP.split(), True) | dict.fromkeys(_DOWN.split(), False)


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record as a conversation.

    `extra` holds further facts for `meta`: `rejected` (the turns of the worse answer; `shared_turns` where they take
    the place of more than the last turn), `thumb` and `rating`, `labels`, `model`.
    """

    messages: list[Message]  # the turns; the last is the assistant's. Plain text is one turn of the assistant alone
    label: str | None  # the class, where the task has one
    tools: list[dict[str, Any]]  # the tools that may be called, in the OpenAI form
    used: frozenset[str]  # columns that went into the conversation
    repairs: list[dict[str, Any]]  # what was changed, each with at least `kind` and `field`
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """Why a record is no training example: a word of the documented list, and the particulars."""

    reason: str
    detail: str
    tokens: int = 0  # of a row that is too long


@dataclass(slots=True)
class Draft:
    """What a format makes of a record, before the checks that all formats share."""

    turns: list[Message]
    repairs: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


Parse = Callable[[Record, FormatGuess, PrepareConfig], Parsed]


def checked(draft: Draft, record: Record, guess: FormatGuess, config: PrepareConfig, *, errors: bool = True) -> Parsed:
    """A draft that has passed the checks all formats share, or `Refused`: see `tuneloop.data.formats.turns.ordered`,
    and labels that are not allowed. `errors`: answers that are error messages are refused, unless the user says that
    they are labels.
    """
    classes = guess.labelled or config.task == "classification" or config.labels is not None
    system, errors = config.instruction or "", errors and (guess.labelled or not classes)
    messages = ordered(draft.turns, guess.keys, draft.repairs, system=system, errors=errors)
    if "thumb" in guess.columns:
        _rate(record, guess, config, draft.extra)
    label = None
    if classes:
        label = messages[-1]["content"].strip()
        if config.labels is not None:
            check_label(label, config.labels)
    return Parsed(messages, label, draft.tools, guess.used, draft.repairs, draft.extra)


def checked_parser(drafter: Callable[[Record, FormatGuess, PrepareConfig], Draft]) -> Parse:
    """The parser of a format whose drafts pass the checks that all formats share."""
    return lambda record, guess, config: checked(drafter(record, guess, config), record, guess, config)


def check_label(label: str, labels: Collection[str]) -> None:
    if label not in labels:
        folded = {name.casefold(): name for name in labels}
        near = difflib.get_close_matches(label.casefold(), folded, 1, 0.6)
        raise Refused("unknown_label", f"{short(label)}" + (f": did you mean {folded[near[0]]!r}?" if near else ""))


def required(record: Record, column: str, guess: FormatGuess) -> Any:
    if column not in record:
        needed = [name for role, name in guess.columns.items() if role in _NEEDED]
        expected = f" ({guess.name}: {', '.join(needed)} expected)" if column in needed else ""
        raise Refused("missing_field", f"no column {column!r}{expected}")
    return record[column]


def text_of(record: Record, column: str | None, guess: FormatGuess) -> str:
    """A column's text, "" where it is not there."""
    value = record.get(column) if column else None
    return value if type(value) is str else as_text(value, f"column {column!r}", strings_only=column in guess.texts)


def filled(record: Record, column: str, reason: str, guess: FormatGuess) -> str:
    if type(record.get(column)) is not str:
        required(record, column, guess)
    text = text_of(record, column, guess)
    if not text or text.isspace():
        raise Refused(reason, f"column {column!r} is empty")
    return text


def answer_of(record: Record, column: str, guess: FormatGuess) -> str:
    """The answer in a column; an object or array is written as JSON."""
    value = record.get(column)
    refuse_text(value, column, guess)
    if isinstance(value, dict | list) and column not in guess.texts:
        return json_text(value, f"column {column!r}")
    return filled(record, column, "empty_output", guess)


def refuse_text(value: Any, column: str, guess: FormatGuess) -> None:
    """Refuse a value that is no object, array or null in a column where nearly all others are."""
    if column in guess.objects and value is not None and is_scalar(as_value(value)):
        problem = f"column {column!r} is {json_type(value)}, not JSON as nearly all others"
        raise Refused("wrong_type", f"{problem}: {short(str(value))}")


def system_turn(record: Record, guess: FormatGuess) -> list[Message]:
    text = text_of(record, guess.columns.get("system", "system"), guess)
    return [{"role": "system", "content": text}] if text and not text.isspace() else []


def _rate(record: Record, guess: FormatGuess, config: PrepareConfig, extra: dict[str, Any]) -> None:
    """Add `thumb` and `rating` to what is known of a row. Rows without one are kept, unless thumbs are required."""
    column = guess.columns["thumb"]
    value = raw_rating(record.get(column))
    if value is None:
        if config.format == "thumbs":
            raise Refused("missing_field", f"column {column!r} has no rating")
        return
    rated = read_thumb(value, guess.scale)
    if rated is None:
        raise Refused("wrong_type", f"column {column!r} has no rating that can be read: {short(str(value))}")
    extra |= {name: value for name, value in zip(("thumb", "rating"), rated, strict=True) if value is not None}


def prompt_turns(
    record: Record, column: str, guess: FormatGuess, repairs: list[dict[str, Any]] | None = None
) -> list[Message]:
    """System turn, earlier turns, and the question: the prompt with all that belongs to it."""
    columns = guess.columns
    turns = system_turn(record, guess)
    history = record.get(columns.get("history", "history")) or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise Refused("wrong_type", "column 'history' is no array of pairs")
    for question, answer in history:
        turns += [user(as_text(question, "column 'history'")), assistant(as_text(answer, "column 'history'"))]
    value = required(record, column, guess)
    if isinstance(value, list) and repairs is not None:
        return turns + read_turns(value, guess.keys, repairs)
    parts = (text_of(record, column, guess), text_of(record, columns.get("input"), guess))
    prompt = "\n".join([part for part in parts if part and not part.isspace()])
    if not prompt:
        raise Refused("empty_input", f"column {column!r} is empty")
    turns.append(user(prompt))
    return turns


# --- ratings: thumbs, stars and scores in their many spellings ---


def raw_rating(value: Any) -> Any:
    """The rating of an answer, out of the object that may hold it."""
    if isinstance(value, dict):
        names = ("thumb", "thumbs", "rating", "score", "value", "feedback", "label", "type")
        value = next((value[name] for name in names if value.get(name) is not None), None)
    if isinstance(value, str) and not value.strip():
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def read_number(value: Any) -> float | None:
    """A number of a sane size, which may stand as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6 else None


def scale_of(values: Sequence[Any], name: str) -> tuple[float, float] | None:
    """The usual scale that ratings stay within; None for thumbs, and for labels, which are classes above 1."""
    numbers = [number for number in map(read_number, values) if number is not None]
    if 2 * len(numbers) < len(values) or set(numbers) <= {0, 1}:
        return None
    low, high = min(numbers), max(numbers)
    if name == "label" and (low, high) != (-1, 1):
        return None
    for top in (1, 5, 10, 100):
        if high <= top:
            return (-top if low < 0 else 1 if low >= 1 and top in (5, 10) else 0, top)
    return None


def read_thumb(value: Any, scale: tuple[float, float] | None) -> tuple[bool | None, float | None] | None:
    """Whether a rating is a thumb up (True), down (False) or neither (None), and its number; None if it can't be read.

    On a scale the upper two fifths are up, the lower two fifths down: 4 and 5 of five stars, 1 and 2.

    Args:
        value: a boolean, a word such as `up`, a number, or text with a number.
        scale: lowest and highest number, see `scale_of`; None for thumbs, where 1 is up and 0 is down.
    """
    if isinstance(value, bool):
        return value, None
    if scale is None:
        if isinstance(value, str):
            thumb = _THUMBS.get("_".join(value.strip().strip(":").casefold().split()))
            return None if thumb is None else (thumb, None)
        return (value > 0, None) if isinstance(value, int | float) and value in (0, 1) else None
    number, (low, high) = read_number(value), scale
    if number is None or not low <= number <= high:
        return None
    fraction = (number - low) / (high - low)
    return (True if fraction >= 0.6 else False if fraction <= 0.4 else None), number


def score_of(answer: Any) -> float | None:
    """The score in an object with an answer, if it is one."""
    if not isinstance(answer, dict):
        return None
    numbers = (read_number(answer.get(name)) for name in ("score", "overall_score", "rating", "reward"))
    return next((number for number in numbers if number is not None), None)


@dataclass(frozen=True)
class Format:
    """A shape of records."""

    name: str  # as `data.format` names it
    shape: str  # what its records have, for messages
    parse: Parse  # makes a conversation of a record, or raises `Refused`
    find: Find | None = None  # recognises the format in a sample of records; None: it must be configured
    rated: bool = False  # a further column of ratings makes records of this format `thumbs`
    needs: tuple[
        Collection[str], ...
    ] = ()  # names of columns, in lower case: of each group a sample has one, or no find


# By name, in the order in which formats are looked for: a conversation may stand next to an instruction, an
# instruction next to a label.
FORMATS: dict[str, Format] = {}


def add_format(added: Format) -> None:
    """Make a format one of `FORMATS`; it is looked for before all others."""
    others = {name: form for name, form in FORMATS.items() if name != added.name}
    FORMATS.clear()
    FORMATS.update({added.name: added, **others})
