"""Long conversations are rendered where that can be ended, to the same tokens."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.bounded_work import WORK
from tuneloop.models.chat import long_prompts
from tuneloop.models.chat.long_prompts import CHARACTERS, TURNS, ids_of_long, is_long
from tuneloop.models.chat.template import Template, TemplateError, load_template

TURN: Any = {"role": "user", "content": "It costs 5 €, <|eot_id|> is text."}
ANSWER: Any = {"role": "assistant", "content": "No."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def template(tiny_llama: Path) -> Template:
    return load_template(tiny_llama)


def test_what_is_long_is_known_from_its_size() -> None:
    assert not is_long("", [TURN] * TURNS, [TOOL]) and is_long("", [TURN] * (TURNS + 1))
    assert is_long("x" * (CHARACTERS + 1)) and is_long("", [{**TURN, "content": "x" * (CHARACTERS + 1)}])
    call = {"function": {"name": "f", "arguments": "x" * CHARACTERS}}
    assert is_long("", [{**ANSWER, "tool_calls": [call]}]) and is_long("", [TURN], [{**TOOL, "x": "y" * CHARACTERS}])


def test_tokens_are_those_of_the_template_itself(template: Template) -> None:
    turns = [TURN, ANSWER] * 30 + [TURN]
    assert asyncio.run(ids_of_long(template, "", turns, [TOOL])) == template.prompt_ids(turns, [TOOL])
    text = "It costs 5 €, <|eot_id|> is text." * 900
    assert asyncio.run(ids_of_long(template, text)) == template.encode(text)


def test_what_the_template_refuses_or_takes_too_long_is_refused(
    template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = replace(template, source="{{ raise_exception('only one turn') }}")
    with pytest.raises(TemplateError, match="only one turn"):
        asyncio.run(ids_of_long(refusing, "", [TURN]))
    asyncio.run(ids_of_long(template, "x"))
    monkeypatch.setattr(long_prompts, "SECONDS", 0.3)
    monkeypatch.setattr(long_prompts, "READING", 0.3)
    with pytest.raises(TemplateError, match="too long"):
        asyncio.run(ids_of_long(template, "", [TURN, ANSWER] * 5_000))
    monkeypatch.undo()
    assert asyncio.run(ids_of_long(template, "x")) == template.encode("x") and WORK.workers == 2
