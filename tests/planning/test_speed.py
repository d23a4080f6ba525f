"""What the time of a step is made of."""

from __future__ import annotations

from typing import Any

import pytest

from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.speed import flop_per_token, speed_of


def job(model: str = "llama-3.1-8b", gpu: str = "a100-80gb", **settings: Any) -> TrainingSetup:
    return make_job(model=model, shape=find_model(model)[1], gpu=find_gpu(gpu), **settings)


def share(values: list[float], limit: float) -> float:
    return sum(abs(value) <= limit for value in values) / len(values)


def test_what_is_not_a_product_costs_bandwidth_and_narrow_layers_time() -> None:
    def share(model: str = "llama-3.1-8b", **settings: Any) -> float:
        return speed_of(job(model, **{"seq_len": 2048, "micro_batch": 4, **settings})).share

    assert share(loss_kernel="fused") > share(loss_kernel="eager") * 1.05
    assert share("llama-3.2-1b") < share() < share("llama-3.1-70b", grad_ckpt=True)
    assert share(method="qlora", head_fp32=True) < share(method="qlora") < share()
    assert share(attention="eager") < share(attention="sdpa")
    paged = {"method": "full", "optimizer": "paged-adamw-8bit", "optimizer_in_backward": True, "grad_ckpt": True}
    assert share(gpu="rtx4090", **paged) < share(gpu="rtx4090", **{**paged, "optimizer": "sgd"}) * 0.9
    assert share(gpu="h200", **paged) == pytest.approx(share(gpu="h200", **{**paged, "optimizer": "adamw-8bit"}))


def test_cards_that_can_not_read_each_other_s_memory_gain_less_from_company() -> None:
    def gain(gpu: str, gpus: int, **settings: Any) -> float:
        item = speed_of(job("llama-3.2-1b", gpu, method="full", seq_len=512)).tokens_per_second
        return (
            speed_of(job("llama-3.2-1b", gpu, method="full", seq_len=512, gpus=gpus, **settings)).tokens_per_second
            / item
        )

    for settings in ({"sharding": "ddp"}, {"sharding": "fsdp"}):
        assert gain("rtx4090", 2, **settings) < 1 < gain("a100-80gb", 2, **settings)
        assert gain("rtx4090", 2, **settings) < gain("rtx6000-ada", 2, **settings)
    lora = [
        speed_of(job("llama-3.1-8b", "rtx4090", micro_batch=4, gpus=gpus, sharding=how)).tokens_per_second
        for gpus, how in ((1, "none"), (2, "ddp"))
    ]
    assert lora[1] > 1.9 * lora[0]  # an adapter's gradients are small


def test_few_tokens_are_bound_by_reading_the_weights_and_by_launching() -> None:
    def speed(gpu: str, tokens: int) -> float:
        return speed_of(job("llama-3.1-8b", gpu, seq_len=tokens, loss_kernel="compiled")).tokens_per_second

    for gpu in ("l4", "rtx4090", "h100-sxm"):
        assert speed(gpu, 64) < speed(gpu, 256) < speed(gpu, 2048)
    assert speed("l4", 64) * 1.5 < speed("h100-sxm", 64)


def test_operations_are_those_of_the_method() -> None:
    shape = job().shape
    forward = 2 * (shape.matrix_parameters + shape.embedding)
    at = {m: flop_per_token(job(method=m, seq_len=1)) / forward for m in ("full", "lora", "prefix")}
    assert at["full"] == pytest.approx(3, rel=1e-2)
    assert at["lora"] == pytest.approx(2, rel=2e-2)
    assert at["prefix"] == pytest.approx(2, rel=1e-2)
    assert flop_per_token(job(grad_ckpt=True)) > flop_per_token(job())
