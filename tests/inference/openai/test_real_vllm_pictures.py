"""The real vLLM serves adapters and exports of models that also read pictures as our own engine answers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
import real_vllm
from adapters import write_adapter
from pictures import KINDS, folder_with_pictures
from real_vllm import RealVllm

from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.openai.serving import EndpointEngine, EndpointSettings
from tuneloop.inference.protocol import BASE, Served, ServingEngine, complete
from tuneloop.inference.request import Request
from tuneloop.release.tuned_weights import merge

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not real_vllm.PYTHON, reason="vLLM is not installed: make test-vllm"),
]
TEXTS = ("My parcel has not arrived.", "I want my money back.", "When will it come?")
WITHOUT_PICTURES = ("--dtype", "float32", "--limit-mm-per-prompt", '{"image": 0}')


async def answered(engine: ServingEngine, *, adapted: bool) -> list[tuple[tuple[int, ...], float]]:
    """Token ids and the sum of their log probabilities, for each text."""
    await engine.start()
    adapter = next(iter(engine.adapters)) if adapted else BASE
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    requests = [Request(messages, adapter=adapter, max_new_tokens=8, logprobs=1) for messages in turns]
    found = await asyncio.gather(*(complete(engine, request) for request in requests))
    await engine.stop()
    assert not [match.error for match in found if match.error]
    return [(match.token_ids, math.fsum(token.logprob for token in match.logprobs or ())) for match in found]


@KINDS
def test_an_adapter_and_the_merged_model_answer_as_here(
    kind: str, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    base, merged = tmp_path / "base", tmp_path / "merged"
    folder_with_pictures(kind, smollm2, base)
    adapter = write_adapter(base, tmp_path / "adapter", 1, strength=0.3)
    local = LocalEngine(Served(str(base)), [Served(str(adapter))])
    ours, plain = (asyncio.run(answered(local, adapted=adapted)) for adapted in (True, False))
    assert ours != plain
    merge(str(base), adapter, merged)
    for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (merged / file).symlink_to(base / file)
    for folder, adapters in ((base, [Served(str(adapter))]), (merged, [])):
        server = RealVllm(folder, tmp_path / "vllm.txt", *WITHOUT_PICTURES, lora=bool(adapters)).start()
        try:
            settings = EndpointSettings(f"{server.address}/v1", tokenizer=str(base), slots=4)
            engine = EndpointEngine(Served("base"), adapters, settings)
            theirs = asyncio.run(answered(engine, adapted=bool(adapters)))
        finally:
            server.kill()
        assert [ids for ids, _ in theirs] == [ids for ids, _ in ours]
        assert [total for _, total in theirs] == pytest.approx([total for _, total in ours], abs=0.05)
