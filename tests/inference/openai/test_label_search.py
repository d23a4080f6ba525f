"""A search by a few requests finds the label that scoring all labels finds, and its probability."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tuneloop.inference.labels import label_probability
from tuneloop.inference.openai.label_search import UNREAD, Path, Reading, search_labels

VOCABULARY = 12


class Model:
    """A random language model that answers as a server does: greedy among allowed tokens, with a few likeliest ones."""

    def __init__(self, seed: int, sharpness: float, top: int) -> None:
        self.seed, self.sharpness, self.top = seed, sharpness, top
        self.requests = 0

    def logs(self, path: Path) -> list[float]:
        draw = random.Random(f"{self.seed}{path}")
        values = [draw.gauss(0, self.sharpness) for _ in range(VOCABULARY)]
        norm = math.log(sum(map(math.exp, values)))
        return [value - norm for value in values]

    async def read(self, places: Sequence[Path], allowed: Sequence[int], length: int) -> list[Reading]:
        self.requests += 1
        return [self.written(path, allowed, length) for path in places]

    def written(self, path: Path, allowed: Sequence[int], length: int) -> Reading:
        reading = []
        for _ in range(length):
            logs = self.logs(path)
            token = max(allowed, key=lambda t: logs[t])
            likeliest = sorted(range(VOCABULARY), key=lambda t: -logs[t])[: self.top]
            reading.append((token, {t: logs[t] for t in (*likeliest, token)}))
            path = (*path, token)
        return reading


def labels_of(seed: int, count: int) -> dict[str, tuple[int, ...]]:
    """Labels that share beginnings; token 0 ends each, so that none is the beginning of another."""
    draw = random.Random(seed)
    paths = {(*(draw.randrange(1, 5) for _ in range(draw.randrange(1, 5))), 0) for _ in range(count)}
    return {"-".join(map(str, path)): path for path in sorted(paths)}


@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 30), sharpness=st.floats(0.1, 8), top=st.integers(0, VOCABULARY)
)
@example(seed=443, count=5, sharpness=7.7265625, top=0)  # what is left unread has no probability at all
def test_the_best_label_and_its_probability_are_those_of_scoring_all(
    seed: int, count: int, sharpness: float, top: int
) -> None:
    model, labels = Model(seed, sharpness, top), labels_of(seed, count)
    scores = asyncio.run(search_labels(labels, model.read))
    exact = {
        label: sum(model.logs(path[:i])[token] for i, token in enumerate(path)) / len(path)
        for label, path in labels.items()
    }
    best = max(exact, key=lambda label: exact[label])
    assert max(scores, key=lambda label: scores[label]) == best
    assert scores[best] == pytest.approx(exact[best])
    tokens = {label: len(path) for label, path in labels.items()}
    probability, true = label_probability(scores, best, tokens), label_probability(exact, best, tokens)
    assert probability == pytest.approx(true, abs=UNREAD / 2)


def test_what_is_needed_of_one_level_is_read_by_one_request() -> None:
    labels, model = labels_of(seed=3, count=300), Model(seed=1, sharpness=0.2, top=VOCABULARY)
    asyncio.run(search_labels(labels, model.read))
    assert model.requests <= 2 * max(map(len, labels.values())) < len(labels) / 4


def test_a_sure_model_is_asked_once() -> None:
    labels = {str(i): (i, 5, 6, 0) for i in range(1, 5)}

    async def read(places: Sequence[Path], allowed: Sequence[int], length: int) -> list[Reading]:
        calls.extend(places)
        return [[(token, {token: -0.001, 9: -7.0}) for token in (2, 5, 6, 0)[:length]]]

    calls: list[Path] = []
    scores = asyncio.run(search_labels(labels, read))
    assert calls == [()] and max(scores, key=lambda label: scores[label]) == "2"


def test_a_server_that_ignores_what_is_allowed_is_an_error() -> None:
    async def read(places: Sequence[Path], allowed: Sequence[int], length: int) -> list[Reading]:
        return [[(11, {11: -0.1})]]

    with pytest.raises(ValueError, match="allowed tokens"):
        asyncio.run(search_labels({"a": (1, 0), "b": (2, 0)}, read))
