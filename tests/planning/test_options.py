"""The planner's table: cards of one's own, jobs that do not fit, micro-batches, what more GPUs do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import manifest_json

from tuneloop.core.errors import UserError
from tuneloop.planning.catalogue.gpus import all_gpus, find_gpu, own_card
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import memory_of
from tuneloop.planning.options import plan_machines


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TUNELOOP_LEDGER", str(tmp_path / "ledger.jsonl"))


def plan(**asked: Any) -> dict[str, Any]:
    return plan_machines({"model": "llama-3.2-3b", "method": "lora", "grad_ckpt": True, **asked})


def job(gpus: int = 1, **asked: Any) -> TrainingSetup:
    name = asked.pop("model", "llama-3.1-8b")
    return make_job(**{"model": name, "shape": find_model(name)[1], "gpu": find_gpu("h100-sxm"), "gpus": gpus,
                       "sharding": "fsdp" if gpus > 1 else "none", **asked})  # fmt: skip


def test_the_plan_of_a_processor_speaks_of_no_gpu() -> None:
    found = plan(model="smollm2-135m", gpu="cpu")
    assert "$0.05 an hour (this machine, assumed)" in found["assumptions"]
    assert not [line for line in found["assumptions"] if "GPU" in line or "on-demand" in line]
    assert any("an hour and GPU" in line for line in plan(gpu="l40s")["assumptions"])


@pytest.mark.parametrize("key", list(all_gpus()))
def test_a_card_of_one_s_own_with_a_listed_card_s_figures_gives_its_plan(key: str) -> None:
    card = all_gpus()[key]
    same = {"gpu_memory": card.gib, "gpu_tflops": card.tflops, "gpu_bandwidth": card.gb_s, "usd_per_gpu_hour": 1.5}
    asked: dict[str, Any] = {"gpus": 1, "dtype": "bf16" if card.bf16 else "fp16"}
    own, listed = plan(**asked, **same), plan(**asked, gpu=key, usd_per_gpu_hour=1.5)
    for part in ("memory", "time", "cost", "fits"):
        left, right = own[part], listed[part]
        if part == "cost":
            left, right = ({k: v for k, v in x.items() if k != "assumptions"} for x in (left, right))
        assert left == right, part


def test_a_card_of_12_gb_is_planned_with_its_price_and_its_link() -> None:
    found = plan(method="qlora", gpu_memory=12, gpu_tflops=29, gpu_bandwidth=360, usd_per_gpu_hour=0.2, gpus=1)
    assert found["fits"] and found["memory"]["capacity_gib"] == 12
    assert found["cost"]["breakdown"]["training"] == pytest.approx(0.2 * found["time"]["hours"], rel=0.05)
    assert "nearest listed card" in " ".join(found["assumptions"]) and "your own" in found["recommendation"]
    usual, bridged = (
        plan(gpu="rtx3090", gpus=2, sharding="fsdp", model="llama-3.1-8b", **link) for link in ({}, {"gpu_link": 56})
    )
    assert bridged["time"]["tokens_per_second"] > 1.5 * usual["time"]["tokens_per_second"]
    assert bridged["gpu"] == "rtx3090" and bridged["cost"]["usd"] is not None  # its price is known


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"gpu_memory": 12.0}, "needs its memory and its speed"),
        ({"gpu_tflops": 29.0}, "needs its memory and its speed"),
        ({"gpu_memory": -1.0, "gpu_tflops": 29.0}, "--gpu-memory is -1"),
        ({"gpu_memory": float("nan"), "gpu_tflops": 29.0}, "--gpu-memory is nan"),
        ({"gpu_memory": 12.0, "gpu_tflops": 0.0}, "--gpu-tflops is 0"),
        ({"gpu_memory": 12.0, "gpu_tflops": 29.0, "gpu_bandwidth": 1e9}, "--gpu-bandwidth"),
        ({"gpu_memory": 12.0, "gpu_tflops": 29.0, "gpu_link": 0.0}, "--gpu-link is 0"),
        ({"gpu_memory": 12.0, "gpu_tflops": 29.0, "usd_per_gpu_hour": -1.0}, "price of no GPU"),
        ({"usd_per_gpu_hour": 1.0}, "price of no GPU"),
        ({"gpu": "cpu", "gpu_memory": 12.0}, "not a GPU"),
    ],
)
def test_figures_of_no_card_are_refused_with_a_way_on(figures: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        plan(**figures)
    assert caught.value.next_step


def test_what_is_not_said_of_a_card_is_as_of_the_nearest_listed_one() -> None:
    old = own_card(None, memory=16, tflops=120, bandwidth=900)
    assert not old.bf16 and not old.flash and old.matmul == all_gpus()["v100-16gb"].matmul
    assert own_card("rtx4090", memory=48).gb_s == all_gpus()["rtx4090"].gb_s


def test_a_job_that_does_not_fit_has_no_time_and_no_cost_but_a_way_on() -> None:
    found = plan(model="llama-3.1-8b", method="full", gpu="l4", grad_ckpt=False)
    assert not found["fits"] and found["alternatives"]
    assert (
        found["time"]["hours"] is None and found["time"]["tokens_per_second"] is None and not found["time"]["breakdown"]
    )
    assert found["cost"]["usd"] is None and not found["cost"]["breakdown"]
    for row in found["table"]:
        assert (row["usd"] is None and row["hours"] is None) or row["fits"]
    assert not [line for line in found["assumptions"] if "$" in line]


@pytest.mark.parametrize(
    ("asked", "change"),
    [
        ({"grad_ckpt": True, "micro_batch": 2, "seq_len": 4096, "grad_accum": 8}, "--loss-kernel fused"),
        ({"grad_ckpt": True, "sharding": "ddp"}, "--sharding fsdp"),
        ({"grad_ckpt": False}, "--grad-ckpt"),
    ],
)
def test_70b_on_sixteen_gpus_is_told_what_makes_it_fit(asked: dict[str, Any], change: str) -> None:
    found = plan(model="llama-3.1-70b", method="full", gpu="a100-80gb", gpus=16, **asked)
    assert not found["fits"] and found["alternatives"][0]["change"] == change
    assert found["table"][0]["fits_with"] == change


@given(
    method=st.sampled_from(["full", "lora", "qlora", "prefix"]), kernel=st.sampled_from(["eager", "triton", "fused", "tuneloop"]),
    ckpt=st.booleans(), rows=st.integers(1, 6), length=st.integers(16, 2048), rank=st.integers(1, 128),
)  # fmt: skip
def test_memory_grows_with_rows_length_rank_and_model_and_not_with_gpus(
    method: str, kernel: str, ckpt: bool, rows: int, length: int, rank: int
) -> None:
    usual: dict[str, Any] = {
        "method": method, "loss_kernel": kernel, "grad_ckpt": ckpt, "micro_batch": rows, "seq_len": length, "rank": rank,
    }  # fmt: skip

    def needs(gpus: int = 1, **changed: Any) -> tuple[float, float]:
        memory = memory_of(job(gpus, **{**usual, **changed}))
        return memory.peak, memory.required

    def grows(less: tuple[float, float], more: tuple[float, float]) -> bool:
        return all(b >= a - 1e-9 for a, b in zip(less, more, strict=True))

    base = needs()
    assert grows(base, needs(micro_batch=rows + 1)) and grows(base, needs(seq_len=length + 64))
    assert grows(base, needs(rank=rank + 8)) and grows(base, needs(model="llama-3.1-70b"))
    assert grows(needs(model="llama-3.2-3b"), base)
    assert grows(needs(4), needs(2)) and grows(needs(8), needs(4))


def test_the_micro_batch_is_the_one_that_the_loop_takes() -> None:
    from tuneloop.planning import options as usual
    from tuneloop.training.batches import tokens_at_once
    from tuneloop.training.config import TrainConfig

    assert TrainConfig().rows_per_step == usual.LOOP_ROWS
    assert tokens_at_once(TrainConfig(method="lora")) == usual.LOOP_TOKENS
    assert [usual.loop_rows(length) for length in (10, 256, 300, 1100, 4096)] == [8, 8, 6, 1, 1]
    assert plan(gpu="h100-sxm", seq_len=256)["settings"]["micro_batch"] == 8
    assert plan(gpu="h100-sxm", seq_len=256, micro_batch=2)["settings"]["micro_batch"] == 2


def test_short_rows_go_as_fast_as_the_card_lets_them(tmp_path: Path) -> None:
    tokens = {"total": 300_000, "mean": 60.0, "p50": 50, "p90": 110, "max": 300}
    (tmp_path / "dataset.json").write_text(json.dumps(manifest_json(splits={"train": {"tokens": tokens}})))

    def speed(gpu: str, **asked: Any) -> float:
        return float(plan(model="llama-3.1-8b", dataset=str(tmp_path), gpu=gpu, **asked)["time"]["tokens_per_second"])

    speeds = [speed(gpu) for gpu in ("rtx4090", "l40s", "h100-sxm")]
    assert len(set(speeds)) == 3 and max(speeds) > 1.2 * min(speeds)
    assert speed("h100-sxm", micro_batch=1) < speed("h100-sxm", micro_batch=4) < speeds[2]
    assert (
        plan(model="llama-3.1-8b", dataset=str(tmp_path), gpu="h100-sxm")["settings"]["micro_batch"] == 6
    )  # of 300 tokens
