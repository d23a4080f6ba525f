"""A new method and a new loss are a function and a row in a table: the examples do it in under 40 lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from test_preferences import preferences
from train_helpers import changed, make_rows

from tuneloop.models.load import load_model
from tuneloop.train.loop import train
from tuneloop.train.loss import LOSSES, Loss
from tuneloop.train.methods import METHODS

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "extend"


def example(name: str) -> Any:
    path = FOLDER / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loss_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "dpo", Loss(example("new_loss").orpo))
    model = load_model(str(tiny_llama), dtype="float32")
    rows = preferences(model, 12, "dpo")
    result = train(model, rows, rows[:4], changed(loss="dpo", learning_rate=5e-3), tmp_path)
    assert result.best_val_loss < result.first_val_loss - 0.5


def test_a_method_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "full", example("new_method").norms)
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 12)
    result = train(model, rows, rows[:4], changed(method="full", learning_rate=5e-2), tmp_path)
    assert result.trainable_parameters == 5 * 64
    assert result.best_val_loss < result.first_val_loss - 0.2
    assert (tmp_path / "model" / "model.safetensors").is_file()
