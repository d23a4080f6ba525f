"""Bytes that live at most in a step on a pretended GPU, at the sizes of Llama 3, next to what the planner says of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretend_gpu import Card, pretend_gpu
from tuneloop.models.adapters.lora import target_names
from tuneloop.models.chat.template import Rendered
from tuneloop.models.load import SIZES, random_model
from tuneloop.models.methods.shipped import method_named
from tuneloop.models.nn.shape import ModelShape
from tuneloop.planning.at_hand import RunWork, loop_job
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.memory import memory_of
from tuneloop.training.batches import Step
from tuneloop.training.checkpoint import State
from tuneloop.training.config import TrainConfig
from tuneloop.training.methods import attach, recompute_layers
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.run import TrainingRun
from tuneloop.training.step import optimizer_step

bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
MOST_OFF = 0.08
TEMPLATE: Any = SimpleNamespace(pad_id=0, end_ids=(0,))
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A step: the model's size, how many of its layers, rows and their length, micro-batches, the share of supervised positions."""

    size: str
    settings: dict[str, Any]
    layers: int = 2
    rows: int = 1
    length: int = 2048
    recompute: bool = False
    kept: int = 0  # layers that are not computed again
    micro_batches: int = 1
    supervised: float = 1.0
    marks: Any = field(default=())

    @property
    def name(self) -> str:
        text = "+".join(str(value) for value in self.settings.values())
        again = ", recomputed" if self.recompute else ""
        again += f" but {self.kept}" if self.kept else ""
        return f"{self.size} of {self.layers} layers, {text}, {self.micro_batches} of {self.rows}x{self.length}{again}"


def gib_of_a_step(case: Case) -> float:
    """Most GiB of tensors at a time in the second step, when the optimizer's states are there."""
    config = TrainConfig.model_validate({**case.settings, "learning_rate": 1e-4})
    with pretend_gpu(Card(gib=4000), values=False) as gpu:
        sizes = {**SIZES[case.size], "num_hidden_layers": case.layers}
        model = random_model(sizes, TEMPLATE, dtype=torch.bfloat16, prepare=method_named(config.method).prepare)
        asked = round(case.length * (1 - case.supervised))
        row = Rendered([1] * case.length, [0] * asked + [1] * (case.length - asked))
        rows = [row] * (case.rows * case.micro_batches)
        trainable = attach(model, config, 0, rows)
        recompute_layers(model.net, case.recompute, case.kept)
        run = TrainingRun(model, config, trainable, make_optimizer(trainable, config), State("key"), Path("nowhere"))
        micros = (tuple(range(i * case.rows, (i + 1) * case.rows)) for i in range(case.micro_batches))
        step = Step(tuple(micros), 0.0)
        optimizer_step(run, step, rows, 1e-4)
        gpu.clear()
        optimizer_step(run, step, rows, 1e-4)
        return gpu.peak / GIB


def gib_planned(case: Case) -> float:
    config = TrainConfig.model_validate(case.settings)
    sizes = {**SIZES[case.size], "num_hidden_layers": case.layers}
    tokens = case.rows * case.length * case.micro_batches
    work = RunWork(1, tokens, round(case.supervised * tokens), 0, ((case.rows, case.length, 0),), case.micro_batches)
    job = loop_job(
        ModelShape.from_config(sizes), work, gpu=find_gpu("h100-sxm", measured=False), model="m", method=config.method,
        rank=config.rank, targets=target_names(_net(sizes), config.targets), prefix_tokens=config.prefix_tokens,
        optimizer=config.optimizer, optimizer_in_backward=config.optimizer_in_backward, grad_ckpt=case.recompute, kept_layers=case.kept,
        dropout=config.dropout > 0, dora=config.dora,
    )  # fmt: skip
    return memory_of(job).peak


def _net(sizes: dict[str, Any]) -> Any:
    from tuneloop.models.nn.llama import Llama, LlamaConfig

    with torch.device("meta"):
        return Llama(LlamaConfig.from_json({**sizes, "num_hidden_layers": 1}))


LORA, QLORA, PREFIX, FULL = ({"method": name} for name in ("lora", "qlora", "prefix", "full"))
CASES = [
    Case("8b", LORA),
    Case("8b", LORA, rows=8, length=512, supervised=0.1),
    Case("8b", LORA, length=8192, recompute=True),
    Case("8b", LORA, layers=4, recompute=True, kept=2),
    Case("8b", LORA, rows=2, length=1024, micro_batches=2),
    Case("8b", {**LORA, "targets": "attention"}),
    Case("8b", {**LORA, "dropout": 0.1}),
    Case("8b", {**LORA, "dropout": 0.1}, recompute=True),
    Case("8b", {**LORA, "dora": True}),
    Case("8b", QLORA, marks=bits),
    Case("8b", QLORA, length=8192, recompute=True, marks=bits),
    Case("8b", PREFIX),
    Case("8b", PREFIX, rows=2, length=4096, recompute=True),
    Case("8b", FULL, recompute=True),
    Case("8b", {**FULL, "optimizer": "adamw-8bit"}, rows=2, length=1024, micro_batches=2),
    Case("8b", {**FULL, "optimizer_in_backward": True}),
    Case("70b", LORA, recompute=True),
    Case("70b", QLORA, recompute=True, marks=bits),
    Case("70b", PREFIX),
    Case("70b", {**FULL, "optimizer": "adamw-8bit"}, recompute=True),
    Case("1b", FULL, rows=4),
    Case("8b", LORA, layers=32, marks=pytest.mark.slow),
    Case("70b", QLORA, layers=6, length=8192, recompute=True, marks=[bits, pytest.mark.slow]),
]


@pytest.mark.nightly
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=case.marks) for case in CASES])
def test_a_step_takes_what_the_planner_says(case: Case) -> None:
    assert gib_planned(case) == pytest.approx(gib_of_a_step(case), rel=MOST_OFF)
