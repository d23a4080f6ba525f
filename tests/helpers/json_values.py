"""Values for tests of an API: random ones of a JSON Schema, and samples of what types can express."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import typing_extensions
from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=4)
ANYTHING = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=2)


def values_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema of an OpenAPI document `root`, as pydantic writes them."""
    if "$ref" in schema:
        return values_of(root["components"]["schemas"][schema["$ref"].rpartition("/")[2]], root)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    if "properties" not in schema and (alternatives := schema.get("anyOf") or schema.get("oneOf")):
        return st.one_of([values_of(alternative, root) for alternative in alternatives])
    kind = schema.get("type")
    if kind == "object":
        fields = {name: values_of(part, root) for name, part in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", ())}
        if not fields and not required:
            further = schema.get("additionalProperties", True)
            held = ANYTHING if further is True else values_of(further, root)
            return st.dictionaries(st.text(max_size=5), held, max_size=min(3, schema.get("maxProperties", 3)))
        return st.fixed_dictionaries(required, optional=fields)
    if kind == "array":
        most = min(schema.get("maxItems", 3), 3)
        return st.lists(values_of(schema.get("items", {}), root), min_size=schema.get("minItems", 0), max_size=most)
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True).filter(lambda text: len(text) < 200)
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 9), 9))
    if kind == "integer":
        most = schema.get("maximum", schema.get("exclusiveMaximum", 1 << 40) - 1)
        return st.integers(schema.get("minimum", -(1 << 40)), most)
    if kind == "number":
        least = schema.get("minimum", schema.get("exclusiveMinimum", -1e9))
        return st.floats(least, schema.get("maximum", 1e9), exclude_min="exclusiveMinimum" in schema)
    return {"boolean": st.booleans(), "null": st.none()}.get(str(kind), ANYTHING)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value within a JSON value."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def samples(kind: Any, depth: int = 0) -> list[Any]:
    """Some values of a type as the official client declares it, of each alternative at least one."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing_extensions.Required, typing_extensions.NotRequired, typing.Annotated):
        return samples(arguments[0], depth)
    if origin is typing.Literal:
        return list(arguments)
    if origin in (typing.Union, types.UnionType):
        return [value for argument in arguments for value in samples(argument, depth)]
    if typing_extensions.is_typeddict(kind):
        return _objects(kind, depth)
    if origin in (dict, Mapping) or "Mapping" in str(origin):
        return [{}, {"a": samples(arguments[1], depth + 1)[0]}]
    if origin in (list, tuple) or "Iterable" in str(origin) or "Sequence" in str(origin):
        return [[value] for value in samples(arguments[0], depth)]
    plain: dict[Any, list[Any]] = {str: ["a"], int: [1], float: [0.5, 1], bool: [True, False], type(None): [None]}
    return plain.get(kind, [{"type": "object"}])


def _objects(kind: Any, depth: int) -> list[dict[str, Any]]:
    """The smallest of them, and one further for each sample of each of its fields."""
    fields = typing_extensions.get_type_hints(kind, include_extras=True)
    required = kind.__required_keys__
    least = {name: samples(fields[name], depth + 1)[0] for name in fields if name in required}
    if depth > 5:
        return [least]
    return [least, *({**least, name: value} for name in fields for value in samples(fields[name], depth + 1))]
