"""A model that no single card has room for: its layers on several cards compute what one computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_adapter
from engine_answers import answers_of
from six_layers import write_six_layers
from torch import nn

from pretend_gpu import Card, pretend_gpu
from tuneloop.core.device import CARD_SHARE
from tuneloop.core.errors import UserError
from tuneloop.inference.labels import label_trie
from tuneloop.inference.local.answers import generate
from tuneloop.inference.local.engine import Engine
from tuneloop.inference.local.scoring import answer_fits, choose
from tuneloop.inference.request import Request
from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.adapters.prefix import add_prefix
from tuneloop.models.adapters.shared import add_adapter
from tuneloop.models.load import Model, _filled, load_model, needs_several_cards

QUESTIONS = ["Rain?", "Is it windy on Jupiter in the autumn, or does it only look so?", "Why", "How cold " * 9]


def two_cards(folder: Path, **settings: Any) -> Model:
    """The tiny model, a layer on each of two cards."""
    from tuneloop.models import load

    def spread_out(net: Any, prepare: Callable[[nn.Module], None] | None = None) -> nn.Module:
        return load.put_on_cards(net, ["cuda:0", "cuda:1"], prepare)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "place_where_room_is", spread_out)
        return load_model(str(folder), dtype="float32", **settings)


def answers(model: Model, adapters: Sequence[str]) -> dict[str, Any]:
    """What all ways of asking give."""
    prompts = [model.template.prompt_ids([{"role": "user", "content": q}]) for q in QUESTIONS]
    labels = ["red", "blue drawer", "green"]
    trie = label_trie(labels, [[*model.template.encode(label), model.template.end_ids[0]] for label in labels])
    rows = [
        model.template.render([{"role": "user", "content": q}, {"role": "assistant", "content": "Yes, in part"}])
        for q in QUESTIONS
    ]
    requests = [
        Request(ids=ids, max_new_tokens=6, adapter=adapters[i % len(adapters)]) for i, ids in enumerate(prompts)
    ]
    attached = {
        "generate": [a.token_ids for a in generate(model, prompts, max_new_tokens=6)],
        "choose": [max((a.label_scores or {}).values()) for a in choose(model, prompts, trie, prune=True)],
        "exact": [max((a.label_scores or {}).values()) for a in choose(model, prompts, trie, prune=False)],
        "fits": [fit.loss for fit in answer_fits(model, rows)],
    }
    return {"engine": [a.token_ids for a in answers_of(Engine(model, rows=3), requests)], **attached}


@pytest.mark.parametrize("kind", ["base", "mixed", "prefix", "four bits"])
def test_layers_on_two_cards_answer_as_on_one(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    from tuneloop.models.methods.shipped import method_named

    settings: dict[str, Any] = {}
    if kind == "four bits":
        pytest.importorskip("bitsandbytes")
        settings = {"prepare": method_named("qlora").prepare}
    found = []
    for several in (False, True):
        with pretend_gpu(cards=2) as gpu:
            model = (
                two_cards(tiny_llama, **settings)
                if several
                else load_model(str(tiny_llama), dtype="float32", device="cuda", **settings)
            )
            names = [BASE]
            if kind == "mixed":
                folders = [write_adapter(tiny_llama, tmp_path / f"{several}{seed}", seed) for seed in (1, 2)]
                names = [*(add_adapter(model, folder) for folder in folders), BASE]
            elif kind == "prefix":
                add_prefix(model.net, [9, 8, 7, 6, 5])
                names = [""]
            assert model.is_sharded == several and bool(gpu.on_card[1]) == several
            found.append(answers(model, names))
    item, two = found
    for key, value in item.items():
        assert two[key] == (pytest.approx(value, rel=1e-4) if key in ("choose", "exact", "fits") else value), key


def test_a_model_that_one_card_has_no_room_for_is_loaded_onto_two(tiny_llama: Path, tmp_path: Path) -> None:
    folder = write_six_layers(tmp_path / "six", tiny_llama)
    here = load_model(str(folder), dtype="float32")
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = here.hidden(ids)
    card = Card(gib=0.8 * sum(p.numel() for p in here.net.parameters()) * 4 / CARD_SHARE / 2**30)
    with pretend_gpu(card) as gpu:
        with pytest.raises(torch.OutOfMemoryError):
            load_model(str(folder), dtype="float32").hidden(torch.zeros(64, 64, dtype=torch.long, device="cuda"))
        assert not gpu.on_card[1]
    with pretend_gpu(card, cards=3) as gpu, torch.no_grad():
        model = load_model(str(folder), dtype="float32")
        assert [card.index for card in model.net.model.cards] == [1] * 6  # type: ignore[union-attr]
        torch.testing.assert_close(model.hidden(ids.to("cuda")).cpu(), expected, atol=1e-5, rtol=1e-4)
        assert model.device.index == 0 and gpu.on_card[0] > gpu.on_card[1] > 0, "of this model the embeddings are most"
        assert not gpu.on_card[2]


@pytest.mark.parametrize(
    ("sizes", "rest", "free", "expected"),
    [
        ([10.0] * 8, 0.0, {"a": 60.0, "b": 60.0}, "aaaabbbb"),
        ([10.0] * 8, 20.0, {"a": 60.0, "b": 60.0}, "aaabbbbb"),
        ([10.0] * 8, 0.0, {"a": 30.0, "b": 90.0}, "aabbbbbb"),
        ([10.0] * 8, 0.0, {"a": 45.0, "b": 45.0}, "aaaabbbb"),
        ([10.0] * 8, 0.0, {"a": 35.0, "b": 35.0}, ""),
        ([10.0] * 9, 0.0, {"a": 40.0, "b": 40.0, "c": 40.0}, "aaabbbccc"),
    ],
)
def test_cards_are_filled_to_the_same_share(
    sizes: list[float], rest: float, free: dict[str, float], expected: str
) -> None:
    assert "".join(_filled(sizes, rest, free)) == expected


def test_a_70b_llama_takes_two_cards_of_80_gb_and_a_405b_more_than_four(tmp_path: Path) -> None:
    import json

    from tuneloop.models.load import SIZES

    for name, config in (
        ("70b", SIZES["70b"]),
        ("8b", SIZES["8b"]),
        ("405b", {**SIZES["70b"], "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248,
                  "num_attention_heads": 128}),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pretend_gpu(cards=4):
        assert needs_several_cards(str(tmp_path / "70b"), torch.bfloat16)
        assert not needs_several_cards(str(tmp_path / "8b"), torch.bfloat16)
        with pytest.raises(UserError, match="4 GPUs have"):
            needs_several_cards(str(tmp_path / "405b"), torch.bfloat16)
    with pretend_gpu(cards=1):
        assert not needs_several_cards(str(tmp_path / "70b"), torch.bfloat16)
