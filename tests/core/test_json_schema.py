"""Schemas of strangers are refused or read in bounded time, and nothing outside of them is."""

from __future__ import annotations

import contextlib
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patience import HANG, slowness
from tuneloop.core import json_schema
from tuneloop.core.bounded_work import WORK, TooMuchWork, charged_to
from tuneloop.core.json_schema import check_fit, schema_problem


def breach_of(schema: Any, value: Any) -> str:
    return check_fit(schema, json.dumps(value)).result(HANG)


NODES = {"$defs": {"n": {"anyOf": [{"type": "string"}, *[{"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}}] * 2]}}, "$ref": "#/$defs/n"}  # fmt: skip
LINKED = {
    "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}},
    "$ref": "#/$defs/d0",
}
DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"items": DEEP}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"enum": [f"v{i}" for i in range(300_000)]}, "more than 1,000 entries"),
    ({"anyOf": [{"const": i} for i in range(1_001)]}, "more than 1,000 entries"),
    ({"anyOf": [{"enum": list(range(900))} for _ in range(20)]}, "more than 10,000 values"),
    ({"properties": {f"p{i}": {} for i in range(5_000)}}, "more than 1,000 entries"),
    ({"const": "a" * 200_000}, "120,000 characters"),
    (DEEP, "32 levels"),
    ({"pattern": "^a{1000000}$"}, "1,000 parts"),
    ({"pattern": "((a{40}){40}){40}"}, "1,000 parts"),
    ({"properties": {f"p{i}": {"pattern": "^a{300}$"} for i in range(9)}}, "1,000 parts"),
    ({"patternProperties": {"(a{99}){99}": {}}}, "1,000 parts"),
    ({"pattern": "(?=a)b"}, "look-ahead"),
    ({"pattern": r"(a)\1"}, "backreferences"),
    ({"maxLength": 10**400}, "maxLength"),
    ({"minItems": float("inf")}, "minItems"),
    ({"minItems": -1}, "minItems"),
    ({"maxLength": 10**7}, "maxLength"),
    ({"maximum": 1e300}, "a number"),
    ({"const": float("nan")}, "a number"),
    ({"enum": [10**4000]}, "a number"),
    ({"multipleOf": 123_456_789}, "multipleOf"),
    ({"multipleOf": 1e-300}, "multipleOf"),
    ({"$ref": "http://127.0.0.1:9/x"}, "others are not followed"),
    ({"$ref": "file:///etc/passwd"}, "others are not followed"),
    ({"$ref": "#/$defs/x"}, "leads nowhere"),
    ({"$ref": 5}, "leads nowhere"),
    ({"$ref": "#"}, "refers to itself"),
    ({"$defs": {"a": {"anyOf": [{}, {"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}, "refers to itself"),
    ({"properties": {"a": {"$id": "http://x/"}}}, "$id is supported at the top"),
    ({"items": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "$schema is supported at the top"),
    ({"type": "nonsense"}, "nonsense"),
    ({"type": [["string"]]}, "no type"),
    ({"anyOf": {"type": "string"}}, "must be a list"),
    ({"properties": [1]}, "must be an object"),
    *[({name: {}}, repr(name)) for name in ("not", "if", "then", "contains", "dependentSchemas", "propertyNames", "unevaluatedProperties",
        "$dynamicRef", "$recursiveRef", "$anchor", "x-guidance", "uniqueItems", "dependencies", "minlength")],
]  # fmt: skip


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=[said + str(i) for i, (_, said) in enumerate(REFUSED)])
def test_what_is_not_supported_or_too_large_is_refused_at_once(schema: dict[str, Any], said: str) -> None:
    began = time.process_time()
    assert said in schema_problem(schema)
    assert time.process_time() - began < 0.3 * slowness()
    nested = {"type": "object", "properties": {"x": {"anyOf": [{"type": "null"}, schema]}}}
    assert schema_problem(nested) or schema == {"$ref": "#"}, "and so it is within another schema"


def test_usual_schemas_are_accepted_and_names_are_no_keywords() -> None:
    from pydantic import BaseModel, Field

    class Line(BaseModel):
        code: str = Field(pattern=r"^[A-Z]{2}-\d{4,8}$", max_length=50_000)
        parts: list[Line] = []

    class Order(BaseModel):
        not_: bool = Field(alias="not")
        lines: dict[str, Line] | None = Field(None, description="of the order", examples=[{"not": 1}])

    assert schema_problem(Order.model_json_schema()) == ""
    assert schema_problem({"properties": {"if": {"type": "string"}, "$ref": {}, "pattern": {"const": "("}}}) == ""


def test_a_value_is_checked_as_the_standard_says() -> None:
    schema = {"patternProperties": {"^a": {"type": "integer"}}, "properties": {"b": {}}, "additionalProperties": False}
    assert not breach_of(schema, {"ab": 1, "b": "x"}) and breach_of(schema, {"ab": "x"}) and breach_of(schema, {"c": 1})
    assert not breach_of({"pattern": "b"}, "abc") and not breach_of({"pattern": "b"}, 5)
    assert "does not match" in breach_of({"pattern": "^b"}, "abc")
    assert breach_of({"uniqueItems": True}, [1, {"a": 1}, {"a": 1.0}]) and not breach_of(
        {"uniqueItems": True}, [1, True, "1"]
    )


def test_what_is_bounded_by_its_schema_is_checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORK, "submit", None)
    tree = {"$defs": {"leaf": {"pattern": "^((a+)+b|a*)$"}, "pair": {"items": {"$ref": "#/$defs/leaf"}}}}
    pairs = {**tree, "allOf": [{"$ref": "#/$defs/pair"}, {"properties": {"pair": {"$ref": "#/$defs/pair"}}}]}
    assert breach_of(pairs, {"pair": ["a" * 44, "a" * 44 + "!"]}) and not breach_of(pairs, ["a" * 400] * 9)
    assert not breach_of({"uniqueItems": True}, [{"a": i} if i % 2 else i for i in range(30_000)])


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (LINKED, 1),
        (NODES, json.loads('{"a":' * 60 + "5" + "}" * 60)),
        ({"$schema": "http://json-schema.org/draft-07/schema#", **NODES}, json.loads('{"a":' * 60 + "5" + "}" * 60)),
        ({"$ref": "#"}, 1),
        ({"$dynamicRef": "#"}, 1),
        ({"items": {"anyOf": [{"const": i} for i in range(1000)]}}, [-1] * 1000),
        ({"items": {"pattern": "(a{20}b){40}"}}, ["a" * 100_000] * 100),
        ({"$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(900)}, "$ref": "#/$defs/d0"}, 1),
    ],
)
def test_other_checks_are_done_where_they_can_be_ended(
    schema: dict[str, Any], value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_schema, "_breach", None)
    with contextlib.suppress(TooMuchWork, ValueError):
        breach_of(schema, value)
    assert not breach_of({"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}, [[], [[]]])


def test_a_check_that_does_not_end_is_ended() -> None:
    either = [{"required": [f"r{i}"], "properties": {"a": {"$ref": "#/$defs/n"}}} for i in range(3)]
    several = [{"properties": {"a": {"anyOf": [{"$ref": "#/$defs/n"}, {"title": str(i)}]}}} for i in range(3)]
    schema = {"$defs": {"n": {"oneOf": [*either, *several, {"type": "string"}]}}, "$ref": "#/$defs/n"}
    token = charged_to.set("hostile")
    with contextlib.suppress(TooMuchWork):
        breach_of(schema, json.loads('{"a":' * 150 + "5" + "}" * 150))
    charged_to.reset(token)
    assert breach_of(NODES, {"a": {"a": 5}}) == "it does not fit"


def test_nothing_is_fetched() -> None:
    asked: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        path = f"http://127.0.0.1:{server.server_port}/s.json"
        for schema in ({"$ref": path}, {"$id": path, "$ref": "other.json"}, {"$dynamicRef": f"{path}#a"}):
            with pytest.raises(Exception, match="etriev"):
                breach_of(schema, 5)
        server.shutdown()
    assert not asked


WORDS = ["$ref", "allOf", "anyOf", "oneOf", "not", "items", "prefixItems", "properties", "patternProperties", "additionalProperties",
         "$defs", "enum", "const", "pattern", "minLength", "maxItems", "multipleOf", "type", "required", "format", "if", "x"]  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["#", "#/$defs/x", "#/properties/x", "#/allOf/0", "string", "(a+)+$", "a{999}", "(", "http://x/", 10**400, 1e308]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(st.sampled_from(WORDS), below, max_size=5)),
    max_leaves=40,
)


@given(st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=5), VALUES)
def test_no_schema_takes_long_or_fails_otherwise(schema: dict[str, Any], value: Any) -> None:
    began = time.process_time()
    assert isinstance(schema_problem(schema), str)
    assert time.process_time() - began < 1 * slowness()
    if not schema_problem(schema):
        try:
            breach_of(schema, value)
        except Exception as error:  # what looks like a schema and is none; how it shows differs
            assert not isinstance(error, RecursionError)
    assert time.process_time() - began < 2 * slowness()
