"""The models of the API: what the OpenAPI document says is what the server takes, for random bodies and the official
client's types."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from json_values import ANYTHING, places, samples, values_of
from live_server import live
from openai.types import batch_create_params, completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from tuneloop.core.errors import UserError
from tuneloop.inference.openai.api import body_of
from tuneloop.inference.request import Request, Sampling
from tuneloop.records.feedback import feedback_of
from tuneloop.serving.batch.api import Batches
from tuneloop.serving.http import api_request as read
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.http.app import routes_of
from tuneloop.serving.http.contract import OPERATIONS, document

DOCUMENT = document(most_choices=16)
BODIES = {
    operation.path: operation.body
    for operation in OPERATIONS
    if operation.body is not None and operation.media == "application/json"
}
TURNS: list[dict[str, Any]] = [{"role": "user", "content": "Where is my parcel?"}]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"kind": {"type": "string"}}}


@cache
def checker(path: str) -> Any:
    """What a program has that reads the document."""
    reference = {"$ref": f"#/components/schemas/{BODIES[path].__name__}"}
    return jsonschema.Draft202012Validator({**reference, "components": DOCUMENT["components"]})


def server_takes(path: str, body: Any) -> bool:
    try:
        read.parsed(BODIES[path], body)
        if path == "/v1/feedback" and not checker(path).is_valid(body):  # names are checked with their values
            feedback_of(body, new_id="id", now="2026-12-02T00:00:00Z")
    except ApiError as error:
        assert error.status == 400 and error.message.isprintable(), error.body()
        return False
    except UserError:
        return False
    return True


def agree(path: str, body: Any) -> bool:
    """Whether both accept a body."""
    said = checker(path).is_valid(body)
    assert server_takes(path, body) is said, (path, body, [e.message for e in checker(path).iter_errors(body)])
    return bool(said)


def test_the_document_is_valid_openapi() -> None:
    pytest.importorskip("openapi_spec_validator").validate(DOCUMENT)
    assert document(batches=False)["paths"].keys() < DOCUMENT["paths"].keys()
    assert DOCUMENT["components"]["schemas"]["ChatBody"]["properties"]["n"]["anyOf"][0]["maximum"] == 16


def test_the_routes_of_a_server_are_those_of_the_document(tmp_path: Any) -> None:
    with live(tmp_path) as (_, gateway):
        routes = [*routes_of(gateway), *Batches(gateway, tmp_path / "batch").routes()]
    served = {(method, route.path.replace(":path", "")) for route in routes for method in route.methods}
    assert {(method, path) for method, path in served if method != "HEAD"} - {("GET", "/")} == {
        (operation.method.upper(), operation.path) for operation in OPERATIONS
    }


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
def test_random_bodies_of_the_document_are_taken_and_changed_ones_as_it_says(path: str, data: Any) -> None:
    body = data.draw(values_of(DOCUMENT["components"]["schemas"][BODIES[path].__name__], DOCUMENT))
    assume(checker(path).is_valid(body))
    assert server_takes(path, body)
    changed = copy.deepcopy(body)
    *way, last = data.draw(st.sampled_from(list(places(changed)))) if changed else ("unknown",)
    holder = changed
    for step in way:
        holder = holder[step]
    if data.draw(st.booleans()) and isinstance(holder, dict):
        holder.pop(last, None)
    else:
        holder[last] = data.draw(ANYTHING)
    agree(path, changed)
    strange = agree(path, {**body, "tempature": 1})
    assert strange is (path in ("/tokenize", "/v1/batches"))


@pytest.mark.parametrize("prompt", [[0.0, 7], [[7, 1.0], "x"], [0.5, 7], [True, 7], ["1", 7], [-1.0, 7], [2.0**31, 7]])
def test_token_ids_are_whole_numbers_as_the_document_reads_them(prompt: Any) -> None:
    taken = agree("/v1/completions", {"prompt": prompt})
    assert taken is (prompt[0] in (0.0, [7, 1.0]))


@pytest.mark.parametrize("dimensions", [0, 0.0, 0.5, 384, False])
def test_no_dimensions_are_a_whole_number_of_none(dimensions: Any) -> None:
    taken = agree("/v1/embeddings", {"input": "a", "dimensions": dimensions})
    assert taken is (dimensions == 0 and dimensions is not False)


@pytest.mark.parametrize("name", ["kind", "source"])
def test_an_empty_source_is_none_and_an_empty_kind_is_refused(name: str) -> None:
    assert agree("/v1/feedback", {"request": "r", "kind": "thumbs", "value": True, name: ""}) is (name == "source")


OFFICIAL = {
    "/v1/chat/completions": (chat_params.CompletionCreateParamsNonStreaming, {"model": "a", "messages": TURNS}),
    "/v1/completions": (completion_create_params.CompletionCreateParamsNonStreaming, {"model": "a", "prompt": "x"}),
    "/v1/responses": (response_create_params.ResponseCreateParamsNonStreaming, {"model": "a", "input": "x"}),
    "/v1/batches": (batch_create_params.BatchCreateParams, {"input_file_id": "a", "endpoint": "/v1/completions"}),
}


@pytest.mark.parametrize("path", OFFICIAL)
def test_of_all_that_the_official_client_can_send_the_document_says_what_is_taken(path: str) -> None:
    kind, least = OFFICIAL[path]
    bodies = [{**least, **body} for body in samples(kind)]
    taken = {agree(path, body) for body in bodies}
    assert len(bodies) > 6 and taken == {True, False}


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "k", "strict": True, "schema": SCHEMA}}},
        {"messages": [*TURNS, {"role": "assistant", "content": None}, *TURNS]},
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        {"max_tokens": 5.0, "seed": None, "stop": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}]},
    ],
)
def test_what_the_server_takes_stands_in_the_document(more: dict[str, Any]) -> None:
    body = {"messages": TURNS, **more}
    assert agree("/v1/chat/completions", body)
    assert read.read_chat(body, 16).messages[0]["content"] is not None


def test_what_this_project_sends_to_servers_is_taken() -> None:
    request = Request(TURNS, tools=[TOOL], sampling=Sampling(0.5, 0.9, 1, 5, 0.1, 1.1), stop=("a",))  # type: ignore[arg-type]
    assert agree("/v1/chat/completions", body_of(request, "tickets"))


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/chat/completions", {"messages": TURNS, "temperature": "hot"}, "temperature"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role"),
        ("/v1/chat/completions", {"messages": [*TURNS, {"role": "user"}]}, "messages[1].content"),
        ("/v1/chat/completions", {"messages": TURNS, "tools": [{"type": "function"}]}, "tools[0].function"),
        ("/v1/chat/completions", {"messages": TURNS, "functions": [TOOL]}, "functions"),
        ("/v1/completions", {"prompt": [[1], []]}, "prompt[1]"),
        ("/v1/responses", {"input": [{"type": "image_generation_call"}]}, "input[0].type"),
        ("/v1/batches", {"endpoint": "/v1/x", "input_file_id": "a"}, "endpoint"),
    ],
)
def test_a_refusal_names_the_field_that_is_at_fault(path: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read.parsed(BODIES[path], body)
    assert refused.value.param == param and refused.value.message.startswith(param)
