"""A record on its way to a conversation: what a format makes of it, and the checks that all formats share."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.ratings import opinion, read_thumb
from tuneloop.data.formats.sample import Find, FormatGuess, Record, as_value, is_scalar
from tuneloop.data.formats.turns import Refused, as_text, assistant, json_text, ordered, read_turns, short, user
from tuneloop.data.sources.parse import json_type
from tuneloop.records.rows import Message


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record as a conversation.

    Args:
        messages: the turns; the last is the assistant's. Plain text is one turn of the assistant alone.
        label: the class, where the task has one.
        tools: the tools that may be called, in the OpenAI form.
        used: columns that went into the conversation.
        repairs: what was changed, each with at least `kind` and `field`.
        extra: further facts for `meta`: `rejected` (the turns of the worse answer; `shared_turns` where they
            take the place of more than the last turn), `thumb` and `rating`, `labels`, `model`.
    """

    messages: list[Message]
    label: str | None
    tools: list[dict[str, Any]]
    used: frozenset[str]
    repairs: list[dict[str, Any]]
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """Why a record is no training example: a word of the documented list, and the particulars.

    Args:
        tokens: of a row that is too long.
    """

    reason: str
    detail: str
    tokens: int = 0


@dataclass(slots=True)
class Draft:
    """What a format makes of a record, before the checks that all formats share."""

    turns: list[Message]
    repairs: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


Parse = Callable[[Record, FormatGuess, PrepareConfig], Parsed]


def checked(draft: Draft, record: Record, guess: FormatGuess, config: PrepareConfig, *, errors: bool = True) -> Parsed:
    """A draft that has passed the checks all formats share; `errors`: answers that are error messages are refused.

    Raises:
        Refused: see `tuneloop.data.formats.turns.ordered`, and labels that are not allowed.
    """
    classes = config.task == "classification" or config.labels is not None
    messages = ordered(
        draft.turns, guess.keys, draft.repairs, system=config.instruction or "", errors=errors and not classes
    )
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


_NEEDED = ("turns", "instruction", "output", "prompt", "completion", "text", "label", "chosen", "rejected", "answers")


def text_of(record: Record, column: str | None, guess: FormatGuess) -> str:
    """A column's text, "" where it is not there."""
    value = record.get(column) if column else None
    return value if type(value) is str else as_text(value, f"column {column!r}", strings_only=column in guess.texts)


def filled(record: Record, column: str, reason: str, guess: FormatGuess) -> str:
    text = record.get(column)
    if type(text) is not str:
        value = required(record, column, guess)
        text = as_text(value, f"column {column!r}", strings_only=column in guess.texts)
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
    """Refuse a value that is no object or array in a column where nearly all others are.

    Raises:
        Refused: it is not null either.
    """
    if column in guess.objects and value is not None and is_scalar(as_value(value)):
        raise Refused(
            "wrong_type", f"column {column!r} is {json_type(value)}, not JSON as nearly all others: {short(str(value))}"
        )


def system_turn(record: Record, guess: FormatGuess) -> list[Message]:
    text = text_of(record, guess.columns.get("system", "system"), guess)
    return [{"role": "system", "content": text}] if text and not text.isspace() else []


def _rate(record: Record, guess: FormatGuess, config: PrepareConfig, extra: dict[str, Any]) -> None:
    """Add `thumb` and `rating` to what is known of a row. Rows without one are kept, unless thumbs are required."""
    column = guess.columns["thumb"]
    value = opinion(record.get(column))
    if value is None:
        if config.format == "thumbs":
            raise Refused("missing_field", f"column {column!r} has no rating")
        return
    rated = read_thumb(value, guess.scale)
    if rated is None:
        raise Refused("wrong_type", f"column {column!r} has no rating that can be read: {short(str(value))}")
    thumb, number = rated
    if thumb is not None:
        extra["thumb"] = thumb
    if number is not None:
        extra["rating"] = number


def prompt_turns(
    record: Record, column: str, guess: FormatGuess, repairs: list[dict[str, Any]] | None = None
) -> list[Message]:
    """System turn, earlier turns, and the question: the prompt with all that belongs to it."""
    columns = guess.columns
    turns = system_turn(record, guess)
    history = record.get(columns.get("history", "history")) or []
    if history:
        turns += _history(history)
    value = required(record, column, guess)
    if isinstance(value, list) and repairs is not None:
        return turns + read_turns(value, guess.keys, repairs)
    parts = (text_of(record, column, guess), text_of(record, columns.get("input"), guess))
    prompt = "\n".join([part for part in parts if part and not part.isspace()])
    if not prompt:
        raise Refused("empty_input", f"column {column!r} is empty")
    turns.append(user(prompt))
    return turns


def _history(value: Any) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise Refused("wrong_type", "column 'history' is no array of pairs")
    turns: list[Message] = []
    for question, answer in value:
        turns += [user(as_text(question, "column 'history'")), assistant(as_text(answer, "column 'history'"))]
    return turns


@dataclass(frozen=True)
class Format:
    """A shape of records.

    Args:
        name: as `data.format` names it.
        shape: what its records have, for messages.
        parse: makes a conversation of a record, or raises `Refused`.
        find: recognises the format in a sample of records; None: it must be configured.
        rated: a further column of ratings makes records of this format `thumbs`.
    """

    name: str
    shape: str
    parse: Parse
    find: Find | None = None
    rated: bool = False


# By name, in the order in which formats are looked for: a conversation may stand next to an instruction, an
# instruction next to a label.
FORMATS: dict[str, Format] = {}


def add_format(added: Format) -> None:
    """Make a format one of `FORMATS`; it is looked for before all others."""
    others = {name: form for name, form in FORMATS.items() if name != added.name}
    FORMATS.clear()
    FORMATS.update({added.name: added, **others})
