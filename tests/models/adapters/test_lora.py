"""Adapters change nothing before training, equal PEFT's in output and gradient, and travel both ways."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bf16 import needs_bf16
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY
from torch.utils._python_dispatch import TorchDispatchMode

from tuneloop.core.errors import UserError
from tuneloop.models.adapters.assignment import BASE, applied
from tuneloop.models.adapters.lora import (
    LoraShape,
    _Products,
    adapter_parameters,
    adapter_state,
    add_lora,
    load_adapter,
    lora_layers,
    remove_lora,
    save_adapter,
    side_by_side,
    state_hash,
    target_names,
)
from tuneloop.models.load import Model, load_model
from tuneloop.models.nn.quantised import quantise

ALL = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
SHAPE = LoraShape(rank=4, alpha=8.0, dropout=0.0, targets=ALL)
IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def fill(model: Model, seed: int = 7) -> None:
    """B matrices that are not zero, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model.net).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)


def peft_model(folder: Path, **config: Any) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    base = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=list(ALL), task_type="CAUSAL_LM", **config)
    )


def test_a_fresh_adapter_changes_nothing(tiny_model: Model) -> None:
    with torch.no_grad():
        before = tiny_model.hidden(IDS)
        parameters = add_lora(tiny_model.net, SHAPE, seed=0)
        assert torch.equal(tiny_model.hidden(IDS), before)
    assert len(parameters) == 2 * 7 * 2
    assert {name for name, p in tiny_model.net.named_parameters() if p.requires_grad} == {
        f"{name}.lora_{which}" for name in lora_layers(tiny_model.net) for which in "AB"
    }


def test_the_start_depends_on_the_seed_alone(tiny_llama: Path) -> None:
    hashes = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = load_model(str(tiny_llama), dtype="float32")
        add_lora(model.net, SHAPE, seed=seed)
        hashes.append(state_hash(adapter_state(model.net)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_disabled_or_removed_adapter_leaves_the_base_model(tiny_model: Model) -> None:
    with torch.no_grad():
        before = tiny_model.hidden(IDS)
        add_lora(tiny_model.net, SHAPE, seed=0)
        fill(tiny_model)
        tuned = tiny_model.hidden(IDS)
        assert not torch.allclose(tuned, before)
        with applied(BASE):
            assert torch.equal(tiny_model.hidden(IDS), before)
        assert torch.equal(tiny_model.hidden(IDS), tuned)
        with pytest.raises(RuntimeError), applied(BASE):
            raise RuntimeError
        assert torch.equal(tiny_model.hidden(IDS), tuned)
        remove_lora(tiny_model.net)
        assert torch.equal(tiny_model.hidden(IDS), before)


def test_a_saved_adapter_loads_in_plain_peft_with_the_same_logits(
    tiny_llama: Path, tiny_model: Model, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    add_lora(tiny_model.net, SHAPE, seed=0)
    fill(tiny_model)
    save_adapter(tmp_path, adapter_state(tiny_model.net), SHAPE, str(tiny_llama), tiny_model.fingerprint)
    base = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        ours = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
        torch.testing.assert_close(ours, theirs(IDS).logits, atol=1e-4, rtol=1e-4)


VARIANTS = {
    "rank-stabilised": replace(SHAPE, rslora=True),
    "DoRA": replace(SHAPE, dora=True),
    "ranks": replace(SHAPE, ranks=(("q_proj", 8), ("layers.1.mlp.up_proj", 2))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_starts_as_the_base_and_loads_in_plain_peft(
    name: str, tiny_llama: Path, tiny_model: Model, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    shape = VARIANTS[name]
    with torch.no_grad():
        untouched = tiny_model.hidden(IDS)
        parameters = add_lora(tiny_model.net, shape, seed=0)
        torch.testing.assert_close(tiny_model.hidden(IDS), untouched, atol=1e-4, rtol=1e-4)
        generator = torch.Generator().manual_seed(3)
        for parameter in parameters:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
        ours = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
        save_adapter(tmp_path, adapter_state(tiny_model.net), shape, str(tiny_llama), tiny_model.fingerprint)
        base = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, tmp_path).eval()
        torch.testing.assert_close(ours, theirs(IDS).logits, atol=1e-3, rtol=1e-3)
        remove_lora(tiny_model.net)
        torch.testing.assert_close(tiny_model.hidden(IDS), untouched)
        load_adapter(tiny_model.net, tmp_path, tiny_model.fingerprint)
        torch.testing.assert_close(tiny_model.net.logits(tiny_model.hidden(IDS)), ours, atol=1e-4, rtol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("config", [{"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 8}}], ids=str)
def test_the_gradient_of_every_kind_equals_pefts(
    tiny_llama: Path, tiny_model: Model, tmp_path: Path, config: Any
) -> None:
    theirs = peft_model(tiny_llama, **config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    load_adapter(tiny_model.net, tmp_path)
    targets = IDS[:, 1:].flatten()
    torch.nn.functional.cross_entropy(theirs(IDS).logits[:, :-1].flatten(0, 1), targets).backward()
    logits = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets).backward()
    theirs_by_name = {name.replace(".default", "").removesuffix(".weight"): p for name, p in theirs.named_parameters()}
    for name, parameter in adapter_parameters(tiny_model.net).items():
        expected = theirs_by_name[name.removesuffix(".weight")].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=2e-3)


def test_an_adapter_of_another_base_is_refused_even_where_its_shapes_fit(tiny_model: Model, tmp_path: Path) -> None:
    save(tiny_model, tmp_path)
    with pytest.raises(UserError, match="trained on another base model"):
        load_adapter(tiny_model.net, tmp_path, "another fingerprint")
    assert not lora_layers(tiny_model.net)


@pytest.mark.parametrize("targets", [list(ALL), ["q_proj", "v_proj"], "all-linear", r".*\.(q|v)_proj"])
def test_an_adapter_saved_by_peft_loads_here_with_the_same_logits(
    tiny_llama: Path, tiny_model: Model, tmp_path: Path, targets: Any
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    base = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    theirs = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        expected = theirs.eval()(IDS).logits
        theirs.save_pretrained(tmp_path)
        shape = load_adapter(tiny_model.net, tmp_path)
        assert (shape.rank, shape.alpha) == (3, 5.0)
        ours = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_equals_pefts(tiny_llama: Path, tiny_model: Model) -> None:
    theirs = peft_model(tiny_llama)
    add_lora(tiny_model.net, SHAPE, seed=0)
    fill(tiny_model)
    state = adapter_state(tiny_model.net)
    named = dict(theirs.named_parameters())
    with torch.no_grad():
        for key, tensor in state.items():
            named[key.replace(".weight", ".default.weight")].copy_(tensor)
    targets = IDS[:, 1:].flatten()
    torch.nn.functional.cross_entropy(theirs(IDS).logits[:, :-1].flatten(0, 1), targets).backward()
    logits = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets).backward()
    for name, layer in lora_layers(tiny_model.net).items():
        for which in "AB":
            expected = named[f"base_model.model.{name}.lora_{which}.default.weight"].grad
            assert expected.abs().max() > 0
            torch.testing.assert_close(getattr(layer, f"lora_{which}").grad, expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False], ids=["no dropout", "dropout"])
def test_the_hand_written_product_has_the_gradient_of_plain_operations(bias: bool, shared: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, requires_grad=True)
    z = x if shared else torch.randn(5, 6, requires_grad=True)
    weight, a, b = torch.randn(7, 6), torch.randn(2, 6, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    offset = torch.randn(7) if bias else None
    grad = torch.randn(5, 7)
    wanted = [x, a, b] if shared else [x, z, a, b]
    (out,) = _Products.apply(x, z, (1.5,), (None,), weight, offset, a, b)
    plain = torch.nn.functional.linear(x, weight, offset) + 1.5 * (z @ a.t()) @ b.t()
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-5)
    for ours, expected in zip(
        torch.autograd.grad(out, wanted, grad), torch.autograd.grad(plain, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_layers_computed_as_one_have_the_values_and_gradients_of_each_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    layers = [torch.nn.Linear(6, size, bias=size == 3, dtype=torch.float64) for size in (4, 3, 7)]
    tensors = []
    for rank, layer in zip((2, 0, 3), layers, strict=True):  # the one in the middle has no adapter
        a, b = (torch.randn(rank, 6), torch.randn(layer.out_features, rank)) if rank else (None, None)
        tensors += [layer.weight, layer.bias, a, b]
    tensors = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    scales = (0.5, 1.0, 2.0)

    def joined(x: torch.Tensor, *tensors: torch.Tensor) -> Any:
        flat = x.flatten(0, 1)
        return _Products.apply(flat, flat, scales, (None,) * 3, *tensors)

    for i, out in enumerate(joined(x, *tensors)):
        weight, bias, a, b = tensors[4 * i : 4 * i + 4]
        plain = torch.nn.functional.linear(x.flatten(0, 1), weight, bias)
        torch.testing.assert_close(out, plain if a is None else plain + scales[i] * x.flatten(0, 1) @ a.t() @ b.t())
    assert torch.autograd.gradcheck(joined, (x, *tensors), atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_layers_in_four_bits_are_computed_as_one_too(tiny_model: Model) -> None:
    quantise(tiny_model.net)
    add_lora(tiny_model.net, SHAPE, seed=1)
    fill(tiny_model)
    attention = tiny_model.net.model.layers[0].self_attn  # type: ignore[union-attr,index]
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]  # type: ignore[union-attr]
    x = torch.randn(2, 5, attention.q_proj.weight.shape[1], requires_grad=True)  # type: ignore[union-attr]
    parts = [p for layer in layers for p in layer.parts().values()]
    together = side_by_side(layers, x)
    for layer, out in zip(layers, together, strict=True):
        weight, a, b = layer.weight, layer.lora_A, layer.lora_B
        torch.testing.assert_close(out, x @ weight.t() + layer.scale * x @ a.t() @ b.t())
    found = torch.autograd.grad(sum(out.square().sum() for out in together), [x, *parts])
    plain = sum((x @ la.weight.t() + la.scale * x @ la.lora_A.t() @ la.lora_B.t()).square().sum() for la in layers)
    for ours, expected in zip(found, torch.autograd.grad(plain, [x, *parts]), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)
    saved = side_by_side(layers, x)[0].grad_fn.next_functions[0][0].saved_tensors  # type: ignore[union-attr]
    assert not [t for t in saved if t is not None and t.shape == layers[0].weight.shape], "unpacked for the moment only"


def test_answers_take_one_product_for_the_a_of_layers_that_read_the_same(tiny_model: Model) -> None:
    add_lora(tiny_model.net, SHAPE, seed=1)
    fill(tiny_model)
    attention = tiny_model.net.model.layers[0].self_attn  # type: ignore[union-attr,index]
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]  # type: ignore[union-attr]
    x = torch.randn(1, 3, attention.q_proj.weight.shape[1])  # type: ignore[union-attr]

    counted: Counter[str] = Counter()

    class Counts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            narrow = func is torch.ops.aten.mm.default and args[1].shape[1] in (SHAPE.rank, 3 * SHAPE.rank)
            counted["narrow" if narrow else str(func)] += 1
            return func(*args, **(kwargs or {}))

    for layer in layers:
        layer.requires_grad_(False)
    with torch.no_grad():
        side_by_side(layers, x)
        with Counts():
            found = side_by_side(layers, x)
        assert counted["narrow"] == 1 and not counted["aten.cat.default"]
        for match, layer in zip(found, layers, strict=True):
            torch.testing.assert_close(match, layer(x))
        layers[1].lora_A.mul_(2)  # what was put together is not used any more
        torch.testing.assert_close(side_by_side(layers, x)[1], layers[1](x))


def test_dropout_acts_in_training_only(tiny_model: Model) -> None:
    add_lora(tiny_model.net, LoraShape(4, 8.0, 0.5, ALL), seed=0)
    fill(tiny_model)
    with torch.no_grad():
        tiny_model.net.eval()
        calm = tiny_model.hidden(IDS)
        assert torch.equal(tiny_model.hidden(IDS), calm)
        tiny_model.net.train()
        torch.manual_seed(0)
        first = tiny_model.hidden(IDS)
        torch.manual_seed(0)
        assert torch.equal(tiny_model.hidden(IDS), first)
        assert not torch.allclose(first, calm)


def test_target_names(tiny_model: Model) -> None:
    assert target_names(tiny_model.net, "all-linear") == ALL
    assert target_names(tiny_model.net, "attention") == ("k_proj", "o_proj", "q_proj", "v_proj")
    assert target_names(tiny_model.net, ["v_proj", "q_proj"]) == ("q_proj", "v_proj")
    add_lora(tiny_model.net, SHAPE, seed=0)
    assert target_names(tiny_model.net, "all-linear") == ALL, "an adapted model has the same targets"
    with pytest.raises(UserError, match="no linear layer named 'qproj'"):
        target_names(tiny_model.net, ["qproj"])


def save(model: Model, folder: Path, shape: LoraShape = SHAPE) -> None:
    add_lora(model.net, shape, seed=0)
    save_adapter(folder, adapter_state(model.net), shape, "base", model.fingerprint)
    remove_lora(model.net)


def test_another_models_adapter_is_refused(tiny_model: Model, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
    ))  # fmt: skip
    add_lora(other, SHAPE, seed=0)
    save_adapter(tmp_path / "small", adapter_state(other), SHAPE, "base", "x")
    with pytest.raises(UserError, match="does not fit this model"):
        load_adapter(tiny_model.net, tmp_path / "small")
    remove_lora(tiny_model.net)
    save(tiny_model, tmp_path / "deep")
    state_file = tmp_path / "deep" / "adapter_model.safetensors"
    state = load_file(state_file)
    save_file({key.replace("layers.1.", "layers.9."): value for key, value in state.items()}, state_file)
    with pytest.raises(UserError, match="no place for"):
        load_adapter(tiny_model.net, tmp_path / "deep")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes as files here")
def test_a_pipe_in_place_of_weights_is_refused_and_not_waited_for(tiny_model: Model, tmp_path: Path) -> None:
    save(tiny_model, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no plain file"):
        load_adapter(tiny_model.net, tmp_path)


def test_a_damaged_or_missing_adapter_says_so(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_adapter(tiny_model.net, tmp_path)
    save(tiny_model, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file is mapped, and is cut next
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        load_adapter(tiny_model.net, tmp_path)
    state["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][0, 0] = float("nan")
    save_file(state, weights)
    with pytest.raises(UserError, match=r"The adapter holds NaN or infinity in .*layers.0.self_attn.q_proj.lora_A"):
        load_adapter(tiny_model.net, tmp_path)
    remove_lora(tiny_model.net)
    weights.unlink()
    with pytest.raises(UserError, match="No such file"):
        load_adapter(tiny_model.net, tmp_path)


@pytest.mark.parametrize("odd", [{"fan_in_fan_out": True}, {"peft_type": "IA3"}, {"lora_bias": True}])
def test_adapters_that_are_not_plain_lora_are_refused(tiny_model: Model, tmp_path: Path, odd: dict[str, Any]) -> None:
    save(tiny_model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **odd}))
    with pytest.raises(UserError, match="Not a plain LoRA adapter"):
        load_adapter(tiny_model.net, tmp_path)


@needs_bf16
def test_an_adapter_on_a_bf16_model_keeps_fp32_masters(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), dtype="bfloat16")
    parameters = add_lora(model.net, SHAPE, seed=0)
    model.hidden(IDS).float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {p.grad.dtype for p in parameters if p.grad is not None} == {torch.float32}
