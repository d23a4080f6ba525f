"""Adapters of one base as one adapter: the same logits as the sum of their updates, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.combine.merge.adapters import Adapter, MergeSettings, open_adapter
from tuneloop.combine.merge.merge import MergedAdapter, base_shapes, merge_adapters
from tuneloop.combine.merge.methods import METHODS
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, sha256_file, write_json
from tuneloop.models.adapters.lora import load_adapter, lora_layers, remove_lora
from tuneloop.models.load import Model, load_model
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach

IDS = torch.tensor([[5, 17, 300, 41, 8]])


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    return load_model(str(tiny_llama), dtype="float32")


Make = Callable[..., Adapter]


@pytest.fixture
def make(model: Model, tmp_path: Path) -> Make:
    """An adapter with random matrices: `make("a", seed=1, rank=2)`."""

    def made(name: str, seed: int = 0, **settings: Any) -> Adapter:
        given = {"method": "lora", "rank": 4, "alpha": 8.0, "prefix_text": "Hello"} | settings
        trainable = attach(model, TrainConfig(**given), seed)
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in trainable.parameters.values():
                parameter += torch.randn(parameter.shape, generator=g) * 0.1
        trainable.save(tmp_path / name)
        trainable.detach()
        return open_adapter(name, tmp_path / name) if settings.get("method", "lora") == "lora" else Adapter(
            name, tmp_path / name, "", {}
        )  # fmt: skip

    return made


Merge = Callable[..., MergedAdapter]


@pytest.fixture
def merge(tiny_llama: Path, tmp_path: Path) -> Merge:
    def run(*adapters: Adapter, out: str = "merged", **settings: Any) -> MergedAdapter:
        base = (str(tiny_llama), base_shapes(tiny_llama))
        return merge_adapters(adapters, MergeSettings(**settings), base, tmp_path / out)

    return run


def logits(model: Model, folder: Path) -> torch.Tensor:
    load_adapter(model.net, folder, model.fingerprint)
    try:
        with torch.inference_mode():
            return model.hidden(IDS) @ model.head.t()
    finally:
        remove_lora(model.net)


def weights(model: Model, folder: Path) -> dict[str, torch.Tensor]:
    """The update of each module, as the layers compute it."""
    load_adapter(model.net, folder, model.fingerprint)
    found = {
        name: (layer.scale * layer.lora_B @ layer.lora_A).detach() for name, layer in lora_layers(model.net).items()
    }
    remove_lora(model.net)
    return found


DIFFERENT: list[dict[str, Any]] = [
    {"rank": 2, "alpha": 16.0},
    {"rank": 5, "rslora": True, "targets": ["q_proj", "down_proj"]},
    {"rank": 3, "ranks": {"v_proj": 1}, "targets": "attention"},
    {"rank": 2, "targets": ["up_proj"]},
]


def test_cat_is_the_sum_of_products_of_adapters_that_differ_in_everything(
    model: Model, make: Make, merge: Merge
) -> None:
    adapters = [make(f"a{i}", i, **settings) for i, settings in enumerate(DIFFERENT)]
    counts = (1.0, 0.5, -2.0, 0.25)
    found = merge(*adapters, method="cat", weights=counts)
    parts = [weights(model, adapter.folder) for adapter in adapters]
    now = weights(model, found.folder)
    assert set(now) == {name for part in parts for name in part} and found.lost == 0
    for name, update in now.items():
        wanted = sum(w * part[name] for w, part in zip(counts, parts, strict=True) if name in part)
        assert torch.allclose(update, wanted, atol=1e-5), name  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_one_adapter_reproduces_its_logits(method: str, model: Model, make: Make, merge: Merge) -> None:
    item = make("a", rank=3, rslora=True)
    found = merge(item, method=method)
    assert torch.allclose(logits(model, found.folder), logits(model, item.folder), atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_does_not_matter_and_a_second_merge_has_the_same_bits(method: str, make: Make, merge: Merge) -> None:
    a, b, c = (make(name, i, rank=2 + i) for i, name in enumerate("abc"))
    first = merge(a, b, c, method=method, weights=(1.0, 0.5, 2.0))
    second = merge(c, a, b, method=method, weights=(2.0, 1.0, 0.5), out="again")
    files = [sha256_file(found.folder / "adapter_model.safetensors") for found in (first, second)]
    assert files[0] == files[1] and first.hash == second.hash


@pytest.mark.parametrize("method", ["svd", "linear"])
def test_the_result_has_the_requested_rank_and_says_what_was_lost(
    method: str, model: Model, make: Make, merge: Merge
) -> None:
    a, b = make("a", 0), make("b", 1)
    whole = weights(model, merge(a, b, method=method, rank=64, out="whole").folder)
    found = merge(a, b, method=method, rank=3)
    assert found.rank == 3 and read_json(found.folder / "adapter_config.json")["r"] == 3
    cut = weights(model, found.folder)
    gone = sum(float((cut[name] - whole[name]).square().sum()) for name in whole)
    there = sum(float(whole[name].square().sum()) for name in whole)
    assert found.lost == pytest.approx((gone / there) ** 0.5, rel=2e-3) and 0.1 < found.lost < 0.9


@pytest.mark.parametrize(("method", "peft_method"), [("svd", "svd"), ("cat", "cat")])
def test_merges_are_pefts_where_the_algebra_is_the_same(
    method: str, peft_method: str, tiny_llama: Path, make: Make, merge: Merge
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    a, b = make("a", 0), make("b", 1)
    found = merge(a, b, method=method, rank=4 if method != "cat" else 0, weights=(1.0, 0.7))
    net = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    both = PeftModel.from_pretrained(net, a.folder, adapter_name="a")
    both.load_adapter(b.folder, adapter_name="b")
    both.load_adapter(found.folder, adapter_name="ours")
    more = {} if peft_method == "cat" else {"svd_rank": 4}
    both.add_weighted_adapter(["a", "b"], [1.0, 0.7], "theirs", combination_type=peft_method, **more)
    outs = []
    for name in ("ours", "theirs"):
        both.set_adapter(name)
        with torch.inference_mode():
            outs.append(both(IDS).logits)
    assert torch.allclose(outs[0], outs[1], atol=1e-3)


def test_adapters_of_plain_peft_are_merged_too(model: Model, make: Make, merge: Merge, tmp_path: Path) -> None:
    a, b = make("a", 0), make("b", 1)
    (b.folder / "tuneloop.json").unlink()
    config = read_json(b.folder / "adapter_config.json")
    config["alpha_pattern"] = {r"layers\.0\.self_attn\.q_proj": 40}
    write_json(b.folder / "adapter_config.json", config)
    before = weights(model, a.folder)["model.layers.0.self_attn.q_proj"]
    found = merge(a, open_adapter("b", b.folder, model.fingerprint), method="cat")
    state = load_file(b.folder / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    wanted = before + 10 * state[f"{stem}B.weight"] @ state[f"{stem}A.weight"]
    assert torch.allclose(weights(model, found.folder)["model.layers.0.self_attn.q_proj"], wanted, atol=1e-4)


def test_bases_tokenizers_and_templates_must_be_the_same(make: Make, merge: Merge) -> None:
    a, b = make("a", 0), make("b", 1)
    own = read_json(b.folder / "tuneloop.json")
    write_json(b.folder / "tuneloop.json", {**own, "base_fingerprint": "other"})
    with pytest.raises(UserError, match="different base models"):
        merge(a, open_adapter("b", b.folder))
    write_json(b.folder / "tuneloop.json", own)
    settings = read_json(b.folder / "tokenizer_config.json")
    write_json(b.folder / "tokenizer_config.json", {**settings, "chat_template": "{{ messages }}"})
    with pytest.raises(UserError, match="chat template"):
        merge(a, open_adapter("b", b.folder))
    write_json(b.folder / "tokenizer_config.json", settings)
    tokenizer = read_json(b.folder / "tokenizer.json")
    tokenizer["added_tokens"][0]["content"] = "<|other|>"
    write_json(b.folder / "tokenizer.json", tokenizer)
    with pytest.raises(UserError, match="tokenizer"):
        merge(a, open_adapter("b", b.folder))


def test_the_same_adapter_twice_and_none_are_refused(make: Make, merge: Merge, tmp_path: Path) -> None:
    a = make("a")
    shutil.copytree(a.folder, tmp_path / "copy")
    with pytest.raises(UserError, match="The same adapter twice: a and copy"):
        merge(a, open_adapter("copy", tmp_path / "copy"))
    with pytest.raises(UserError, match="Merge what"):
        merge()


def test_equal_matrices_with_another_scale_are_another_adapter(
    model: Model, make: Make, merge: Merge, tmp_path: Path
) -> None:
    a = make("a", rank=4, alpha=8.0)
    shutil.copytree(a.folder, tmp_path / "twice")
    settings = read_json(tmp_path / "twice" / "adapter_config.json")
    write_json(tmp_path / "twice" / "adapter_config.json", settings | {"lora_alpha": 16})
    twice = open_adapter("twice", tmp_path / "twice")
    shutil.copytree(a.folder, tmp_path / "root")
    write_json(tmp_path / "root" / "adapter_config.json", settings | {"use_rslora": True})
    assert len({a.hash, twice.hash, open_adapter("root", tmp_path / "root").hash}) == 3
    merged = weights(model, merge(a, twice, method="cat").folder)
    for name, update in weights(model, a.folder).items():  # the sum of one and two times the update
        torch.testing.assert_close(merged[name], 3 * update, rtol=1e-4, atol=1e-6)


def change(adapter: Adapter, edit: Callable[[dict[str, torch.Tensor]], None]) -> Adapter:
    file = adapter.folder / "adapter_model.safetensors"
    state = load_file(file)
    edit(state)
    save_file(state, file)
    return open_adapter(adapter.name, adapter.folder)


def test_damaged_adapters_are_refused_and_nothing_is_written(make: Make, merge: Merge, tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[sorted(state)[3]][0, 0] = float("nan")

    def drop(state: dict[str, torch.Tensor]) -> None:
        del state[sorted(state)[2]]

    def zero(state: dict[str, torch.Tensor]) -> None:
        for name in state:
            if "lora_B" in name:
                state[name].zero_()

    def narrow(state: dict[str, torch.Tensor]) -> None:
        name = sorted(state)[0]
        state[name] = state[name][:, :-2].contiguous()

    good = make("good", 9)
    cases = [
        (spoil, "NaN"),
        (drop, "is missing"),
        (zero, "changes nothing"),
        (narrow, "base's layer is"),
        (dict.clear, "empty"),
    ]
    for i, (edit, text) in enumerate(cases):
        with pytest.raises(UserError, match=text):
            merge(good, change(make(f"bad{i}", i), edit))
    assert not any((tmp_path / "merged").glob("adapter*"))


@pytest.mark.parametrize(("settings", "text"), [({"dora": True}, "DoRA"), ({"method": "prefix"}, "PREFIX_TUNING")])
def test_kinds_that_are_no_plain_lora_are_refused_with_the_way_out(
    settings: dict[str, Any], text: str, model: Model, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        make("odd", **settings)
        open_adapter("odd", tmp_path / "odd")
    assert "on its own" in caught.value.next_step


def test_settings_that_a_method_cannot_take_are_refused(make: Make, merge: Merge) -> None:
    a, b = make("a", 0), make("b", 1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"weights": (1.0,)}, "1 weights for 2 adapters"),
        ({"weights": (float("nan"), 1.0)}, "Weights are numbers"),
        ({"weights": (0.0, 0.0)}, "not all 0"),
        ({"method": "linear", "weights": (1.0, -1.0)}, "A mean needs weights"),
        ({"method": "cat", "rank": 4}, "keeps everything"),
        ({"method": "nonsense"}, "No way to merge"),
    ]
    for settings, text in cases:
        with pytest.raises(UserError, match=text):
            merge(a, b, **settings)
