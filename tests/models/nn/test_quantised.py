"""Four bits: the numbers are those of bitsandbytes under Transformers and PEFT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import VOCABULARY

from tuneloop.core.errors import UserError
from tuneloop.models.adapters.lora import (
    LoraShape,
    adapter_state,
    add_lora,
    load_adapter,
    lora_layers,
    remove_lora,
    save_adapter,
)
from tuneloop.models.load import Model
from tuneloop.models.nn.quantised import Nf4Linear, quantise

bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
SHAPE = LoraShape(4, 8.0, 0.0, ("q_proj", "v_proj", "down_proj"))


@bits
def test_it_holds_an_eighth_of_the_fp32_weights_and_stays_near_them(tiny_model: Model) -> None:
    weights = {name: m.weight.clone() for name, m in tiny_model.net.named_modules() if isinstance(m, torch.nn.Linear)}
    quantise(tiny_model.net)
    quantise(tiny_model.net)  # done already
    layers = {name: m for name, m in tiny_model.net.named_modules() if isinstance(m, Nf4Linear)}
    assert len(layers) == 14 and "lm_head" not in layers
    for name, layer in layers.items():
        assert layer.packed.numel() == weights[name].numel() / 2
        error = (layer.weight - weights[name]).norm() / weights[name].norm()
        assert 0.01 < float(error) < 0.15
    assert not [n for n, p in tiny_model.net.named_parameters() if "proj" in n and p.is_floating_point()]


@bits
def test_an_adapter_on_four_bits_loads_in_plain_peft_on_a_base_in_four_bits(
    tiny_llama: Path, tiny_model: Model, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    quantise(tiny_model.net)
    add_lora(tiny_model.net, SHAPE, seed=0)
    with torch.no_grad():
        for layer in lora_layers(tiny_model.net).values():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    state = adapter_state(tiny_model.net)
    save_adapter(tmp_path, state, SHAPE, str(tiny_llama), tiny_model.fingerprint, quantised=True)
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32, quantization_config=settings)
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        ours: Any = tiny_model.net.logits(tiny_model.hidden(IDS))  # type: ignore[operator]
        found = theirs(IDS).logits
        assert float((ours - found).norm() / found.norm()) < 0.02
        remove_lora(tiny_model.net)
        assert isinstance(tiny_model.net.model.layers[0].mlp.up_proj, Nf4Linear)  # type: ignore[union-attr,index]
        load_adapter(tiny_model.net, tmp_path)
        assert torch.equal(tiny_model.net.logits(tiny_model.hidden(IDS)), ours)  # type: ignore[operator]


@bits
def test_the_gradient_is_that_of_the_unpacked_weight(tiny_model: Model) -> None:
    quantise(tiny_model.net)
    layer: Any = tiny_model.net.model.layers[0].mlp.up_proj  # type: ignore[union-attr,index]
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).square().sum().backward()
    found, x.grad = x.grad, None
    torch.nn.functional.linear(x, layer.weight).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, x.grad)


def test_without_bitsandbytes_it_says_what_to_install(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(UserError, match="needs the bitsandbytes package") as error:
        quantise(tiny_model.net)
    assert "pip install bitsandbytes" in error.value.next_step
