"""Texts and JSON values that every file and database can hold."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """A text as UTF-8 and every database can hold it.

    Halves of surrogate pairs that belong together are joined; a lone one, which UTF-8 can't write, and the character of
    number 0, which Postgres refuses, become U+FFFD.
    """
    if "\0" not in text and (text.isascii() or not _SURROGATE.search(text)):
        return text
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return joined.replace("\0", "\ufffd")


def unstorable(value: Any) -> str:
    """Why a JSON value can't be stored, as the rest of a sentence; empty: it can.

    Refused are halves of surrogate pairs, whole numbers beyond 64 bits, and more than 254 levels of objects and lists.
    """
    try:
        orjson.dumps(value)
    except TypeError as error:
        reasons = {
            "surrogates": "holds half of a surrogate pair, as \\ud800, which is no character",
            "64-bit": "holds a whole number of more than 64 bits", "ecursion": "is nested too deeply",
        }  # fmt: skip
        return next((reason for word, reason in reasons.items() if word in str(error)), f"is not valid JSON: {error}")
    return ""


def json_bytes(value: Any) -> bytes:
    """A value as JSON; with half a surrogate pair in it, or a number of more than 64 bits, in ASCII."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=str).encode()


def json_value(data: bytes | str) -> Any:
    """What `json_bytes` wrote: orjson refuses an integer that is too large for a float."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return json.loads(data)
