"""The proof at the start notices an adapter that is not applied, one that is another, and one that answers otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import served
from served import Files

from tuneloop.core.errors import UserError
from tuneloop.inference.local.serving import LocalEngine
from tuneloop.inference.protocol import BASE, ServingEngine, complete
from tuneloop.inference.request import Request, Update
from tuneloop.serving import canary as proofs
from tuneloop.serving.canary import CanaryRow, Parting, parting_of, prove, rounding_step

TEXTS = ("Is it windy on Jupiter?", "Does it rain?", "Why?")
LABELS = ("refund", "delivery", "other")


@pytest.fixture(scope="module")
def files(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return served.write_files(tiny_llama, tmp_path_factory.mktemp("served"))


def requests(adapter: str, **settings: Any) -> list[Request]:
    turns = [[{"role": "user", "content": text}] for text in TEXTS]
    return [Request(messages=turn, adapter=adapter, max_new_tokens=6, **settings) for turn in turns]


async def evaluated(engine: ServingEngine, adapter: str, **settings: Any) -> list[CanaryRow]:
    asked = requests(adapter, **settings)
    answers = await asyncio.gather(*(complete(engine, request) for request in asked))
    return [CanaryRow(request, answer.text) for request, answer in zip(asked, answers, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"choices": LABELS}], ids=["text", "labels"])
def test_adapters_that_answer_as_evaluated_pass(files: Files, settings: dict[str, Any]) -> None:
    async def work(engine: ServingEngine) -> None:
        names = [BASE, *engine.adapters]
        canaries = [canary for name in names for canary in await evaluated(engine, name, **settings)]
        assert [(proof.adapter, proof.n, proof.same) for proof in await prove(engine, canaries)] == [
            (name, 3, 3) for name in names
        ]

    served.run(served.local(files, (0, 1)), work)


class Deaf(LocalEngine):
    """An engine that says it has adapters, and answers by the base."""

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        async for update in super().stream(replace(request, adapter=BASE)):
            yield update


@pytest.mark.parametrize("settings", [{}, {"choices": LABELS}], ids=["text", "labels"])
def test_an_adapter_that_is_not_applied_is_refused(files: Files, settings: dict[str, Any]) -> None:
    async def work(engine: ServingEngine) -> None:
        (name,) = engine.adapters
        with pytest.raises(UserError, match="The adapter changes nothing"):
            await prove(engine, await evaluated(engine, name, **settings))

    engine = served.local(files, (0,))
    engine.__class__ = Deaf
    served.run(engine, work)


def test_another_adapter_than_the_evaluated_one_is_refused(files: Files) -> None:
    async def work(engine: ServingEngine) -> None:
        first, second = engine.adapters
        swapped = [
            replace(canary, request=replace(canary.request, adapter=second))
            for canary in await evaluated(engine, first)
        ]
        with pytest.raises(UserError, match="0 of 3 answers are those of the evaluation") as error:
            await prove(engine, swapped)
        assert "adapter-2" in error.value.where

    served.run(served.local(files, (0, 1)), work)


def test_an_answer_that_parts_at_a_near_tie_counts(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: ServingEngine) -> None:
        (name,) = engine.adapters
        canaries, gaps = [], []
        for request in requests(name):
            answer = await complete(engine, replace(request, logprobs=2))
            assert answer.logprobs
            (_, most), (other, less) = answer.logprobs[1].top
            canaries.append(CanaryRow(request, "evaluated otherwise", (answer.token_ids[0], other)))
            gaps.append(most - less)
            parting = await parting_of(engine, canaries[-1], answer)
            assert parting is not None and parting.gap == pytest.approx(gaps[-1], abs=1e-3) and not parting.step
        monkeypatch.setattr(proofs, "NEAR_TIE", max(gaps) + 0.01)
        (proof,) = await prove(engine, canaries)
        assert (
            proof.in_words
            == "0 of 3 test rows are answered as in the evaluation, 3 other ones but for a near tie of two tokens"
        )
        monkeypatch.setattr(proofs, "NEAR_TIE", min(gaps) - 0.01)
        with pytest.raises(UserError, match="0 of 3 answers are those of the evaluation"):
            await prove(engine, canaries)

    served.run(served.local(files, (0,)), work)


def test_what_16_bits_round_together_is_a_tie() -> None:
    assert rounding_step([-1.28827, -2.78827, -2.91327, -3.53827]) == 0.125
    assert rounding_step([-1.0, -1.5, -2.0]) == 0.5
    assert rounding_step([-0.1234, -1.9876, -3.5555]) == rounding_step([-1.0]) == rounding_step([-1.0, -1.0]) == 0
    assert Parting(0.25, 0.125).is_tie and not Parting(0.375, 0.125).is_tie
    assert Parting(0.09).is_tie and not Parting(0.125).is_tie


def test_rows_that_cannot_be_asked_are_refused(files: Files) -> None:
    async def work(engine: ServingEngine) -> None:
        with pytest.raises(UserError, match="too_long"):
            await prove(engine, [CanaryRow(Request(ids=[5] * 200_000), "x")])

    served.run(served.local(files, ()), work)
