"""Texts with columns in them: `{column}`, `{column.key}` into objects, `{{` and `}}` for braces."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.data.formats.turns import Refused, as_text, json_text

ABSENT = object()


@functools.lru_cache(maxsize=64)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as pairs (literal text, column or None).

    Raises:
        UserError: a brace that opens or closes nothing.
    """
    pieces: list[tuple[str, str | None]] = []
    literal, end = "", 0
    for match in re.finditer(r"\{\{|\}\}|\{([^{}]+)\}|[{}]", template):
        literal += template[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            literal += match[0][0]
        elif match[1] is not None:
            pieces.append((literal, match[1].strip()))
            literal = ""
        else:
            raise UserError(
                f"A single {match[0]!r} in a template",
                where=f"{template!r}, character {match.start() + 1}",
                next_step="write columns as {column}, and braces themselves as {{ and }}",
            )
    return (*pieces, (literal + template[end:], None))


def template_columns(template: str) -> list[str]:
    """The columns that a template names, in order, each once.

    Raises:
        UserError: the template is malformed.
    """
    return list(dict.fromkeys(column for _, column in _pieces(template) if column is not None))


def fill(
    template: str, record: Mapping[str, Any], *, texts: Collection[str] = (), blank_ok: bool, joined: bool = False
) -> str:
    """A template with a record's values: `{column}`, `{column.key}` into objects; objects and arrays become JSON.

    Between quotes, as in `"{tags}"`, and where they are labels (`joined`) the items of an array are joined by ", ".

    Raises:
        Refused: a column is missing, or (unless `blank_ok`) has no text.
    """
    filled = []
    for literal, column in _pieces(template):
        filled.append(literal)
        if column is not None:
            value = column_text(record, column, texts, joined=joined or literal.endswith('"'))
            if not blank_ok and (not value or value.isspace()):
                raise Refused("empty_output", f"column {column!r} is empty")
            filled.append(value)
    return "".join(filled)


def lookup(record: Mapping[str, Any], column: str) -> Any:
    """The value of `column`, or of a dotted path into objects; `ABSENT` where it is missing."""
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return ABSENT
        value = value[key]
    return value


def column_text(record: Mapping[str, Any], column: str, texts: Collection[str] = (), *, joined: bool = False) -> str:
    """The text of a column, or of a dotted path; objects and arrays as JSON.

    Args:
        texts: columns in which only strings are text.
        joined: the items of an array of plain values are joined by ", ".

    Raises:
        Refused: it is missing, or no text where nearly all others are.
    """
    value, where = lookup(record, column), f"column {column!r}"
    if value is ABSENT:
        raise Refused("missing_field", f"no {where}")
    if isinstance(value, dict | list) and column not in texts:
        if joined and isinstance(value, list) and not any(isinstance(item, dict | list) for item in value):
            return ", ".join(as_text(item, where) for item in value)
        return json_text(value, where)
    return as_text(value, where, strings_only=column in texts)
