"""Calls of tools in the form of each family: what is written is read again, and what calls no tool stays a text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from places import DATA_SETS
from tuneloop.models.chat.tool_calls import CALL_FORMATS, CallFormat, format_for, may_be_calls, read_calls, write_calls

ARGUMENTS: list[dict[str, Any]] = [
    {"city": "Genève", "days": 3, "units": ["°C", None, True], "deep": {"x": 1.5, "y": "}"}},
    {"from": "USD", "to": 'E"U\nR'},
    {},
]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": {"to": {"type": "string"}}}}}
    for name in ("get_weather", "shop.order-2", "code_interpreter")
]
FORMS = pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)


@FORMS
def test_calls_are_read_as_they_were_written(form: CallFormat) -> None:
    name = "get_weather"
    for arguments in ARGUMENTS:
        for calls in ([(name, arguments)], [(name, arguments)] * 2):
            text = write_calls(calls, form)
            assert read_calls(text, TOOLS) == ("", calls), text
            if len(form.opening) > 1:
                assert read_calls(f"Let me look.\n{text}", TOOLS) == ("Let me look.", calls)


@FORMS
def test_a_call_of_no_tool_is_a_text(form: CallFormat) -> None:
    text = write_calls([("delete_all", {"city": "Bonn"})], form)
    if form.name != "llama 3.1":  # of Llama's python tag anything else is code
        assert read_calls(text, TOOLS) == (text, [])
    assert read_calls(text, []) == (text, [])


@FORMS
def test_calls_of_real_chats_are_read_as_they_were_written(form: CallFormat) -> None:
    file = DATA_SETS / "sharegpt_toolcall_demo" / "train.json"
    if not file.is_file():
        pytest.skip("the real chats are not here")
    count = 0
    for record in json.loads(file.read_text()):
        tools = [{"type": "function", "function": tool} for tool in json.loads(record["tools"] or "[]")]
        for turn in record["conversations"]:
            if turn["from"] == "function_call":
                call = json.loads(turn["value"])
                arguments = call["arguments"]
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                calls, count = [(call["name"], arguments)], count + 1
                assert read_calls(write_calls(calls, form), tools) == ("", calls), call
    assert count > 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type": "function", "name": "get_weather", "parameters": {"city": "Bonn"}}', {"city": "Bonn"}),  # Llama 3.1
        ('<|python_tag|>get_weather.call(city="Bonn")', {"city": "Bonn"}),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}', {"city": "Bonn"}),  # not closed
        ('[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bonn"}, "id": "123456789"}]', {"city": "Bonn"}),
        ('[TOOL_CALLS]get_weather[CALL_ID]abc123[ARGS]{"city": "Bonn"}', {"city": "Bonn"}),
        (' get_weather{"city": "Bonn"}', {"city": "Bonn"}),  # Mistral's, without its control tokens
        ("<function=get_weather>\n<parameter=city>\nBonn\n</parameter>\n</function>", {"city": "Bonn"}),
        ("<tool_call>\n<function=get_weather>\n<parameter=to>\n5\n</parameter>\n</function>", {"to": "5"}),
        ("<tool_call>\n<function=get_weather>\n<parameter=days>\n5\n</parameter>\n</function>", {"days": 5}),
        ('```tool_code\nget_weather(city="Bonn")\n```', {"city": "Bonn"}),
    ],
)
def test_what_models_write_is_read(text: str, expected: dict[str, Any]) -> None:
    assert read_calls(text, TOOLS) == ("", [("get_weather", expected)])


def test_code_behind_llamas_python_tag_is_a_call_of_the_interpreter() -> None:
    assert read_calls("<|python_tag|>print(1)", TOOLS) == ("", [("code_interpreter", {"code": "print(1)"})])
    assert read_calls("<|python_tag|>print(1)", TOOLS[:1])[1] == []


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{", "get_weather", "get_weather(", "[" * 100_000, "(" * 100_000, "<tool_call>", "<tool_call>{}",
     "[TOOL_CALLS]", '{"name": ["get_weather"]}', "<|python_tag|>", '[{"name": 1}]', "[get_weather(1)]", "[__import__('os')]"],
)  # fmt: skip
def test_whatever_is_no_call_stays_as_it_is(text: str) -> None:
    assert read_calls(text, TOOLS[:2]) == (text, [])


@FORMS
def test_no_part_of_a_call_is_given_out_as_a_text(form: CallFormat) -> None:
    text, names = write_calls([("get_weather", {"city": "Bonn"})], form), ["get_weather"]
    for end in range(1, len(text)):
        assert may_be_calls(text[:end], names, first=True) == 0, text[:end]
    said = "Let me look at it: "
    if len(form.opening) > 1:
        assert may_be_calls(said + text, names, first=False) == len(said)


def test_a_text_is_given_out_as_far_as_it_can_be_no_call() -> None:
    assert may_be_calls("I see", ["f"], first=True) == 5
    assert may_be_calls("a < b", ["f"], first=False) == 5 and may_be_calls("so <tool", ["f"], first=False) == 3


def test_a_family_without_tools_in_its_template_has_its_form() -> None:
    assert format_for("{{ '<start_of_turn>' }}").write("f", {"a": "b"}) == "f(a='b')"
    assert format_for("{{ messages }}").write("f", {"a": "b"}) == '{"name": "f", "arguments": {"a": "b"}}'
