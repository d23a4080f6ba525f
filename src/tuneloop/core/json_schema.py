"""JSON Schemas that users and strangers write: what they may hold, and whether a value fulfils one, in bounded time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote

from tuneloop.core.bounded_work import WORK, known, then
from tuneloop.core.foreign import LIMITS, parse_json
from tuneloop.core.patterns import linear_problem, written_out

# The lengths and counts are those of OpenAI's structured outputs: 120,000 characters, 1,000 values in all enums.
_LIMITS = LIMITS["schema"]
MOST_CHARACTERS, MOST_VALUES, MOST_LEVELS, CHECK_SECONDS = _LIMITS.bytes, _LIMITS.nodes, _LIMITS.depth, _LIMITS.seconds
MOST_ENTRIES = 1_000  # of one object or list: properties, alternatives, values of an enum
LARGEST = 2**53  # numbers that all readers of JSON read alike (RFC 8259, section 6)
MOST_COUNT = 1_000_000  # of `minLength`, `maxItems` and the like
LARGEST_MULTIPLE = 10_000  # of `multipleOf`: an automaton has a state for each remainder
MOST_WRITTEN_OUT = 1_000  # atoms of all patterns
# Parts of a schema times values of a text, which are compared in 20 ns each where this process does it, and in 20 us
# where a breach is explained.
MOST_AT_ONCE, MOST_EXPLAINED = 1_000_000, 2_000
MOST_UNFOLDED = 100  # levels, references included

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}  # their keys are names
_LITERAL = {"enum", "const", "default", "examples", "example", "required", "type"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_HELD = {
    *_NAMED, *_COUNTS, *_IN_PLACE, "type", "enum", "const", "required", "additionalProperties", "items", "prefixItems",
    "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "$ref",
}  # fmt: skip
_FREE = {"$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems"}  # not bounded by a schema's size
_NOTES = {
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "nullable", "discriminator", "contentEncoding", "contentMediaType", "strict",
}  # fmt: skip


def schema_problem(schema: Mapping[str, Any], *, any_keyword: bool = False) -> str:
    """Why answers are not held to a schema: what is not supported, or larger than is allowed; empty where nothing is.

    It looks at each value once and stops at the first limit. The rest need not be a schema, or one that can be
    fulfilled.

    Args:
        any_keyword: only the size matters, and what patterns hold: answers are checked and not written by the schema.
    """
    values = characters = atoms = 0
    parts = []
    waiting: list[tuple[Any, int, str]] = [(schema, 1, "schema")]
    while waiting:
        value, level, kind = waiting.pop()
        values += 1
        if values > MOST_VALUES:
            return f"the schema has more than {MOST_VALUES:,} values"
        if level > MOST_LEVELS:
            return f"the schema is nested in more than {MOST_LEVELS} levels"
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            return f"a number in the schema is not within {LARGEST:,} of 0"
        elif isinstance(value, dict | list) and len(value) > MOST_ENTRIES:
            return f"an object or list of the schema has more than {MOST_ENTRIES:,} entries"
        if isinstance(value, list):
            waiting += [(part, level + 1, kind) for part in value]
        elif isinstance(value, dict):
            if kind == "schema":
                parts.append(value)
            for key, part in value.items():
                characters += len(key)
                if kind == "schema":
                    reason = "" if any_keyword else _keyword_problem(key, part, schema, level)
                    if reason := reason or _pattern_problem(key, part):
                        return reason
                    atoms += sum(map(written_out, _patterns(key, part)))
                below = "names" if key in _NAMED else "literal" if key in _LITERAL else "schema"
                waiting.append((part, level + 1, below if kind == "schema" else "schema" if kind == "names" else kind))
        if characters > MOST_CHARACTERS:
            return f"the schema has more than {MOST_CHARACTERS:,} characters"
        if atoms > MOST_WRITTEN_OUT:
            return f"the schema's patterns have more than {MOST_WRITTEN_OUT:,} parts with their repeats written out"
    return "" if any_keyword else _circle(schema, parts)


def _patterns(key: str, value: Any) -> list[str]:
    if key == "patternProperties" and isinstance(value, dict):
        return [name for name in value if len(name) <= MOST_CHARACTERS]
    return [value] if key == "pattern" and isinstance(value, str) and len(value) <= MOST_CHARACTERS else []


def _keyword_problem(key: str, value: Any, schema: Mapping[str, Any], level: int) -> str:
    if key not in _HELD and key not in _NOTES:
        return f"the keyword {key[:60]!r} is not supported"
    if key in ("$id", "$schema") and level > 1:
        return f"{key} is supported at the top only"
    if key == "type":
        for name in value if isinstance(value, list) else [value]:
            if name not in TYPES:
                return f"{str(name)[:60]!r} is no type of JSON"
    if key in _IN_PLACE and not isinstance(value, list):
        return f"{key} must be a list of schemas"
    if key in _NAMED and not isinstance(value, dict):
        return f"{key} must be an object"
    if key in _COUNTS and not (_is_number(value) and 0 <= value <= MOST_COUNT and value == int(value)):
        return f"{key} must be a whole number from 0 to {MOST_COUNT:,}"
    if key == "multipleOf" and not (_is_number(value) and 1e-6 <= value <= LARGEST_MULTIPLE):
        return f"multipleOf must be a number from 0.000001 to {LARGEST_MULTIPLE:,}"
    if key == "$ref" and not (isinstance(value, str) and _target(schema, value) is not None):
        return f"the reference {str(value)[:80]!r} leads nowhere in the schema; others are not followed"
    return ""


def _pattern_problem(key: str, value: Any) -> str:
    for pattern in _patterns(key, value):
        if written_out(pattern) > MOST_WRITTEN_OUT:
            return f"the pattern {pattern[:60]!r} has more than {MOST_WRITTEN_OUT:,} parts with its repeats written out"
        if reason := linear_problem(pattern):
            return reason
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    """What a reference within a schema leads to (a JSON pointer, RFC 6901); None: nothing, or it leads elsewhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    node: Any = schema
    for part in reference[2:].split("/") if len(reference) > 2 else ():
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and len(name) < 6 and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node if isinstance(node, dict | bool) else None


def _circle(schema: Mapping[str, Any], parts: list[Any]) -> str:
    """Why checking a value would never end: a part that refers to itself for the same value; empty where none does."""
    # Of each part that was entered, by identity: whether all that follows from it was searched.
    left: dict[int, bool] = {}
    for start in parts:
        waiting = [(start, False)]
        while waiting:
            part, leaving = waiting.pop()
            if leaving:
                left[id(part)] = True
            elif id(part) not in left:
                left[id(part)] = False
                follows = [child for key in _IN_PLACE for child in part.get(key, ()) if isinstance(child, dict)]
                target = _target(schema, part["$ref"]) if "$ref" in part else None
                follows += [target] if isinstance(target, dict) else []
                waiting += [(part, True), *((child, False) for child in follows)]
            elif not left[id(part)]:
                return "a part of the schema refers to itself without an object or list between"
    return ""


# --- whether a value fulfils a schema ---------------------------------------------------------------


def check_fit(schema: Mapping[str, Any], text: str) -> Future[str]:
    """How a JSON text breaks a schema, once it is known; empty: it does not. Nothing outside the schema is read.

    What is bounded by the schema's size is checked at once. A schema that refers to itself may take time that doubles
    with each level of a value: it is checked in a process that is ended after `CHECK_SECONDS`.

    Raises, from the future:
        ValueError: the text is no JSON, or the schema is none. TooMuchWork, TooBusy: it is not checked.
    """
    values, length = 1 + sum(map(text.count, ",:[{")), len(text)
    size, atoms = _unfolded(schema)
    if not size * values + atoms * length <= MOST_AT_ONCE:  # which may be no number
        payload = json.dumps([schema, text]).encode()
        return then(WORK.submit(fit_job, payload, seconds=CHECK_SECONDS), _fit_of)
    # What it raises comes from the future, as from the process.
    return then(known(text), lambda text: _breach(schema, text.result(), detail=size * values <= MOST_EXPLAINED))


def fit_job(payload: bytes) -> bytes:
    """In a process of `core.bounded_work`: how a text breaks a schema, of a list of both as JSON."""
    return _breach(*parse_json(payload), detail=False).encode()


def validator_of(schema: Mapping[str, Any]) -> Any:
    """What jsonschema-rs makes of a schema (`is_valid`, `validate`), by the draft that it names or 2020-12. References
    to other places are not followed, and patterns are searched in linear time. ValueError: it is no schema."""
    import jsonschema_rs

    try:
        return jsonschema_rs.validator_for(
            dict(schema), pattern_options=jsonschema_rs.RegexOptions(), offline=True, validate_formats=False
        )
    except jsonschema_rs.ValidationError as error:
        raise ValueError(str(error.message)[:160]) from None


def _breach(schema: Mapping[str, Any], text: str, *, detail: bool) -> str:
    validator, value = validator_of(schema), parse_json(text)
    if validator.is_valid(value):
        return ""
    if detail:  # which takes a thousand times as long
        try:
            validator.validate(value)
        except ValueError as error:
            return str(getattr(error, "message", error))[:160]
    return "it does not fit"


def _fit_of(reply: Future[bytes]) -> str:
    try:
        return reply.result().decode()
    except RuntimeError as error:  # what the job has raised, by its name
        raise ValueError(str(error).partition(": ")[2]) from None


def _unfolded(schema: Mapping[str, Any]) -> tuple[float, float]:
    """Parts of a schema, and atoms of its patterns, with all references written out; infinite: one leads back."""
    sizes: dict[int, tuple[float, float]] = {}

    def size_of(part: Any, level: int) -> tuple[float, float]:
        if not isinstance(part, dict | list):
            return 1, 0
        if id(part) not in sizes:
            sizes[id(part)] = math.inf, math.inf  # of a part that is met again within itself
            below = [(1.0, 0.0)]
            if level < MOST_UNFOLDED:
                for key, value in part.items() if isinstance(part, dict) else enumerate(part):
                    if key in _FREE or (key == "$id" and level):
                        below.append((math.inf, 0))
                    elif key == "$ref":
                        below.append(size_of(_target(schema, value), level + 1) if isinstance(value, str) else (1, 0))
                    elif key not in ("$defs", "definitions"):
                        below += [size_of(value, level + 1), (1, sum(map(written_out, _patterns(str(key), value))))]
                total, atoms = map(sum, zip(*below, strict=True))
                sizes[id(part)] = total, atoms
        return sizes[id(part)]

    return size_of(schema, 0)
