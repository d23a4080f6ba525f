"""Ollama's template says what ours says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.models.chat.template import load_template
from tuneloop.release.gguf.artifact import modelfile, ollama_template

TURNS: list[Any] = [
    {"role": "system", "content": "Sort."}, {"role": "user", "content": "One\n\ntwo "}, {"role": "assistant", "content": "a"},
    {"role": "user", "content": "{{ x }}"},
]  # fmt: skip


def go(source: str, turns: list[Any]) -> str:
    """What Go's text/template makes of the few constructs that are written."""
    body, opening = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", source, re.S).groups()  # type: ignore[union-attr]
    cases = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', body, re.S))
    assert re.sub(r'\{\{ if eq \.Role "\w+" \}\}.*?\{\{ end \}\}', "", body, flags=re.S) == ""
    return "".join(cases[turn["role"]].replace("{{ .Content }}", turn["content"]) for turn in turns) + str(opening)


@pytest.mark.torch
@pytest.mark.parametrize("which", ["tiny_llama", "smollm2"])
def test_ollama_s_template_writes_the_same_text_but_for_the_bos_that_ollama_puts_first(
    which: str, request: pytest.FixtureRequest
) -> None:
    template = load_template(request.getfixturevalue(which))
    first = template.variables["bos_token"] if template.opens_with_bos else ""
    assert first + go(ollama_template(template), TURNS) == template.text(TURNS, prompt=True)


def test_every_end_of_a_turn_stops_an_answer_and_the_system_turn_is_the_trained_one(tiny_llama: Path) -> None:
    template = load_template(tiny_llama)
    text = modelfile("x.gguf", template, "Sort the ticket.")
    assert text.startswith("FROM ./x.gguf\n") and 'SYSTEM """Sort the ticket."""\n' in text
    stops = re.findall(r'PARAMETER stop "(.*)"', text)
    assert [template.tokenizer.token_to_id(stop) for stop in stops] == list(template.end_ids) and "<|eot_id|>" in stops
    assert "ADAPTER ./lora.gguf" in modelfile("base.gguf", template, adapter="lora.gguf")


def test_the_default_system_turn_of_a_template_stays(smollm2: Path) -> None:
    template = load_template(smollm2)
    assert template.default_system and f'SYSTEM """{template.default_system}"""' in modelfile("x.gguf", template)


def test_a_template_whose_turns_depend_on_others_is_refused(smollm2: Path) -> None:
    source = "{% for m in messages %}{{ loop.index }}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="can't be written for Ollama"):
        ollama_template(replace(load_template(smollm2), source=source))
