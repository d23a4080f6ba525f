"""JSON Schemas that users and strangers write: what they may hold, and whether a value fulfils one, in bounded time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from tuneloop.core.patterns import linear_search, written_out

# The lengths and counts are those of OpenAI's structured outputs: 120,000 characters, 1,000 values in all enums.
MOST_CHARACTERS = 120_000
MOST_VALUES = 10_000  # objects, lists, texts and numbers
MOST_ENTRIES = 1_000  # of one object or list: properties, alternatives, values of an enum
MOST_LEVELS = 32
LARGEST = 2**53  # numbers that all readers of JSON read alike (RFC 8259, section 6)
MOST_COUNT = 1_000_000  # of `minLength`, `maxItems` and the like
LARGEST_MULTIPLE = 10_000  # of `multipleOf`: an automaton has a state for each remainder
MOST_WRITTEN_OUT = 1_000  # atoms of all patterns
MOST_DEPTH = 200  # levels of objects and lists in a JSON value of a client: deeper ones can't be written again
CHECK_SECONDS = 0.25  # of a processor, for one answer

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}  # their keys are names
_LITERAL = {"enum", "const", "default", "examples", "example", "required", "type"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_HELD = {
    *_NAMED, *_COUNTS, *_IN_PLACE, "type", "enum", "const", "required", "additionalProperties", "items", "prefixItems",
    "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "$ref",
}  # fmt: skip
_NOTES = {
    "$schema", "$id", "$comment", "title", "description", "default", "examples", "example", "deprecated", "readOnly",
    "writeOnly", "nullable", "discriminator", "contentEncoding", "contentMediaType", "strict",
}  # fmt: skip


def too_deep(raw: bytes, value: Any) -> bool:
    """Whether objects and lists are nested in more than `MOST_DEPTH` levels, in a JSON value and its text.

    It goes down level by level, so that nothing is too deep for it.
    """
    if raw.count(b"{") + raw.count(b"[") <= MOST_DEPTH:
        return False
    level = [value]
    for _ in range(MOST_DEPTH):
        parts = (part for each in level for part in (each.values() if isinstance(each, dict) else each))
        level = [part for part in parts if isinstance(part, dict | list)]
    return bool(level)


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
                    why = "" if any_keyword else _keyword_problem(key, part, schema, level)
                    if why := why or _pattern_problem(key, part):
                        return why
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
        try:
            linear_search(pattern)
        except ValueError as error:
            return str(error)
    return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    """What a reference within a schema leads to (a JSON pointer, RFC 6901); None: nothing, or it leads elsewhere."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    place: Any = schema
    for part in reference[2:].split("/") if len(reference) > 2 else ():
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(name)
        elif isinstance(place, list) and name.isdecimal() and len(name) < 6 and int(name) < len(place):
            place = place[int(name)]
        else:
            return None
    return place if isinstance(place, dict | bool) else None


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
                follows = [each for key in _IN_PLACE for each in part.get(key, ()) if isinstance(each, dict)]
                target = _target(schema, part["$ref"]) if "$ref" in part else None
                follows += [target] if isinstance(target, dict) else []
                waiting += [(part, True), *((each, False) for each in follows)]
            elif not left[id(part)]:
                return "a part of the schema refers to itself without an object or list between"
    return ""


class TooMuchWork(Exception):
    """Checking a value takes too long."""


def checker(schema: Mapping[str, Any], base: Any = None, seconds: float = CHECK_SECONDS) -> Callable[[Any], str]:
    """The function that says how a value breaks a schema; empty where it does not. Nothing outside the schema is read.

    It raises TooMuchWork where it takes longer, or a text is too long for a pattern, and jsonschema's errors where the
    schema is none.

    Args:
        base: validator class of jsonschema, which says how keywords are read; None: that of JSON Schema 2020-12.
        seconds: of a processor that the check of a value may take.
    """
    from jsonschema import Draft202012Validator, ValidationError, validators
    from referencing.jsonschema import EMPTY_REGISTRY

    base = base or Draft202012Validator
    until = 0.0

    def keywords(part: Mapping[str, Any]) -> Any:
        if time.thread_time() > until:
            raise TooMuchWork(f"the check takes more than {seconds:g} s")
        return part.items()

    bounded = {"pattern": _pattern, "patternProperties": _pattern_properties, "uniqueItems": _unique}
    if "patternProperties" in base.VALIDATORS:
        bounded["additionalProperties"] = _additional
    parts = {"validators": base.VALIDATORS | bounded, "applicable_validators": keywords}
    made: Any = validators.create(base.META_SCHEMA, type_checker=base.TYPE_CHECKER, id_of=base.ID_OF, **parts)
    top = {key: part for key, part in schema.items() if key != "$schema"}  # it would bring the usual class back

    def breach(value: Any) -> str:
        nonlocal until
        until = time.thread_time() + seconds
        try:
            made(top, registry=EMPTY_REGISTRY).validate(value)
        except ValidationError as error:
            return str(error.message[:160])
        return ""

    return breach


def _matches(pattern: str, text: str) -> bool:
    try:
        return linear_search(pattern)(text)
    except ValueError as error:
        raise TooMuchWork(str(error)) from None


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if validator.is_type(value, "string") and not _matches(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: Any, schema: Any) -> Iterator[Any]:
    for name, part in value.items() if validator.is_type(value, "object") else ():
        for pattern, below in patterns.items():
            if _matches(pattern, name):
                yield from validator.descend(part, below, path=name, schema_path=pattern)


def _additional(validator: Any, below: Any, value: Any, schema: Any) -> Iterator[Any]:
    for name, part in value.items() if validator.is_type(value, "object") else ():
        patterns = schema.get("patternProperties", ())
        if name not in schema.get("properties", ()) and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(part, below, path=name)


def _unique(validator: Any, unique: Any, value: Any, schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if unique and validator.is_type(value, "array"):
        texts = {json.dumps(_as_compared(part), sort_keys=True) for part in value}
        if len(texts) < len(value):
            yield ValidationError("the items of a list are not all different")


def _as_compared(value: Any) -> Any:
    """A value with numbers that are equal written alike: 1.0 as 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _as_compared(part) for key, part in value.items()}
    return [_as_compared(part) for part in value] if isinstance(value, list) else value
