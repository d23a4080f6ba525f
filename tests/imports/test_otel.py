"""OpenTelemetry's GenAI spans, of today's conventions and of those before, in the shapes that libraries give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from imported import CALL, QUESTION, TODAY, brought, faults, message, span, stored

OLDER = ("gen_ai.prompt", json.dumps([{"role": "user", "content": "Weather in Paris?"}])), ("gen_ai.completion", json.dumps([{"role": "assistant", "content": "Rainy."}]))  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "today": (TODAY, []),
    "of an event": (CALL, [("gen_ai.client.inference.operation.details", {k: v for k, v in TODAY.items() if "messages" in k})]),
    "an event a turn": (CALL, [("gen_ai.user.message", {"content": "Weather in Paris?"}),
                               ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": '{"content": "Rainy."}'})]),
    "events of texts": (CALL, [("gen_ai.content.prompt", dict([OLDER[0]])), ("gen_ai.content.completion", dict([OLDER[1]]))]),
    "attributes of texts": ({**CALL, **dict(OLDER)}, []),
    "an attribute a field": ({
        "llm.request.type": "chat", "gen_ai.request.model": "gpt", "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.completion_tokens": 3, "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "Weather in Paris?",
        "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "Rainy.",
        "gen_ai.completion.0.finish_reason": "stop", "gen_ai.prompt.prompt_filter_results": "[]"}, []),
    "OpenInference": ({
        "openinference.span.kind": "LLM", "llm.model_name": "gpt", "llm.token_count.prompt": 12,
        "llm.token_count.completion": 3, "llm.input_messages.0.message.role": "user",
        "llm.input_messages.0.message.content": "Weather in Paris?", "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Rainy."}, []),
    "Vercel": ({
        "ai.operationId": "ai.generateText.doGenerate", "gen_ai.request.model": "gpt", "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3, "ai.response.text": "Rainy.",
        "ai.prompt.messages": json.dumps([{"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]}])}, []),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_of_a_span_is_the_same_request(tmp_path: Path, shape: str) -> None:
    attributes, events = SHAPES[shape]
    summary = brought(tmp_path, "otel", [message(span("b", attributes, events=events))])
    ((item,), _) = stored(tmp_path)
    assert summary.incomplete == {}, faults(summary)
    assert [(turn["role"], turn["content"]) for turn in item.prompt] == [("user", "Weather in Paris?")]
    assert (item.completion, item.model, item.prompt_tokens, item.completion_tokens) == ("Rainy.", "gpt", 12, 3)
    assert item.total_ms == 1000.0 and item.time == "2026-09-21T14:13:20.000Z"


def test_calls_of_tools_with_their_results_system_instructions_and_definitions(tmp_path: Path) -> None:
    asked = [
        *QUESTION,
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"at": "Paris"}}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rain"}]},
    ]
    only_calls = [{"role": "assistant", "parts": [
        {"type": "reasoning", "content": "again"},
        {"type": "tool_call", "id": "c2", "name": "weather", "arguments": {"at": "Lyon"}}]}]  # fmt: skip
    attributes = {
        **CALL, "gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(only_calls),
        "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
        "gen_ai.tool.definitions": json.dumps([{"type": "function", "name": "weather", "parameters": {}}]),
    }  # fmt: skip
    brought(tmp_path, "otel", [message(span("b", attributes))])
    ((item,), _) = stored(tmp_path)
    assert [turn["role"] for turn in item.prompt] == ["system", "user", "assistant", "tool"]
    assert item.prompt[3] == {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    assert isinstance(item.completion, dict) and item.completion["reasoning_content"] == "again"
    assert json.loads(item.completion["tool_calls"][0]["function"]["arguments"]) == {"at": "Lyon"}
    assert item.tools[0]["function"]["name"] == "weather"


def test_spans_out_of_order_over_several_files_inherit_user_session_and_prompt(tmp_path: Path) -> None:
    root = {"session.id": "s1", "user.id": "anna", "gen_ai.prompt.name": "support", "gen_ai.prompt.version": "2"}
    lines = [message(span("d", TODAY, "c")), message(span("c", {}, "b")), message(span("b", root))]
    evaluation = (
        "gen_ai.evaluation.result",
        {"gen_ai.evaluation.name": "Relevance", "gen_ai.evaluation.score.value": 0.9},
    )
    lines.append(
        message(span("e", TODAY, "b", [evaluation]), span("f", {**CALL, "gen_ai.operation.name": "invoke_agent"}, "b"))
    )
    brought(tmp_path, "otel", lines)
    requests, ((score),) = stored(tmp_path)
    assert {(request.conversation, request.release, str(request.user)[:2]) for request in requests} == {
        ("s1", "support/2", "u-")
    }
    assert len(requests) == 2 and (score.kind, score.value, score.source) == ("relevance", 0.9, "otel")


def test_failures_texts_that_were_not_kept_and_traces_without_a_call(tmp_path: Path) -> None:
    other = span("9", {"http.method": "GET"}, traceId="f" * 32)
    lines = [
        message(span("b", CALL, status={"code": 2, "message": "rate limited"}), span("c", CALL), other),
        {"resourceSpans": "none"},
    ]
    summary = brought(tmp_path, "otel", lines)
    failed, silent = sorted(stored(tmp_path)[0], key=lambda item: item.error is None)
    assert failed.error == "rate limited" and silent.completion is None and silent.prompt == []
    assert summary.left_out == {"no_call": 1, "wrong_type": 1}
    assert summary.incomplete == {"without_prompt": 2, "without_answer": 1}
