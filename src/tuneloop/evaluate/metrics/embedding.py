"""How near in meaning an answer is to its reference: cosine of sentence embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from tuneloop.records.metric import Metric

EMBEDDER = "all-MiniLM-L6-v2"
METRICS = (Metric("embedding", "nearness in meaning", meaning="cosine of MiniLM vectors"),)


@lru_cache(maxsize=1)
def embedder() -> Callable[[Sequence[str]], Any] | None:
    """The packaged MiniLM as a function from texts to unit vectors; None where it isn't installed."""
    from tuneloop.evaluate.classical import minilm_embedder

    return minilm_embedder()


def similarity(
    references: Sequence[Sequence[str]], answers: Sequence[str], embed: Callable[[Sequence[str]], Any]
) -> list[float]:
    """Cosine of each answer with its nearest reference, -1 to 1; MiniLM reads the first 256 tokens, mostly English.

    An empty answer has 0. A high score is no proof: "is" and "is not" lie close together.
    """
    texts = list(dict.fromkeys([_clean(t) for row in references for t in row] + [_clean(t) for t in answers]))
    vectors = embed(texts)
    place = {text: i for i, text in enumerate(texts)}
    scores = []
    for row, answer in zip(references, answers, strict=True):
        own = vectors[place[_clean(answer)]]
        best = max(float(vectors[place[_clean(text)]] @ own) for text in row)
        scores.append(best if answer.strip() else 0.0)
    return scores


def _clean(text: str) -> str:
    # Tokenizers outside Python refuse lone surrogates; beyond this length no token is read.
    return text[:10_000].encode("utf-8", "replace").decode()
