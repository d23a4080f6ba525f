"""What is in a run's folder goes back into its base model, and into no other; bad files are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.core.errors import UserError
from tuneloop.models.load import load_model
from tuneloop.models.trained import load_trained
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_nan_in_a_weight_file_is_told_before_anything_is_computed(tiny_llama: Path, tmp_path: Path) -> None:
    broken = copied(tiny_llama, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"NaN or infinity in model.layers.1.mlp.up_proj.weight"):
        load_model(str(broken), dtype="float32")


def test_large_weights_whose_sum_overflows_are_no_fault(tiny_llama: Path, tmp_path: Path) -> None:
    large = copied(tiny_llama, tmp_path / "large")
    state = load_file(large / "model.safetensors")
    state["model.norm.weight"] = torch.full((64,), 60000.0, dtype=torch.float16)
    save_file(state, large / "model.safetensors", metadata={"format": "pt"})
    load_model(str(large), dtype="float32")


@pytest.mark.parametrize("method", ["lora", "full", "prefix"])
def test_results_of_another_base_are_refused(method: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    trainable = attach(model, TrainConfig(method=method, prefix_text="Hello there"), 0)  # type: ignore[arg-type]
    folder = tmp_path / trainable.folder
    trainable.save(folder)
    trainable.detach()
    load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)
    own = json.loads((folder / "tuneloop.json").read_text())
    (folder / "tuneloop.json").write_text(json.dumps({**own, "base_fingerprint": "other"}))
    with pytest.raises(UserError, match="another base model"):
        load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)


def test_a_folder_without_a_result_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No adapter and no model"):
        load_trained(load_model(str(tiny_llama), dtype="float32"), tmp_path)
