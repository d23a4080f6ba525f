"""Layers are left out where they change least, and the smaller model computes what its layers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from six_layers import write_six_layers

from tuneloop.combine.distill.command import layers_to_drop, write_pruned
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.models.load import Model, load_model

TEXTS = [[5, 17, 300, 41], [8, 9, 1000]]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return write_six_layers(tmp_path_factory.mktemp("six"), tiny_llama)


@pytest.fixture
def model(six: Path) -> Model:
    return load_model(str(six), dtype="float32")


def hidden(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.hidden(torch.tensor([TEXTS[0]]))


def test_the_layers_that_change_least_go_and_the_rest_computes_nearly_the_same(
    six: Path, model: Model, tmp_path: Path
) -> None:
    found = layers_to_drop(model, TEXTS, 4)
    assert found.dropped == (2, 3) and found.of == 6 and 0 <= found.distance < 0.05
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((six / name).read_bytes())
    state = load_file(six / "model.safetensors")
    write_pruned(read_json(six / "config.json"), state, state.__getitem__, found, tmp_path)
    student = load_model(str(tmp_path), dtype="float32")
    assert read_json(tmp_path / "config.json")["num_hidden_layers"] == 4
    kept = load_file(tmp_path / "model.safetensors")
    assert torch.equal(kept["model.layers.2.mlp.up_proj.weight"], state["model.layers.4.mlp.up_proj.weight"])
    assert torch.equal(kept["model.layers.1.mlp.up_proj.weight"], state["model.layers.1.mlp.up_proj.weight"])
    whole, cut = hidden(model), hidden(student)
    assert (whole - cut).norm() < 0.05 * whole.norm()
    worse = found.model_copy(update={"dropped": (1, 2)})
    write_pruned(read_json(six / "config.json"), state, state.__getitem__, worse, tmp_path)
    assert (whole - hidden(load_model(str(tmp_path), dtype="float32"))).norm() > 2 * (whole - cut).norm()


@pytest.mark.parametrize("layers", [1, 6, 9])
def test_a_student_has_fewer_layers_and_at_least_two(layers: int, model: Model) -> None:
    with pytest.raises(UserError, match="can't be made"):
        layers_to_drop(model, TEXTS, layers)
