"""Adapters next to each other: each row, thread and batch gets what a model with that adapter alone gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_answers import answers_of
from tiny import WORDS

from tuneloop.core.errors import UserError
from tuneloop.inference.local.answers import answer_requests, generate
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.request import Request
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.lora import (
    LoraShape,
    adapter_state,
    add_lora,
    lora_layers,
    remove_lora,
    save_adapter,
    switches,
)
from tuneloop.models.adapters.prefix import add_prefix, remove_prefix, save_prefix
from tuneloop.models.adapters.shared import adapters_of, add_adapter, merge_adapter
from tuneloop.models.load import Model, load_model
from tuneloop.models.trained import load_trained

SHAPES = {
    "wide": LoraShape(8, 16.0, 0.0, ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")),
    "narrow": LoraShape(2, 8.0, 0.1, ("q_proj", "v_proj"), rslora=True),
    "dora": LoraShape(4, 8.0, 0.0, ("o_proj", "up_proj"), dora=True),
}
PREFIX = "prefix"
IDS = torch.randint(0, WORDS, (5, 14), generator=torch.Generator().manual_seed(0))


@dataclass
class Served:
    """A model with all adapters next to each other, and the hash of each."""

    model: Model
    names: dict[str, str]
    folders: dict[str, Path]
    base: Path

    def cold(self, kind: str) -> Model:
        """A model that has that adapter only."""
        model = load_model(str(self.base), dtype="float32")
        if kind != BASE:
            load_trained(model, self.folders[kind])
        return model


@pytest.fixture(scope="module")
def served(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model, folders = load_model(str(tiny_llama), dtype="float32"), {}
    for seed, (kind, shape) in enumerate(SHAPES.items()):
        folders[kind] = tmp_path_factory.mktemp(kind)
        add_lora(model.net, shape, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in lora_layers(model.net).values():
                layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
                if layer.lora_magnitude_vector is not None:
                    layer.lora_magnitude_vector.mul_(1.1)
        save_adapter(folders[kind], adapter_state(model.net), shape, "base", model.fingerprint)
        remove_lora(model.net)
    folders[PREFIX] = tmp_path_factory.mktemp(PREFIX)
    add_prefix(model.net, [9, 8, 7, 6, 5])
    with torch.no_grad():
        model.net.model.prefix.embeddings.mul_(1.3)  # type: ignore[union-attr,operator]
    save_prefix(folders[PREFIX], model.net, "base", model.fingerprint)
    remove_prefix(model.net)
    names = {kind: add_adapter(model, folder) for kind, folder in folders.items()}
    yield Served(model, names | {BASE: BASE}, folders, tiny_llama)


KINDS = [*SHAPES, PREFIX, BASE]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_beside_others_computes_what_it_computes_alone(served: Served, kind: str) -> None:
    with torch.no_grad():
        expected = served.cold(kind).hidden(IDS)
        with applied(served.names[kind]):
            assert torch.equal(served.model.hidden(IDS), expected)


def test_no_adapter_applies_where_none_is_named(served: Served) -> None:
    with torch.no_grad():
        assert torch.equal(served.model.hidden(IDS), served.cold(BASE).hidden(IDS))


@pytest.mark.parametrize("cached", [False, True])
def test_the_rows_of_a_pass_have_different_adapters(
    served: Served, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuneloop.models.nn.llama.READ_AT_ONCE", 30)
    kinds = ["wide", BASE, "dora", "narrow", "wide"]
    with torch.no_grad():
        with applied([served.names[kind] for kind in kinds]):
            mixed = served.model.hidden(IDS, cache=served.model.new_cache() if cached else None)
        for row, kind in enumerate(kinds):
            expected = served.cold(kind).hidden(IDS[row : row + 1])
            torch.testing.assert_close(mixed[row : row + 1], expected, atol=2e-4, rtol=2e-4)


def prompts(served: Served) -> list[list[int]]:
    texts = [
        "Rain?",
        "Is it windy on Jupiter in the autumn, or does it only look so?",
        "Why",
        "How cold " * 9,
        "And Mars?",
    ]
    return [served.model.template.prompt_ids([{"role": "user", "content": text}]) for text in texts]


def requests_of(served: Served) -> tuple[list[str], list[Request]]:
    """Every prompt of every adapter, so that neighbours differ."""
    asked = [(kind, ids) for ids in prompts(served) for kind in KINDS]
    return [kind for kind, _ in asked], [Request(ids=i, max_new_tokens=7, adapter=served.names[k]) for k, i in asked]


def test_a_batch_mixes_adapters_and_each_answer_is_that_of_a_cold_model(served: Served) -> None:
    kinds, requests = requests_of(served)
    cold = {
        kind: [a.token_ids for a in generate(served.cold(kind), prompts(served), max_new_tokens=7)] for kind in KINDS
    }
    expected = [cold[kind][i // len(KINDS)] for i, kind in enumerate(kinds)]
    assert len(set(expected)) > len(expected) / 2, "adapters change answers"
    engine = Engine(served.model)
    found = list(answers_of(engine, requests))
    assert [answer.token_ids for answer in found] == expected
    assert [answer.adapter for answer in found] == [served.names[kind] for kind in kinds]
    assert [answer.token_ids for answer in answer_requests(served.model, requests)] == expected


@pytest.mark.parametrize("kinds", [("wide", BASE), ("wide", "narrow"), (PREFIX, "dora")], ids=str)
def test_threads_that_ask_for_different_adapters_get_what_each_gets_alone(
    served: Served, kinds: tuple[str, str]
) -> None:
    expected = {kind: generate(served.cold(kind), prompts(served), max_new_tokens=6) for kind in kinds}
    with torch.no_grad():
        logits = {kind: served.cold(kind).hidden(IDS) for kind in kinds}
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    start = threading.Barrier(len(kinds))

    def ask(kind: str) -> None:
        with applied(served.names[kind]), torch.no_grad():
            start.wait(30)
            for _ in range(8):
                answers = generate(served.model, prompts(served), max_new_tokens=6)
                found[kind].append(
                    [a.token_ids for a in answers] == [a.token_ids for a in expected[kind]]
                    and torch.equal(served.model.hidden(IDS), logits[kind])
                )

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {kind: [True] * 8 for kind in kinds}


def test_an_attached_adapter_answers_beside_loaded_ones(served: Served, tmp_path: Path) -> None:
    model = served.cold("wide")
    name = add_adapter(model, served.folders["narrow"])
    with torch.no_grad():
        attached, beside, untuned = (served.cold(kind).hidden(IDS) for kind in ("wide", "narrow", BASE))
        assert torch.equal(model.hidden(IDS), attached)
        with applied(name):
            assert torch.equal(model.hidden(IDS), beside)
        with applied(BASE):
            assert torch.equal(model.hidden(IDS), untuned)
        with applied(["", name, BASE, "", name]):
            mixed = model.hidden(IDS)
        torch.testing.assert_close(mixed[[0, 3]], attached[[0, 3]], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(mixed[[1, 4]], beside[[1, 4]], atol=2e-4, rtol=2e-4)
    assert adapters_of(model) == [name] and len(lora_layers(model.net)) == 14


def test_loading_twice_changes_nothing_and_an_adapter_that_is_not_there_is_an_error(served: Served) -> None:
    model = served.cold(BASE)
    name = add_adapter(model, served.folders["wide"])
    assert add_adapter(model, served.folders["wide"]) == name and adapters_of(model) == [name]
    with pytest.raises(UserError, match="No adapter"):
        answer_requests(model, [Request(ids=[1, 2], adapter="another")])


@pytest.mark.parametrize("kind", ["narrow", "dora"])
def test_a_merged_adapter_answers_as_it_does_alongside_and_leaves_plain_layers(served: Served, kind: str) -> None:
    model, plain = served.cold(BASE), served.cold(kind)
    assert merge_adapter(model, served.folders[kind]) == served.names[kind] and adapters_of(model) == [
        served.names[kind]
    ]
    assert not switches(model.net) and not lora_layers(model.net)
    with torch.no_grad():
        expected = plain.hidden(IDS)
        with applied(served.names[kind]):
            torch.testing.assert_close(model.hidden(IDS), expected, atol=2e-4, rtol=2e-4)
    with pytest.raises(UserError, match="can be merged"):
        merge_adapter(model, served.folders[PREFIX])


def test_rows_behind_different_prefixes_never_share_a_pass(served: Served) -> None:
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="prefixes"),
        applied([served.names[PREFIX], BASE] * 2 + [BASE]),
    ):
        served.model.hidden(IDS)


def test_adapters_of_another_number_of_rows_are_refused(served: Served) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="2 rows"), applied([served.names["wide"], BASE]):
        served.model.hidden(IDS)


def test_adapters_of_another_base_are_refused(served: Served, tiny_llama: Path) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match="another base"):
        add_adapter(replace(served.model, fingerprint="other"), served.folders["wide"])
