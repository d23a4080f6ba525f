"""What tools log becomes the texts that were sent and answered, to the letter, also where they are JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imported import ANSWER, CALL, QUESTION, brought, message, row, span, stored

from tuneloop.imports.messages import read_answer, read_prompt

# Texts that a reader of API bodies could take for one, for a list of parts, or for nothing.
TEXTS = (
    '{"intents": [], "slots": {}}', "{}", "[]", '["a","b"]', "5", "null", '"quoted"', ' {"a": 1}\n', '[{"name":"x"}]',
    '{"role": "admin","content":"x"}', '{"role":"user"}', '{"message": "hi"}', '{"text": "x"}', '{"output": ["a"]}',
    '{"error": "none", "device": "tv"}', '{"choices": ["a","b"]}', '{"data": {"choices": 1}}', '[{"type": "refund"}]',
    '{"type":"text","value":1}', "true", "{not JSON", '{"prompt": "x"}', '{"messages": "two"}',
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_string_is_a_text_unless_it_looks_like_a_body(text: str) -> None:
    assert read_answer(text) == (text, "")
    assert read_prompt(text) == ([{"role": "user", "content": text}], [])


@pytest.mark.parametrize("value", [{"intents": []}, 5, True, ["a"], 0, [{"name": "x"}]])
def test_a_value_that_is_no_body_is_the_answer_as_json(value: Any) -> None:
    assert json.loads(read_answer(value)[0]) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]},
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "yes"}]}}]},
        {"generations": [[{"text": "yes", "message": {"kwargs": {"content": "yes"}, "id": ["AIMessage"]}}]]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        [{"role": "assistant", "parts": [{"type": "text", "content": "yes"}]}],
        {"output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}]},
        {"raw": "yes", "parsed": None},
        [{"type": "text", "text": "yes"}],
    ],
)
def test_bodies_are_read_as_objects_and_as_strings(body: Any) -> None:
    assert read_answer(body)[0] == read_answer(json.dumps(body))[0] == "yes"


def litellm(text: str) -> dict[str, Any]:
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    turns = json.dumps([{"role": "user", "content": text}])
    start = "2026-09-21T14:00:00Z"
    return {"request_id": "a", "startTime": start, "endTime": start, "call_type": "acompletion", "messages": turns,
            "response": json.dumps(body)}  # fmt: skip


def otel(text: str) -> dict[str, Any]:
    question, answer = json.loads(json.dumps([QUESTION, ANSWER]))
    question[0]["parts"][0]["content"] = answer[0]["parts"][0]["content"] = text
    texts = {"gen_ai.input.messages": json.dumps(question), "gen_ai.output.messages": json.dumps(answer)}
    return message(span("b", {**CALL, **texts}))


def otel_events(text: str) -> dict[str, Any]:
    events = [("gen_ai.user.message", {"content": text}), ("gen_ai.choice", {"content": text})]
    return message(span("b", CALL, events=events))


def openai(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    turns = [{"role": "user", "content": text}]
    return {"id": "c", "created": 1_790_000_000, "model": "gpt", "messages": turns, "choices": [choice]}


def jsonl(text: str) -> dict[str, Any]:
    return row(1, messages=[{"role": "user", "content": text}], answer=text)


@pytest.mark.parametrize("text", ['{"intents": [], "slots": {}}', '["a","b"]', "5", "null", '[{"name":"x"}]', "{}"])
@pytest.mark.parametrize("form", [jsonl, litellm, otel, otel_events, openai])
def test_each_format_keeps_a_text_that_is_json(tmp_path: Path, form: Any, text: str) -> None:
    summary = brought(tmp_path, form.__name__.partition("_")[0], [form(text)])
    ((request,), _) = stored(tmp_path)
    assert summary.left_out == {} and request.completion == text
    assert [turn["content"] for turn in request.prompt] == [text]
