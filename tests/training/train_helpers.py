"""Small conversations and runs on the tiny Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.files import read_jsonl
from tuneloop.models.chat.template import Rendered, Template
from tuneloop.models.load import Model, load_model
from tuneloop.records.plan import MeasuredMachine
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.loop import TrainingJob, train
from tuneloop.training.methods import attach
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.rows import PreferencePair, UnpairedAnswer, _mismatched
from tuneloop.training.run import TrainingRun

SYSTEM = "You sort letters into drawers, with care, and answer with the drawer's name alone."

CONFIG = TrainConfig(
    rank=2, alpha=4, learning_rate=5e-3, epochs=2, rows_per_step=4, tokens_per_step=0, evaluations=4, patience=99
)


def changed(**updates: Any) -> TrainConfig:
    """CONFIG with other settings, checked."""
    return TrainConfig.model_validate({**CONFIG.model_dump(), **updates})


def make_rows(template: Template, n: int, *, offset: int = 0, system: str = SYSTEM) -> list[Rendered]:
    rows = []
    for i in range(offset, offset + n):
        turns: list[Any] = [
            {"role": "user", "content": f"Letter {i}: " + "please answer soon " * (i % 5)},
            {"role": "assistant", "content": ["red", "blue drawer", "green"][i % 3]},
        ]
        rows.append(template.render(([{"role": "system", "content": system}] if system else []) + turns))
    return rows


def losses(folder: Path) -> list[tuple[int, Any, Any]]:
    return [(r["step"], r.get("loss"), r.get("val_loss")) for r in read_jsonl(folder / "metrics.jsonl")]


def run(
    folder: Path,
    out: Path,
    config: TrainConfig = CONFIG,
    *,
    seed: int = 0,
    rows: int = 24,
    data_id: str = "d",
    dtype: str = "float32",
    measured: MeasuredMachine = MeasuredMachine(),
    general: Any = (),
    **other: Any,
) -> Any:
    model = load_model(str(folder), dtype=dtype)
    splits = [
        for_loss(made, config.loss)
        for made in (make_rows(model.template, rows), make_rows(model.template, 8, offset=100))
    ]
    job = TrainingJob(data_id=data_id, measured=measured, general=general)
    return train(model, *splits, config, out, seed=seed, job=job, **other), model


def halted(folder: Path, out: Path, at: int, config: TrainConfig = CONFIG, **other: Any) -> None:
    """A run that ends in step `at`, after a checkpoint at every step before."""

    class Stop(Exception):
        pass

    def log(record: dict[str, Any]) -> None:
        if record["step"] >= at and "loss" in record:
            raise Stop

    with pytest.raises(Stop):
        run(folder, out, config.model_copy(update={"checkpoint_seconds": 0.0}), log=log, **other)


def for_loss(rows: list[Rendered], loss: str) -> list[Any]:
    """The rows as the loss needs them, the answer of the row before as the other one."""
    if loss == "supervised":
        return list(rows)
    others = [_mismatched(row, rows[i - 1]) for i, row in enumerate(rows)]
    if loss == "dpo":
        return [PreferencePair(*both) for both in zip(rows, others, strict=True)]
    return [UnpairedAnswer(row, other, i % 2 == 0) for i, (row, other) in enumerate(zip(rows, others, strict=True))]


def begin(model: Model, config: TrainConfig = CONFIG, rows: Any = (), **other: Any) -> TrainingRun:
    """A run before its first step, which writes nothing."""
    trainable = attach(model, config, 0, rows)
    return TrainingRun(
        model, config, trainable, make_optimizer(trainable, config), State("key"), Path("nowhere"), **other
    )
