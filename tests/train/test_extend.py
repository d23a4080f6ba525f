"""A new method and a new loss are a function and a row in a table: the examples do it in under 40 lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from test_preferences import preferences
from train_helpers import changed, make_rows

from places import ROOT
from tuneloop import train
from tuneloop.core.files import read_jsonl
from tuneloop.models.load import load_model
from tuneloop.records.rows import Message, Row
from tuneloop.train.loss import LOSSES
from tuneloop.train.methods import METHODS

FOLDER = ROOT / "examples" / "extend"


def example(name: str) -> Any:
    path = FOLDER / f"{name}.py"
    assert len(path.read_text().splitlines()) < 40
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_loss_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be supervised, dpo or kto"):
        changed(loss="orpo")
    monkeypatch.setitem(LOSSES, "orpo", LOSSES["dpo"])  # taken out again at the end
    example("new_loss")
    model = load_model(str(tiny_llama), dtype="float32")
    rows = preferences(model, 12, "dpo")
    result = train(model, rows, rows[:4], changed(loss="orpo", learning_rate=5e-3), tmp_path)
    assert result.best_val_loss < result.first_val_loss - 0.5


def test_a_method_of_your_own(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="must be full, lora, qlora or prefix"):
        changed(method="norms")
    monkeypatch.setitem(METHODS, "norms", METHODS["full"])
    example("new_method")
    model = load_model(str(tiny_llama), dtype="float32")
    rows = make_rows(model.template, 12)
    result = train(model, rows, rows[:4], changed(method="norms", learning_rate=5e-2), tmp_path)
    assert result.trainable_parameters == 5 * 64
    assert result.best_val_loss < result.first_val_loss - 0.2


def test_rows_of_a_data_set_can_be_given_as_they_are(tiny_llama: Path, tmp_path: Path) -> None:
    turns: list[Message] = [{"role": "user", "content": "Which drawer?"}, {"role": "assistant", "content": "red"}]
    rows = [Row(str(i), turns) for i in range(8)]
    model = load_model(str(tiny_llama), dtype="float32")
    given = train(model, rows, rows[:2], changed(epochs=1), tmp_path / "rows")
    steps = [r for r in read_jsonl(tmp_path / "rows" / "metrics.jsonl") if "loss" in r]
    assert sorted(i for r in steps for i in r["rows"]) == list(range(8))
    rendered = [model.template.render(turns)] * 8
    model = load_model(str(tiny_llama), dtype="float32")
    assert (
        train(model, rendered, rendered[:2], changed(epochs=1), tmp_path / "rendered").adapter_hash
        == given.adapter_hash
    )
