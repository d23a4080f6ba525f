"""Turns in every spelling become a conversation; failures in place of answers are known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from format_records import ASK, SAY, conversation, parse, reason, turns
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.data.config import PrepareConfig
from tuneloop.data.formats.guess import Parsed, Rejection, detect, error_answer, parse_record


def chat(*turns: str) -> dict[str, Any]:
    """Messages in short: `u` a question, `a` an answer, `c1` a call, `t1` its answer, `s` a system turn."""
    full = {"u": "user", "a": "assistant", "c": "assistant", "t": "tool", "s": "system"}
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        message: dict[str, Any] = {"role": full[turn[0]], "content": f"{turn} {number}"}
        if turn[0] == "c":
            call = {"id": turn[1:], "type": "function", "function": {"name": "f", "arguments": "{}"}}
            message |= {"content": None, "tool_calls": [call]}
        elif turn[0] == "t":
            message["tool_call_id"] = turn[1:]
        messages.append(message)
    return {"messages": messages}


@pytest.mark.parametrize(
    ("turns_", "expected"),
    [
        ("u a", "ok"),
        ("a u a", "ok"),
        ("a a u a", "ok"),
        ("s a u a", "ok"),
        ("u a s u a", "ok"),
        ("s s u a", "ok"),
        ("u c1", "ok"),
        ("u c1 t1 a", "ok"),
        ("u c1 t1 c2 t2 a", "ok"),
        ("u a c1 t1 a", "ok"),
        ("u c1 c2 t1 t2 a", "ok"),
        ("u c1 c2 t2 t1 a", "ok"),
        ("a", "empty_input"),
        ("s a", "empty_input"),
        ("u", "no_answer"),
        ("u a u", "no_answer"),
        ("u a s", "no_answer"),
        ("u c1 t1", "no_answer"),
        ("a u", "no_answer"),
        ("c1 u a", "bad_turn_order"),
        ("a c1 t1 u a", "bad_turn_order"),
        ("t1 u a", "bad_turn_order"),
        ("u t1 a", "bad_turn_order"),
        ("u a t1 a", "bad_turn_order"),
        ("u c1 t1 t1 a", "bad_turn_order"),
        ("u c1 t2 a", "bad_turn_order"),
        ("u c1 a", "unanswered_call"),
        ("u c1 u a", "unanswered_call"),
        ("u c1 c2", "unanswered_call"),
        ("u c1 c2 t2 a", "unanswered_call"),
        ("u c1 c2 t1 c3", "unanswered_call"),
    ],
)
def test_only_orders_that_a_conversation_can_have_are_kept(turns_: str, expected: str) -> None:
    parsed = parse(chat(*turns_.split()))
    assert (parsed.reason if isinstance(parsed, Rejection) else "ok") == expected


def test_calls_in_turns_of_their_own_are_made_at_once() -> None:
    call = ("function_call", json.dumps({"name": "f", "arguments": {}}))
    parsed = parse(conversation(("human", "a"), call, call))
    assert isinstance(parsed, Parsed) and len(parsed.messages[-1]["tool_calls"]) == 2 and not parsed.repairs
    assert reason(parse(conversation(("human", "a"), call, ("gpt", "b")))) == "unanswered_call"


def test_answers_find_their_calls_by_id_by_name_or_by_order() -> None:
    def ids(*tool_turns: dict[str, Any]) -> list[Any]:
        calls = [{"id": i, "function": {"name": n, "arguments": "{}"}} for i, n in (("x", "f"), ("y", "g"))]
        turns = [{"role": "tool", "content": "1", **turn} for turn in tool_turns]
        parsed = parse({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": calls}, *turns, SAY]})
        assert isinstance(parsed, Parsed)
        return [m["tool_call_id"] for m in parsed.messages if m["role"] == "tool"]

    assert ids({"tool_call_id": "y"}, {"tool_call_id": "x"}) == ["y", "x"]
    assert ids({"name": "g"}, {"name": "f"}) == ["y", "x"]
    assert ids({}, {}) == ["x", "y"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ({"a": 1}, '{"a": 1}'),
        ("", "{}"),
        (None, "{}"),
        ('{"a": 1', "bad_arguments"),
        ("a=1", "bad_arguments"),
        ("[1]", "bad_arguments"),
        ('"{}"', "bad_arguments"),
        ("null", "bad_arguments"),
        ([1], "bad_arguments"),
        (5, "bad_arguments"),
    ],
)
def test_arguments_are_a_json_object(arguments: Any, expected: str) -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": arguments}}
    parsed = parse({"messages": [ASK, {"role": "assistant", "tool_calls": [call]}]})
    if isinstance(parsed, Rejection):
        assert parsed.reason == expected
    else:
        assert parsed.messages[-1]["tool_calls"][0]["function"]["arguments"] == expected


def test_a_conversation_that_ends_with_the_usual_greeting_is_reversed() -> None:
    hello = {"role": "assistant", "content": "Welcome! What can I do?"}
    usual = [{"messages": [hello, {"role": "user", "content": f"q {n}"}, SAY]} for n in range(10)]
    config = PrepareConfig()
    guess = detect(usual, config)
    assert all(isinstance(parse_record(record, guess, config), Parsed) for record in usual)
    assert reason(parse_record({"messages": [SAY, ASK, hello]}, guess, config)) == "bad_turn_order"
    assert isinstance(parse_record({"messages": [ASK, hello]}, guess, config), Parsed)


def test_a_call_of_a_tool_is_no_greeting() -> None:
    hello = {"role": "assistant", "content": "Welcome! What can I do?"}
    call = {"id": "x", "type": "function", "function": {"name": "menu", "arguments": "{}"}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    pairs = [{"prompt": [hello, ASK], "chosen": [SAY], "rejected": [calling]} for _ in range(10)]
    config = PrepareConfig()
    guess = detect(pairs, config)
    assert all(isinstance(parse_record(record, guess, config), Parsed) for record in pairs)


def test_turns_of_weight_zero_stay_but_are_not_enough() -> None:
    def weighted(*weights: Any) -> dict[str, Any]:
        return {"messages": [turn for w in weights for turn in (ASK, SAY | {"weight": w})]}

    parsed = parse(weighted(0, 1, None))
    assert isinstance(parsed, Parsed)
    assert [m.get("weight") for m in parsed.messages if m["role"] == "assistant"] == [0, 1, None]
    assert reason(parse(weighted(0, 0.0))) == "no_supervised_token"
    assert [m.get("weight") for m in parse(weighted(1, 0.5)).messages if m["role"] == "assistant"] == [1, 0.5]  # type: ignore[union-attr]
    assert all(reason(parse(weighted(1, w))) == "wrong_type" for w in (1.5, -0.1, float("nan"), "1"))


def test_an_unusual_role_name_is_read_and_noted_and_the_usual_ones_are_not() -> None:
    usual = [{"messages": [{"role": "Human", "content": "a"}, {"role": "bot", "content": "b"}]}] * 99
    odd = {"messages": [{"role": "Customer", "content": "a"}, {"role": "bot", "content": "b"}]}
    parsed, plain = parse(odd, [*usual, odd]), parse(usual[0], [*usual, odd])
    assert turns(parsed) == turns(plain) == [("user", "a"), ("assistant", "b")]
    assert isinstance(parsed, Parsed) and [r["kind"] for r in parsed.repairs] == ["unknown_role"]
    assert isinstance(plain, Parsed) and not plain.repairs
    assert reason(parse({"messages": [ASK, {"role": "", "content": "b"}]}, [chat("u", "a")])) == "unknown_role"


THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}


@pytest.mark.parametrize(
    "answer",
    [
        THOUGHT,
        {"role": "assistant", "content": "4", "reasoning": " 2 and 2\n"},
        {"role": "assistant", "content": "4", "thinking": "2 and 2", "reasoning_content": "2 and 2"},
        {"role": "assistant", "content": "<think>\n2 and 2\n</think>\n\n4"},
        {"role": "assistant", "content": "2 and 2\n</think>\n\n4"},
        {"role": "assistant", "content": "[THINK]2 and 2[/THINK]4"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "2 and 2"}, {"type": "text", "text": "4"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "2 and 2"}]}, {"type": "text", "text": "4"}
        ]},
        {"role": "assistant", "content": "<think>2 and 2</think>4", "reasoning_content": "2 and 2"},
    ],
)  # fmt: skip
def test_reasoning_has_one_form_however_it_was_written(answer: dict[str, Any]) -> None:
    parsed = parse({"messages": [{"role": "user", "content": "2 + 2"}, answer]})
    assert isinstance(parsed, Parsed) and parsed.messages[-1] == THOUGHT


def test_reasoning_in_an_answer_of_one_column_is_read_too() -> None:
    parsed = parse({"instruction": "2 + 2", "output": "<think>2 and 2</think>\n4"})
    assert isinstance(parsed, Parsed) and parsed.messages[-1] == THOUGHT


def test_reasoning_that_is_empty_is_kept_as_such() -> None:
    parsed = parse(
        {
            "messages": [
                {"role": "user", "content": "2 + 2"},
                {"role": "assistant", "content": "<think>\n\n</think>\n\n4"},
            ]
        }
    )
    assert isinstance(parsed, Parsed) and parsed.messages[-1] == {**THOUGHT, "reasoning_content": ""}


@pytest.mark.parametrize("content", ["<think>2 and 2, or", "<think>\n"])
def test_reasoning_that_is_never_closed_is_no_answer(content: str) -> None:
    parsed = parse({"messages": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": content}]})
    assert isinstance(parsed, Rejection)
    assert (parsed.reason, parsed.detail) == (
        "cut_reasoning",
        "turn 2: its reasoning is never closed, so it has no answer",
    )


def test_a_text_about_tags_is_no_reasoning() -> None:
    content = "Write <think> and </think> around it, and </think> once."
    parsed = parse({"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": content}]})
    assert isinstance(parsed, Parsed) and parsed.messages[-1] == {"role": "assistant", "content": content}


TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3, in <module>\n    f()\nValueError: no'


@pytest.mark.parametrize(
    "text",
    [
        "Internal Server Error",
        "500 Internal Server Error",
        "Error: 502 Bad Gateway",
        "HTTP/1.1 503 Service Unavailable",
        "404 Not Found",
        "upstream request timeout",
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
        "Request timed out.",
        "Error code: 429 - {'error': {'message': 'Rate limit reached'}}",
        "Rate limit exceeded. Please try again in 20s.",
        "ECONNREFUSED 127.0.0.1:8080",
        "An unexpected error occurred. Please try again later.",
        "The server is overloaded",
        "TypeError: Cannot read properties of undefined (reading 'x')",
        "openai.error.RateLimitError: Rate limit reached for gpt-4",
        "java.lang.NullPointerException: x is null\n\tat com.shop.Cart.add(Cart.java:42)\n\tat com.shop.Main.main(Main.java:7)",
        "TypeError: x is not a function\n    at run (/app/index.js:10:5)\n    at main (/app/index.js:2:1)",
        "[ERROR] worker died",
        TRACEBACK,
        "Traceback (most recent call last): ...",
        '{"error": {"message": "Rate limit reached", "type": "requests"}}',
        '{"error": "timeout", "status": 504}',
        '{"message": "Internal server error"}',
        '{"error": {"message": "cut o',
        "{'error': 'model not loaded'}",
        "<html>\n<head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
        "null",
        "undefined",
        "[object Object]",
    ],
)
def test_what_a_failed_call_prints_is_no_answer(text: str) -> None:
    assert error_answer(text)
    assert reason(parse({"prompt": "Where is my card?", "completion": f" {text}\n"})) == "error_output"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "An internal server error means that the server failed; try again in a minute.",
        "Internal Server Error is what the page shows when our server is down. Please clear your cache.",
        "The 404 error means the page was moved.",
        "Error messages like this one appear when the card is blocked.",
        "Timeouts happen when the line is slow.",
        "Time out of mind",
        "Errors: none. Your order is complete.",
        "Sorry, I can't do that. Something went wrong with your order, and I have asked a colleague to look.",
        "You see this traceback:\n\n" + TRACEBACK,
        TRACEBACK + "\n\nThis means that the value was wrong.",
        '{"error": null, "result": 5}',
        '{"error": "a typo", "correction": "the"}',
        '{"name": "Ann", "code": 7}',
        "<html><head><title>My shop</title></head></html>",
        "Null hypotheses are rejected at 5 %.",
        "None",
        "Not found",
        "500",
        "Server",
        "Network",
        "Connection: the cable comes first.",
        "Note: Error handling is up to you.",
        "Unknown",
    ],
)
def test_answers_about_errors_are_answers(text: str) -> None:
    assert error_answer(text) is None


def test_an_error_that_was_asked_for_is_an_answer() -> None:
    assert error_answer("404 Not Found", "Which HTTP status says that a page is missing?") is None
    assert error_answer("ValueError: no", "What does this code print?") is None
    assert error_answer("upstream request timeout", "What does this code print?")


@given(st.text(alphabet="aeE rox:.{}[]\"'\n<>0245/", max_size=60))
def test_the_search_for_errors_ends_on_any_text(text: str) -> None:
    assert error_answer(text) in (
        None, "no value", "an error object", "an error page", "a stack trace", "an HTTP error", "an exception",
    )  # fmt: skip
