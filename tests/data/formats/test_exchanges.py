"""Logs of requests and responses, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import (
    ANTHROPIC,
    ASK,
    CHUNKS,
    OLLAMA,
    REQUEST,
    RESPONSE,
    RESPONSES_API,
    SAY,
    chunk,
    parse,
    reason,
    turns,
)

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import Parsed, Rejection, detect

SSE = "".join(f"data: {json.dumps(c)}\n\n" for c in CHUNKS) + "data: [DONE]\n\n"


def events(pieces: list[dict[str, Any]]) -> str:
    return "".join(f"event: {piece['type']}\ndata: {json.dumps(piece)}\n\n" for piece in pieces)


@pytest.mark.parametrize(
    "record",
    [
        {"request": REQUEST, "response": RESPONSE},
        {"request": {"body": REQUEST}, "response": {"status_code": 200, "body": RESPONSE}, "error": None},
        {"custom_id": "x", "body": REQUEST, "response": {"status_code": 200, "body": RESPONSE}},
        {"request": json.dumps(REQUEST), "response": json.dumps(RESPONSE)},
        {"messages": REQUEST["messages"], "response": "b"},
        {"messages": REQUEST["messages"], "choices": RESPONSE["choices"]},
        {"input": REQUEST, "output": SAY},
        {"input": {"instructions": "s", "input": "a", "model": "m"}, "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        ]},
        {"request": REQUEST, "response": {"message": SAY, "done": True, "done_reason": "stop"}},
        {"request": {"system": "s", "messages": [ASK], "model": "m"},
         "response": {"role": "assistant", "content": [{"type": "text", "text": "b"}], "stop_reason": "end_turn"}},
        {"request": REQUEST, "response": CHUNKS},
        {"request": REQUEST, "response": SSE},
        {"request": REQUEST, "response": {"chunks": CHUNKS}},
        {"request": REQUEST, "response": {"status_code": 200, "body": SSE}},
        {"request": REQUEST, "response": json.dumps(CHUNKS)},
        {"request": REQUEST, "response": SSE.split("\n")},
        {"request": REQUEST, "response": [chunk({"content": "b"}, "stop"), {"choices": [{"index": 1, "delta": {"content": "c"}}]}]},
        {"request": REQUEST, "response": OLLAMA},
        {"request": REQUEST, "response": "\n".join(map(json.dumps, OLLAMA))},
        {"request": REQUEST, "response": ANTHROPIC},
        {"request": REQUEST, "response": events(ANTHROPIC)},
        {"request": REQUEST, "response": events(RESPONSES_API)},
    ],
)  # fmt: skip
def test_requests_and_responses_become_conversations(record: dict[str, Any]) -> None:
    assert detect([record], PrepareConfig()).name == "logs"
    parsed = parse(record)
    assert turns(parsed) == [("system", "s"), ("user", "a"), ("assistant", "b")]
    assert isinstance(parsed, Parsed) and parsed.extra in ({}, {"model": "m"})


def test_streamed_calls_are_put_together() -> None:
    def part(index: int, **function: str) -> dict[str, Any]:
        return {"index": index, "function": function} | ({"id": f"k{index}"} if "name" in function else {})

    chunks = [
        chunk({"tool_calls": [part(0, name="f", arguments="")]}),
        chunk({"tool_calls": [part(0, arguments='{"x"')]}),
        chunk({"tool_calls": [part(1, name="g", arguments="{}"), part(0, arguments=": 1}")]}),
        chunk({}, "tool_calls"),
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    parsed = parse({"request": REQUEST | {"tools": [tool]}, "response": chunks})
    assert isinstance(parsed, Parsed) and parsed.tools == [tool]
    calls = parsed.messages[-1]["tool_calls"]
    assert [(c["id"], c["function"]) for c in calls] == [
        ("k0", {"name": "f", "arguments": '{"x": 1}'}),
        ("k1", {"name": "g", "arguments": "{}"}),
    ]


def test_calls_streamed_by_others_are_put_together() -> None:
    whole = {
        "done": False,
        "message": {"tool_calls": [{"function": {"name": name, "arguments": {"x": 1}}} for name in "fg"]},
    }
    ollama = parse({"request": REQUEST, "response": [whole, OLLAMA[1]]})
    block = {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "k", "name": "f"}}
    parts = [
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": part}}
        for part in ('{"x"', ": 1}")
    ]
    end = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}
    anthropic = parse({"request": REQUEST, "response": [*ANTHROPIC[:3], block, *parts, end]})

    def calls(parsed: Parsed | Rejection) -> list[tuple[str, str]]:
        assert isinstance(parsed, Parsed), parsed
        return [(c["function"]["name"], c["function"]["arguments"]) for c in parsed.messages[-1]["tool_calls"]]

    assert calls(ollama) == [("f", '{"x": 1}'), ("g", '{"x": 1}')]
    assert calls(anthropic) == [("f", '{"x": 1}')] and turns(anthropic)[-1] == ("assistant", "b")


def test_only_line_ends_part_the_events_of_a_stream() -> None:
    said = "a\u2028b\x85c\x0bd"
    stream = f"data: {json.dumps(chunk({'content': said}, 'stop'), ensure_ascii=False)}\r\n\r\ndata: [DONE]\r"
    assert turns(parse({"request": REQUEST, "response": stream}))[-1] == ("assistant", said)


@pytest.mark.parametrize("said", ["data: take the last column", "{ is a brace", '{"a": 1}\n{"b": 2}', "[1]\n[2]"])
def test_an_answer_that_only_begins_like_a_stream_is_an_answer(said: str) -> None:
    plain = {"request": REQUEST, "response": RESPONSE}
    assert turns(parse({"request": REQUEST, "response": said}, [plain]))[-1] == ("assistant", said)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"response": {"status_code": 500, "body": RESPONSE}}, "error_output"),
        ({"status": 429}, "error_output"),
        ({"error": {"message": "timeout"}}, "error_output"),
        ({"response": {"error": {"message": "no"}}}, "error_output"),
        ({"response": '{"error": {"message": "no"}}'}, "error_output"),
        ({"response": "Internal Server Error"}, "error_output"),
        ({"response": {"choices": [{"message": SAY, "finish_reason": "length"}]}}, "truncated_output"),
        ({"response": CHUNKS[:2]}, "truncated_output"),
        ({"response": "data: {oops\n\n"}, "broken_json"),
        ({"response": [*CHUNKS[:2], 5, CHUNKS[2]]}, "wrong_type"),
        ({"response": [chunk({"tool_calls": [5]}, "stop")]}, "wrong_type"),
        ({"response": [*CHUNKS[:2], {"error": {"message": "overloaded"}}]}, "error_output"),
        ({"response": OLLAMA[:1]}, "truncated_output"),
        ({"response": json.dumps(OLLAMA[0]) + "\n" + json.dumps(OLLAMA[0])[:20]}, "broken_json"),
        ({"response": ANTHROPIC[:3]}, "truncated_output"),
        ({"response": [*ANTHROPIC[:3], {"type": "error", "error": {"type": "overloaded_error"}}]}, "error_output"),
        ({"response": RESPONSES_API[:2]}, "truncated_output"),
        ({"response": [{"type": "response.failed", "response": {"status": "failed", "output": []}}]}, "error_output"),
        ({"response": None}, "empty_output"),
        ({"response": {"choices": []}}, "empty_output"),
        ({"response": {"choices": [{"message": {"role": "assistant", "content": None}}]}}, "empty_output"),
        ({"response": {"id": "x"}}, "missing_field"),
        ({"response": 5}, "wrong_type"),
        ({"request": None}, "missing_field"),
        ({"request": {"model": "m"}}, "missing_field"),
        ({"request": {"messages": []}}, "empty_input"),
    ],
)
def test_logs_without_a_whole_answer_are_rejected(change: dict[str, Any], expected: str) -> None:
    plain = {"request": REQUEST, "response": RESPONSE}
    assert reason(parse(plain | change, [plain])) == expected


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_of_a_response_is_read_whole_and_streamed(name: str) -> None:
    message = {"role": "assistant", "content": "b", name: "so b"}
    pieces = [{name: "so "}, {name: "b"}, {"content": "b"}]
    stream = [{"choices": [{"index": 0, "delta": piece, "finish_reason": None}]} for piece in pieces]
    stream.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    text = "".join(f"data: {json.dumps(item)}\n\n" for item in stream) + "data: [DONE]\n\n"
    for response in ({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}, text):
        parsed = parse({"request": REQUEST, "response": response})
        assert isinstance(parsed, Parsed)
        assert parsed.messages[-1] == {"role": "assistant", "content": "b", "reasoning_content": "so b"}


def test_thinking_blocks_of_anthropic_are_reasoning() -> None:
    content = [{"type": "thinking", "thinking": "so b", "signature": "x"}, {"type": "text", "text": "b"}]
    parsed = parse(
        {"request": REQUEST, "response": {"role": "assistant", "content": content, "stop_reason": "end_turn"}}
    )
    assert isinstance(parsed, Parsed) and parsed.messages[-1].get("reasoning_content") == "so b"
