"""Records of many shapes to conversations: which shape they have, and one file for each shape.

A `Format` recognises a sample of records and makes a conversation of each, or raises `Refused`. All share the checks in
`turns.ordered`: contents are strings, roles take turns, the last turn is an answer.
"""

from __future__ import annotations

from typing import Any

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import conversation, exchanges, preference, prompt_completion, text_label
from tuneloop.data.formats.answers import error_answer
from tuneloop.data.formats.detect import check_columns, detect, guess_from_info
from tuneloop.data.formats.draft import FORMATS, Draft, Format, Parsed, Rejection, add_format, checked_parser, filled
from tuneloop.data.formats.exchanges import with_whole_exchange
from tuneloop.data.formats.prompt_completion import template_columns
from tuneloop.data.formats.sample import TEXT_NAMES, FormatGuess
from tuneloop.data.formats.text_label import CLASSIFY, CLASSIFY_MANY, NO_LABELS
from tuneloop.data.formats.turns import ROLES, Refused, with_whole_contents
from tuneloop.data.sources.parse import json_type

__all__ = [
    "CLASSIFY", "CLASSIFY_MANY", "FORMATS", "NO_LABELS", "ROLES", "TEXT_NAMES", "Draft", "Format", "FormatGuess",
    "Parsed", "Refused", "Rejection", "add_format", "check_columns", "checked_parser", "detect", "error_answer",
    "filled", "guess_from_info", "parse_record", "template_columns", "with_whole_texts",
]  # fmt: skip
IN_TURNS = ("turns", "prompt", "completion", "chosen", "rejected", "answers")

for _format in (
    preference.FORMAT,
    exchanges.FORMAT,
    conversation.SHAREGPT,
    conversation.MESSAGES,
    prompt_completion.ALPACA,
    prompt_completion.PAIR,
    text_label.FORMAT,
    text_label.TEXT,
    prompt_completion.THUMBS,
    prompt_completion.FIELDS,
):
    FORMATS[_format.name] = _format


def parse_record(value: Any, guess: FormatGuess, config: PrepareConfig) -> Parsed | Rejection:
    """A record as a conversation in the OpenAI form, or why it can't be one. Total: no JSON value raises."""
    try:
        if not isinstance(value, dict):
            raise Refused("wrong_type", f"a record must be an object, not {json_type(value)}")
        return FORMATS[guess.name].parse(value, guess, config)
    except Refused as refused:
        return Rejection(refused.reason, refused.detail)
    except RecursionError:
        return Rejection("wrong_type", "nested too deeply")


def with_whole_texts(value: dict[str, Any], guess: FormatGuess) -> dict[str, Any]:
    """A record with the texts put together that are in pieces (streams, contents in parts), else the record itself. To
    be done before texts are looked at, since a value may be cut between two pieces. Total, as `parse_record` is.
    """
    columns = guess.columns
    try:
        if guess.name == "logs" and {"request", "response"} <= columns.keys():
            return with_whole_exchange(value, columns["request"], columns["response"])
        for role, column in columns.items():
            cell = value.get(column) if role in IN_TURNS else None
            turns = [cell] if type(cell) is dict else cell
            if type(turns) is list and (whole := with_whole_contents(turns, guess.keys.content)) is not turns:
                value = {**value, column: whole if turns is cell else whole[0]}
    except RecursionError:
        pass
    return value
