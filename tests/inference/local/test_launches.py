"""How many kernels a token takes: at few rows starting them takes longer than they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretend_gpu import pretend_gpu
from tuneloop.inference.local.engine import ActiveRow, DecodingBatch
from tuneloop.inference.request import Request
from tuneloop.models.adapters import lora
from tuneloop.models.adapters.assignment import BASE
from tuneloop.models.load import SIZES, Model, random_model

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(("adapters", "most"), [(0, 780), (1, 1230), (3, 1700)])
def test_a_token_of_an_8b_llama_takes_few_launches(adapters: int, most: int) -> None:
    few, more = (_launches_of_a_token(layers, adapters) for layers in (1, 2))
    assert few + 31 * (more - few) <= most


def _launches_of_a_token(layers: int, adapters: int) -> int:
    """Of a step of 8 rows, of a Llama of 8B's widths with a few layers."""
    template: Any = SimpleNamespace(pad_id=0, end_ids=())
    with pretend_gpu(values=False) as gpu:
        model = random_model({**SIZES["8b"], "num_hidden_layers": layers}, template, dtype=torch.bfloat16)
        names = _alongside(model, adapters)
        batch = DecodingBatch(model)
        batch.join(
            [ActiveRow(Request(ids=[1] * 100, max_new_tokens=60, adapter=names[i % len(names)])) for i in range(8)]
        )
        gpu.clear()
        batch.step()
        assert sum(gpu.waits.values()) == 1, gpu.waits
        return sum(gpu.launches.values())


def _alongside(model: Model, count: int) -> list[str]:
    """Names of adapters, without values, next to each other."""
    names = [f"adapter {i}" for i in range(count)]
    for i, name in enumerate(names):
        for path, update in lora._new_layers(model.net, lora.LoraShape(16, 32.0, 0.0, TARGETS), i).items():
            layer = model.net.get_submodule(path)
            switch = layer if isinstance(layer, lora.Switch) else lora.Switch(layer)
            switch.updates[name] = update.requires_grad_(False)
            lora._put(model.net, path, switch)
    return names or [BASE]
