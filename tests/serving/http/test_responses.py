"""Responses that continue earlier ones, through OpenAI's own client: calls of functions, references, and who may use them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import StubEngine, live

from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.store.forget import forget_requests

TOOL: Any = {
    "type": "function", "name": "look_up", "description": "Find a parcel", "strict": True,
    "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
}  # fmt: skip
CALL = '{"name": "look_up", "arguments": {"id": "7"}}'
ASK: Any = {"model": "stub", "input": "Where is my parcel?", "tools": [TOOL]}


@dataclass
class Rendering(StubEngine):
    """Remembers which turns and tools it was to render."""

    turns: list[Any] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)

    async def render(self, messages: Any, tools: Any = (), *, adapter: str = "base") -> Sequence[int]:
        self.turns, self.tools = list(messages), list(tools)
        return await super().render(messages, tools, adapter=adapter)


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def pieces(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


@pytest.mark.parametrize("how", ["previous_response_id", "item_reference", "items"])
def test_a_function_is_called_and_its_result_comes_behind_the_call(tmp_path: Path, how: str) -> None:
    engine = Rendering(pieces(CALL))
    with live(tmp_path, engine) as (address, _):
        create = client_of(address).responses.create
        first = create(**ASK, instructions="Be brief")
        (call,) = first.output
        assert call.type == "function_call" and (call.name, json.loads(call.arguments)) == ("look_up", {"id": "7"})
        assert call.status == "completed" and first.tools[0].type == "function" and first.store is True
        (tool,) = engine.tools
        assert tool["function"]["name"] == "look_up" and tool["function"]["parameters"] == TOOL["parameters"]
        engine.words = ("In", " Kiel", ".")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Kiel"}
        if how == "previous_response_id":
            second = create(**{**ASK, "input": [result]}, previous_response_id=first.id)
        else:
            reference: Any = {"type": "item_reference", "id": call.id}
            asked = {"role": "user", "content": ASK["input"]}
            item = reference if how == "item_reference" else call.model_dump()
            second = create(**{**ASK, "input": [asked, item, result]})
        assert second.output_text == "In Kiel."
        user, assistant, tool = engine.turns
        assert user["content"] == ASK["input"] and assistant["role"] == "assistant"  # instructions don't last
        (called,) = assistant["tool_calls"]
        assert called["id"] == tool["tool_call_id"] == call.call_id and called["function"]["name"] == "look_up"
        assert (tool["role"], tool["content"]) == ("tool", "Kiel")
        third = create(model="stub", input="Thanks", previous_response_id=second.id)
        assert [turn["role"] for turn in engine.turns] == ["user", "assistant", "tool", "assistant", "user"]
        assert third.previous_response_id == second.id and engine.turns[3]["content"] == "In Kiel."
        message: Any = {"type": "item_reference", "id": second.output[0].id}
        create(model="stub", input=[message, {"role": "user", "content": "And?"}])
        assert [turn["content"] for turn in engine.turns] == ["In Kiel.", "And?"]


def test_calls_are_streamed_in_openai_s_events(tmp_path: Path) -> None:
    text = "I look. <tool_call>" + CALL + "</tool_call><tool_call>" + CALL.replace("7", "8") + "</tool_call>"
    with live(tmp_path, Rendering(pieces(text))) as (address, _):
        with client_of(address).responses.stream(**ASK) as stream:
            kinds = [event.type for event in stream]
            done = stream.get_final_response()
        plain = client_of(address).responses.create(**ASK)
        entry = client_of(address).responses.create(**ASK, parallel_tool_calls=False)
        continued = client_of(address).responses.create(model="stub", input="Thanks", previous_response_id=done.id)
    assert [item.type for item in done.output] == ["message", "function_call", "function_call"]
    assert done.output_text.strip() == "I look." == plain.output_text and continued.output_text
    calls = [item for item in done.output if item.type == "function_call"]
    assert [json.loads(item.arguments) for item in calls] == [{"id": "7"}, {"id": "8"}]
    assert [item.name for item in calls] == ["look_up"] * 2 and calls[0].call_id != calls[1].call_id
    assert len([item for item in plain.output if item.type == "function_call"]) == 2
    assert [item.type for item in entry.output] == ["message", "function_call"] and not entry.parallel_tool_calls
    call = [
        "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done",
    ]  # fmt: skip
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-9:] == [*call, *call, "response.completed"]
    assert kinds[-12:-9] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def test_a_call_alone_has_no_message_before_it(tmp_path: Path) -> None:
    with live(tmp_path, Rendering(pieces(CALL))) as (address, _), client_of(address).responses.stream(**ASK) as stream:
        kinds = [event.type for event in stream]
        assert "response.output_text.delta" not in kinds and "response.content_part.added" not in kinds
        assert [item.type for item in stream.get_final_response().output] == ["function_call"]


def test_a_tool_that_must_be_called_holds_the_answer(tmp_path: Path) -> None:
    engine = Rendering(pieces(CALL))
    with live(tmp_path, engine) as (address, _):
        create = client_of(address).responses.create
        create(**ASK, tool_choice={"type": "function", "name": "look_up"})
        assert engine.asked[-1].schema is not None and engine.asked[-1].schema["required"] == ["name", "parameters"]
        create(**ASK, tool_choice="none")
        assert engine.asked[-1].schema is None and not engine.tools
        with pytest.raises(openai.BadRequestError, match="one of the tools"):
            create(**ASK, tool_choice={"type": "function", "name": "other"})
        with pytest.raises(openai.BadRequestError, match=r"tools\[0\]"):
            create(model="stub", input="x", tools=[{"type": "web_search"}])


def test_only_the_key_that_had_an_answer_may_refer_to_it(tmp_path: Path) -> None:
    anna, bert = (add_key(tmp_path, name, Limits())[0] for name in ("anna", "bert"))
    engine = Rendering()
    with live(tmp_path, engine) as (address, _):
        ours, theirs = client_of(address, anna).responses.create, client_of(address, bert).responses.create
        kept = ours(model="stub", input="My name is Zora")
        unkept = ours(model="stub", input="My name is Zora", store=False)
        assert unkept.store is False and ours(model="stub", input="Hi", previous_response_id=kept.id)
        assert "Zora" in str(engine.turns)
        for create, id_ in ((theirs, kept.id), (ours, unkept.id), (ours, "resp_1"), (ours, "'")):
            asked = len(engine.asked)
            with pytest.raises(openai.BadRequestError) as refused:
                create(model="stub", input="Hi", previous_response_id=id_)
            assert refused.value.code == "previous_response_not_found" and id_ in str(refused.value)
            reference: Any = [{"type": "item_reference", "id": f"msg_{id_}"}, {"role": "user", "content": "Hi"}]
            with pytest.raises(openai.NotFoundError, match="not found"):
                create(model="stub", input=reference)
            assert len(engine.asked) == asked
        many: Any = [{"type": "item_reference", "id": f"msg_{i}"} for i in range(65)]
        with pytest.raises(openai.BadRequestError, match="at most 64"):
            ours(model="stub", input=many)


def test_what_is_erased_can_not_be_referred_to(tmp_path: Path) -> None:
    with live(tmp_path) as (address, gateway):
        create = client_of(address).responses.create
        first = create(model="stub", input="My name is Zora", user="zora")
        assert create(model="stub", input="Hi", previous_response_id=first.id).output_text
        assert gateway.store.settle(10)
        forget_requests(tmp_path, "Zora", dry_run=False)
        with pytest.raises(openai.BadRequestError, match="not found"):
            create(model="stub", input="Hi", previous_response_id=first.id)


@pytest.mark.parametrize("content", ["hash", "none"])
def test_a_log_without_texts_says_that_nothing_can_be_referred_to(tmp_path: Path, content: str) -> None:
    with live(tmp_path, log={"content": content}) as (address, _):
        create = client_of(address).responses.create
        first = create(model="stub", input="Hi")
        with pytest.raises(openai.BadRequestError, match=rf"keeps no texts.*log\.content: {content}"):
            create(model="stub", input="Hi", previous_response_id=first.id)
