"""Conversations of ShareGPT and OpenAI."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import (
    ANTHROPIC,
    ANY,
    ASK,
    CHUNKS,
    OLLAMA,
    REQUEST,
    RESPONSE,
    RESPONSES_API,
    SAMPLES,
    SAY,
    conversation,
    parse,
    reason,
    turns,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats import Parsed, detect, parse_record, with_whole_texts

PIECES = st.lists(st.sampled_from([*CHUNKS, *OLLAMA, *ANTHROPIC, *RESPONSES_API, 5, "x"]), max_size=6)
STREAM = (
    PIECES | PIECES.map(json.dumps) | PIECES.map(lambda pieces: "\n".join(f"data: {json.dumps(p)}" for p in pieces))
)


WRAPPED = STREAM | STREAM.map(lambda pieces: {"body": pieces}) | STREAM.map(lambda pieces: {"message": pieces})


def test_sharegpt_calls_become_tool_calls_tied_to_their_answers() -> None:
    call = json.dumps({"name": "find", "arguments": {"q": "ü"}})
    tools = json.dumps([{"name": "find", "parameters": {}}])
    parsed = parse(
        conversation(("human", "a"), ("function_call", call), ("observation", "{}"), ("gpt", "b"), tools=tools)
    )
    assert isinstance(parsed, Parsed)
    assert parsed.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "find", "arguments": '{"q": "ü"}'}}],
    }
    assert parsed.messages[2] == {"role": "tool", "content": "{}", "tool_call_id": "call_0", "name": "find"}
    assert parsed.tools == [{"type": "function", "function": {"name": "find", "parameters": {}}}]


def test_calls_in_a_row_are_one_turn_and_answers_go_to_them_in_order() -> None:
    calls = [("function_call", json.dumps({"name": n, "arguments": {}})) for n in ("f", "g")]
    parsed = parse(conversation(("human", "a"), *calls, ("observation", "1"), ("observation", "2"), ("gpt", "b")))
    assert isinstance(parsed, Parsed)
    assert [c["id"] for c in parsed.messages[1]["tool_calls"]] == ["call_0", "call_1"]
    assert [(m["name"], m["tool_call_id"]) for m in parsed.messages[2:4]] == [("f", "call_0"), ("g", "call_1")]


def test_turns_of_one_role_in_a_row_are_merged_on_record() -> None:
    parsed = parse(conversation(("human", "a"), ("human", "b"), ("gpt", "c"), ("gpt", "d")))
    assert turns(parsed) == [("user", "a\nb"), ("assistant", "c\nd")]
    assert isinstance(parsed, Parsed) and [r["kind"] for r in parsed.repairs] == ["merged_turns"] * 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (conversation(("human", "a")), "no_answer"),
        (conversation(("human", "a"), ("gpt", "b"), ("human", "c")), "no_answer"),
        (conversation(("human", "a"), ("function_call", "{"), ("gpt", "b")), "broken_json"),
        (conversation(("human", "a"), ("function_call", "[1]"), ("gpt", "b")), "wrong_type"),
        (conversation(("human", "a"), ("function_call", "{}"), ("gpt", "b")), "missing_field"),
        (conversation(("human", "a"), ("narrator", "x"), ("gpt", "b")), "unknown_role"),
        (conversation(("human", ""), ("gpt", "b")), "empty_input"),
        (conversation(("human", "a"), ("gpt", " ")), "empty_output"),
        (conversation(("gpt", "b"), ("gpt", "b")), "empty_input"),
        (conversation(("human", "a"), ("gpt", [{"type": "image_url"}])), "wrong_type"),
        (conversation(("human", "a"), ("gpt", {"content_type": "text", "parts": ["b"]})), "wrong_type"),
        (conversation(("human", {"x": 1}), ("gpt", "b")), "wrong_type"),
        (conversation(("human", "a"), ("gpt", "b"), tools="[{"), "broken_json"),
        (conversation(("human", "a"), ("gpt", "b"), tools=[1]), "wrong_type"),
        ({"conversations": [{"from": "human"}]}, "missing_field"),
        ({"conversations": []}, "wrong_type"),
        (
            conversation(
                ("human", "a"), ("function_call", '{"name": "", "arguments": {}}'), ("observation", "x"), ("gpt", "b")
            ),
            "missing_field",
        ),
        # an empty answer says more than the call without a name before it
        (
            conversation(
                ("human", "a"), ("function_call", '{"name": "", "arguments": {}}'), ("observation", "x"), ("gpt", " ")
            ),
            "empty_output",
        ),
        ({"conversations": ["x", {"from": "gpt", "value": "b"}]}, "wrong_type"),
    ],
)
def test_conversations_that_teach_nothing_are_rejected(record: dict[str, Any], expected: str) -> None:
    config = PrepareConfig(format="sharegpt")
    guess = detect([conversation(("human", "a"), ("gpt", "b"))], config)
    assert reason(parse_record(record, guess, config)) == expected


def test_openai_turns_with_null_contents_parts_and_the_old_function_call() -> None:
    record = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": {"x": 1}}},
            {"role": "function", "name": "f", "content": {"y": 2}},
            {"role": "assistant", "content": "c", "weight": 0},
            {"role": "user", "content": "d"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "k", "type": "function", "function": {"name": "g", "arguments": "{}"}}],
            },
        ]
    }
    parsed = parse(record)
    assert turns(parsed) == [
        ("system", "s"),
        ("user", "ab"),
        ("assistant", ""),
        ("tool", '{"y": 2}'),
        ("assistant", "c"),
        ("user", "d"),
        ("assistant", ""),
    ]
    assert isinstance(parsed, Parsed)
    assert parsed.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert parsed.messages[3]["tool_call_id"] == "call_0" and parsed.messages[4]["weight"] == 0
    assert parsed.messages[6]["tool_calls"][0]["id"] == "k"


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}, "wrong_type"),
        ({"role": "assistant"}, "missing_field"),
        ({"content": "x"}, "missing_field"),
        ({"role": 3, "content": "x"}, "unknown_role"),
        ({"role": "assistant", "content": None}, "empty_output"),
        ({"role": "assistant", "content": "x", "tool_calls": "y"}, "wrong_type"),
        ({"role": "user", "content": "x", "tool_calls": [{}]}, "wrong_type"),
    ],
)
def test_openai_turns_with_a_fault_reject_the_record(turn: dict[str, Any], expected: str) -> None:
    assert reason(parse({"messages": [{"role": "user", "content": "a"}, turn]})) == expected


def test_the_instruction_goes_only_where_there_is_no_system_turn() -> None:
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    own = [{"role": "system", "content": "own"}, *pair]
    blank = [{"role": "system", "content": " "}, *pair]
    assert turns(parse({"messages": pair}, instruction="I"))[0] == ("system", "I")
    assert turns(parse({"messages": own}, instruction="I"))[:2] == [("system", "own"), ("user", "a")]
    parsed = parse({"messages": blank}, instruction="I")
    assert (
        turns(parsed)[0] == ("system", "I")
        and isinstance(parsed, Parsed)
        and parsed.repairs[0]["kind"] == "dropped_turn"
    )


@settings(max_examples=300, deadline=None)
@given(response=WRAPPED | ANY, request=ANY | st.just(REQUEST))
def test_pieces_put_together_beforehand_make_the_same_row(response: Any, request: Any) -> None:
    record = {"request": request, "response": response}
    guess = detect(SAMPLES["logs"], PrepareConfig())
    before = repr(record)
    whole = with_whole_texts(record, guess)
    assert repr(record) == before and with_whole_texts(whole, guess) == whole
    assert parse_record(whole, guess, PrepareConfig()) == parse_record(record, guess, PrepareConfig())


def test_contents_in_parts_are_put_together_beforehand() -> None:
    def parts(*texts: str) -> list[Any]:
        return [{"type": "text", "text": text} for text in texts]

    question, answer = ({"role": r, "content": parts("so ", r)} for r in ("user", "assistant"))
    for record in (
        {"messages": [question, answer]},
        {"prompt": [question], "completion": [answer]},
        {"request": {"body": {"messages": [question]}}, "response": RESPONSE},
    ):
        guess = detect([record], PrepareConfig())
        assert "type" not in str(with_whole_texts(record, guess)) and "so user" in str(with_whole_texts(record, guess))
    picture = {"messages": [{"role": "user", "content": [*parts("a"), {"type": "image_url", "image_url": {}}]}, answer]}
    assert (
        with_whole_texts(picture, detect([{"messages": [ASK, SAY]}], PrepareConfig()))["messages"][0]
        == picture["messages"][0]
    )
