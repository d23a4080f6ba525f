"""The control of random matrices has the shapes and sizes of what it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.combine.merge.adapters import open_adapter, random_adapter
from tuneloop.core.files import write_json


def test_it_is_as_large_as_the_adapter_and_has_nothing_of_it(tmp_path: Path) -> None:
    stem = "base_model.model.layers.0.q_proj.lora_"
    state = {f"{stem}A.weight": torch.full((8, 64), 0.5), f"{stem}B.weight": torch.full((32, 8), -0.1)}
    (tmp_path / "a").mkdir()
    save_file(state, tmp_path / "a" / "adapter_model.safetensors")
    write_json(tmp_path / "a" / "adapter_config.json", {"peft_type": "LORA", "r": 8, "lora_alpha": 8})
    like = open_adapter("a", tmp_path / "a", "f")
    found = random_adapter(like, tmp_path / "r", seed=1)
    drawn = load_file(found.folder / "adapter_model.safetensors")
    assert found.modules == like.modules and found.fingerprint == "f" and found.hash != like.hash
    for name, tensor in state.items():
        assert drawn[name].square().mean().sqrt() == pytest.approx(float(tensor.square().mean().sqrt()), rel=0.15)
        assert abs(float(drawn[name].mean())) < 0.1 * float(tensor.abs().mean()) + 0.05
    assert random_adapter(like, tmp_path / "again", seed=1).hash == found.hash
