"""A text and its class or classes; and plain text, to be learned as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.formats.conversation import is_data
from tuneloop.data.formats.draft import Format, Parsed, check_label, filled, required
from tuneloop.data.formats.sample import TEXT_NAMES, FormatGuess, Record, RecordSample, as_value, is_about, is_scalar
from tuneloop.data.formats.turns import Refused, assistant, short, user
from tuneloop.data.sources.parse import json_type
from tuneloop.records.rows import Message

CLASSIFY = "Classify the text. Answer with the label only."
CLASSIFY_MANY = (
    "Classify the text. Answer with all labels that apply, in alphabetical order, separated by commas; with none where "
    "none applies."
)
NO_LABELS = "none"  # the label of a row whose list of labels is empty
LABEL_NAMES = ("label", "labels", "category", "class", "intent", "target", "queue", "topic", "sentiment", "label_text")
LABEL_TEXTS = ("{}_text", "{}_name", "{}_str", "label_text", "label_name", "class_name", "category_name")
PLACEHOLDERS = frozenset(
    {"n/a", "na", "n.a.", "#n/a", "null", "nan", "undefined", "-", "--", "?", "???", "tbd", "todo", "(blank)", "<na>"}
)
FORM_NAMES = ("list", "array", "txt", "str", "string", "names")  # how a column's values are written
ABOUT_NAMES = (
    "url", "source", "title", "subject", "lang", "language", "author", "meta", "licence", "license", "domain",
    "metadata", "attributes", "extra", "headers", "stats", "quality_signals", "embedding", "embeddings", "vector",
    "logprobs", "usage",
)  # fmt: skip


def text_label(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """A text and its class, or its classes."""
    columns = guess.columns
    text = filled(record, columns["text"], "empty_input", guess)
    repairs: list[dict[str, Any]] = []
    extra: dict[str, Any] = {}
    if guess.many_labels:
        labels = _labels(record, columns["label"], guess, config)
        label = ", ".join(labels)
        extra["labels"] = labels
    else:
        column = columns.get("label_name") or columns["label"]
        raw = filled(record, column, "empty_output", guess)
        label = raw.strip()
        if label != raw:
            repairs.append({"kind": "trimmed", "field": column})
        _check_class(label, column, guess, config)
    instruction = config.instruction
    if instruction is None:
        instruction = CLASSIFY_MANY if guess.many_labels else CLASSIFY
    messages: list[Message] = [user(text), assistant(label)]
    if instruction and not instruction.isspace():
        messages.insert(0, {"role": "system", "content": instruction})
    return Parsed(messages, label, [], guess.used, repairs, extra)


def _check_class(label: str, column: str, guess: FormatGuess, config: PrepareConfig) -> None:
    if config.labels is not None:
        check_label(label, config.labels)
    elif len(label) < 10 and label.casefold() in PLACEHOLDERS and label not in guess.classes:
        raise Refused("empty_output", f"column {column!r} is {short(label)}, which means no label")


def _labels(record: Record, column: str, guess: FormatGuess, config: PrepareConfig) -> list[str]:
    value = as_value(required(record, column, guess))
    if value is None:
        raise Refused("empty_output", f"column {column!r} is empty")
    if not is_label_list(value):
        raise Refused("wrong_type", f"column {column!r} is {json_type(value)}, not an array of labels")
    labels = sorted({label.strip() for label in value} - {""})
    if not labels:
        if value:
            raise Refused("empty_output", f"column {column!r} has only empty labels")
        return [NO_LABELS]  # others have some: that none applies is an answer too
    for label in labels:
        _check_class(label, column, guess, config)
    return labels


def find_text_label(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    """Columns by their configured or usual names, else the only two, where one repeats its values."""
    columns_seen = [name for name in sample.columns if sample.is_usual(name)]
    scalars = [name for name in columns_seen if sample.mostly(name, is_scalar)]
    lists = [name for name in columns_seen if sample.mostly(name, lambda value: is_label_list(as_value(value)))]
    label = config.label or _by_name(sample, [*lists, *scalars], LABEL_NAMES)
    text = config.text or _by_name(sample, [n for n in scalars if n not in (label, *lists)], TEXT_NAMES)
    rest = [n for n in scalars if not is_about(n) and n not in (text, label)]
    rest = [n for n in rest if not sample.mostly(n, lambda value: not is_scalar(as_value(value)))]  # JSON is no label
    guessed = ""
    if not (text and label):
        if (text or label) and len(rest) == 1:
            guessed = rest[0]
            if text and not config.text and not _repeats(sample, guessed):
                return None
        elif not text and not label and len(rest) == 2 and not any(repeat_items(sample, name) for name in lists):
            text, guessed = sorted(rest, key=lambda name: -_distinct(sample, name))
            if not _repeats(sample, guessed) or _distinct(sample, text) == _distinct(sample, guessed):
                return None
        else:
            return None
        text, label = text or guessed, label or guessed
    columns = {"text": text, "label": label}
    reason = sample.seen([text, label])
    if guessed == label:
        reason += f"; {label!r} is taken for the label: it has {_distinct(sample, label):,} different values"
    elif guessed:
        reason += f"; {text!r} is taken for the text: it is the only other column"
    if label in lists:
        reason += ", lists of labels"
    if sample.nearly(label, lambda v: isinstance(v, int) and not isinstance(v, bool)):
        names = [pattern.format(label) for pattern in LABEL_TEXTS]
        if name := next((n for n in names if n in columns_seen and n not in (text, label)), None):
            columns["label_name"] = name
            reason += f"; {name!r} has the names of the labels"
    return FormatGuess(
        "text_label",
        columns,
        reason,
        many_labels=label in lists,
        classes=_placeholder_classes(sample, columns),
        guessed=(f"data.text={text}", f"data.label={label}") if guessed == label else (),
    )


def _by_name(sample: RecordSample, columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column of a usual name, else one that ends in it, as `ticket_text` and `intent_list` do."""
    low = {name.casefold(): name for name in reversed(columns)}
    if usual := next((low[name] for name in names if name in low), None):
        return usual
    for name, column in low.items():
        *before, last = re.split(r"[^a-z0-9]+", name)
        if last in FORM_NAMES and len(before) > 0 and last not in names:
            *before, last = before
            before = before or [""]
        if before and last in names and not set(before) & set(LABEL_NAMES):
            return column
    return None


def is_label_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def repeat_items(sample: RecordSample, column: str) -> bool:
    """Whether a column has lists of texts with few enough different ones for labels, and at least two."""
    values = [value for value in map(as_value, sample.of(column)) if value is not None]
    items = [item for value in values if is_label_list(value) for item in value]
    differ = any(value != values[0] for value in values)
    return differ and all(map(is_label_list, values)) and 2 <= len(set(items)) <= len(items) / 3


def _distinct(sample: RecordSample, column: str) -> int:
    return len({str(value) for value in sample.of(column) if value is not None})


def _repeats(sample: RecordSample, column: str) -> bool:
    """Whether a column has few enough different values for classes; three rows of each are the least."""
    return 3 * _distinct(sample, column) <= len(sample)


def _placeholder_classes(sample: RecordSample, columns: Mapping[str, str]) -> frozenset[str]:
    """Placeholders such as "N/A" that are about as frequent as the other labels: they are classes."""
    values = sample.of(columns.get("label_name", columns["label"]))
    counts = Counter(value.strip() for value in values if isinstance(value, str))
    usual = sorted(number for name, number in counts.items() if name and name.casefold() not in PLACEHOLDERS)
    if not usual:
        return frozenset(counts)
    middle = usual[len(usual) // 2]
    return frozenset(
        n for n, number in counts.items() if n.casefold() in PLACEHOLDERS and number > 1 and 2 * number >= middle
    )


FORMAT = Format("text_label", "a column of text and one of labels", text_label, find_text_label)


def text(record: Record, guess: FormatGuess, config: PrepareConfig) -> Parsed:
    """Plain text, to be learned as it is: one turn of the assistant, with no prompt."""
    content = filled(record, guess.columns["text"], "empty_output", guess)
    if kind := error_answer(content):
        raise Refused("error_output", f"column {guess.columns['text']!r} is {kind}: {short(content)}")
    return Parsed([assistant(content)], None, [], guess.used, [])


def _find_text(sample: RecordSample, config: PrepareConfig) -> FormatGuess | None:
    columns = [name for name in sample.columns if sample.is_usual(name)]
    strings = [name for name in columns if sample.mostly(name, lambda value: isinstance(value, str))]
    lists = [name for name in columns if sample.mostly(name, lambda value: isinstance(value, list))]
    contents = [name for name in strings if not is_about(name, ABOUT_NAMES)]
    low = {name.casefold(): name for name in strings}
    names = ("text", "content", "document", "raw_content", "page_content")
    column = config.text or next((low[name] for name in names if name in low), None)
    if not column and len(contents) == 1:
        prose = sample.mostly(contents[0], lambda value: isinstance(value, str) and len(value.split()) > 3)
        column = contents[0] if prose else None
    others = [*lists, *answer_columns(sample), *(name for name in contents if name != column)]
    if column is None or (config.format == "auto" and others):
        return None
    return FormatGuess("text", {"text": column}, sample.seen([column], " and no other column of text"))


def answer_columns(sample: RecordSample) -> list[str]:
    """Columns of objects or arrays that may be answers: no facts about the record, no turns, no vectors."""
    about = (*ABOUT_NAMES, "tools", "functions")
    names = [name for name in sample.columns if name.isprintable() and not {"{", "}"} & set(name)]  # for a template

    def is_answer(value: Any) -> bool:
        value = as_value(value)
        return is_data(value) and not (isinstance(value, list) and len(value) > 32 and isinstance(value[0], float))

    return [name for name in names if not is_about(name, about) and sample.mostly(name, is_answer)]


TEXT = Format("text", "one column of text", text, _find_text)
