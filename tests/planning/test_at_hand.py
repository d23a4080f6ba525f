"""The planner's numbers against models whose sizes are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.models.nn.shape import ModelShape
from tuneloop.planning.at_hand import MachineAtHand, RunWork, estimate, loop_job, sizes_on_gpu
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup
from tuneloop.planning.memory import memory_of
from tuneloop.planning.speed import speed_of
from tuneloop.records.plan import MeasuredMachine

LLAMA_3_1_8B = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}  # fmt: skip
LLAMA_3_2_1B = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip
SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
           "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}  # fmt: skip

WORK = RunWork(
    steps=100, tokens=100_000, supervised=20_000, val_tokens=30_000, micro_batches=((8, 100, 0), (4, 200, 50))
)
ROOMY = MachineAtHand("cpu: test, 2 cores", 64.0, 1.0, 0.10, 500.0)


def plan(work: RunWork = WORK, machine: MachineAtHand = ROOMY, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": "m", "rank": 16, "targets": "all-linear"} | options
    return estimate(ModelShape.from_config(SMOLLM2), work, machine, **settings)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(LLAMA_3_1_8B, 8_030_261_248), (LLAMA_3_2_1B, 1_235_814_400), (SMOLLM2, 134_515_008)],
    ids=["llama-3.1-8b", "llama-3.2-1b", "smollm2-135m"],
)
def test_parameters_are_those_of_the_published_models(config: dict[str, Any], parameters: int) -> None:
    assert ModelShape.from_config(config).parameters == parameters


def test_a_configuration_without_a_number_is_named() -> None:
    with pytest.raises(UserError, match="intermediate_size") as caught:
        ModelShape.from_config({k: v for k, v in SMOLLM2.items() if k != "intermediate_size"}, "here/config.json")
    assert caught.value.where == "here/config.json"


def test_the_terms_add_up_to_the_peak() -> None:
    memory = plan()["memory"]
    assert sum(memory["terms"].values()) == pytest.approx(memory["peak_gib"], abs=0.002)
    assert memory["terms"]["weights and program (resident)"] == 1.0
    assert all(value > 0 for value in memory["terms"].values())


def test_memory_follows_the_largest_micro_batch_and_not_their_number() -> None:
    def activations(*micro_batches: tuple[int, int, int]) -> float:
        terms = plan(replace(WORK, micro_batches=micro_batches))["memory"]["terms"]
        return float(terms["activations"] + terms["layer inputs"])

    assert activations((8, 100, 0)) == activations((8, 100, 0), (1, 10, 0), (4, 100, 0))
    assert activations((16, 100, 0)) == pytest.approx(2 * activations((8, 100, 0)), rel=0.01)  # rows: linear
    assert activations((1, 680, 0)) > 2 * activations((1, 340, 0))  # length: attention grows faster
    assert activations((8, 100, 400)) < activations((8, 500, 0))  # a shared beginning is computed once


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ({"micro": (4, 128, 0)}, 0.47),
        ({"micro": (4, 128, 0), "rank": 64}, 0.67),
        ({"micro": (8, 128, 0)}, 0.83),
        ({"micro": (1, 800, 0)}, 0.62),
        ({"micro": (6, 128, 0), "targets": "q_proj,v_proj"}, 0.475),
        ({"micro": (8, 128, 0), "method": "full"}, 1.87),
        ({"micro": (4, 128, 0), "method": "full", "bytes_a_weight": 4}, 1.96),
        ({"micro": (10, 128, 0), "method": "prefix", "prefix_tokens": 20}, 0.71),
        ({"micro": (8, 128, 0), "method": "qlora"}, 1.00),
        ({"micro": (8, 64, 200)}, 0.63),
    ],
    ids=lambda v: str(v) if isinstance(v, float) else "+".join(f"{k}={x}" for k, x in v.items()),
)
def test_growth_of_tuneloops_own_runs_is_what_was_measured(settings: dict[str, Any], measured: float) -> None:
    # benchmarks/plan.py loop: smollm2-135m on one core, half of the positions supervised
    settings = dict(settings)
    rows, length, shared = settings.pop("micro")
    tokens = rows * length + shared
    found = plan(
        replace(WORK, tokens=tokens, supervised=tokens // 2, micro_batches=((rows, length, shared),)), **settings
    )
    assert found["memory"]["peak_gib"] - 1.0 == pytest.approx(measured, rel=0.1)  # 1.0 GiB is resident before


@pytest.mark.parametrize(
    ("model", "rows", "settings", "measured"),
    [
        ("gemma-3-270m", 128, {"method": "lora"}, 0.57),  # four norms a layer, and those of queries and keys
        ("gemma-3-270m", 96, {"method": "full"}, 3.30),  # a tied head of 262,144 tokens: its gradient in two dtypes
        ("qwen2.5-0.5b", 128, {"method": "qlora"}, 1.17),  # packed weights next to the file's, which is mapped
    ],
)
def test_growth_of_other_families_is_what_was_measured(
    model: str, rows: int, settings: dict[str, Any], measured: float
) -> None:
    # benchmarks/plan.py families: four rows a step on one processor
    work = RunWork(1, 4 * rows, 2 * rows, 0, ((4, rows, 0),))
    memory = memory_of(loop_job(find_model(model)[1], work, model=model, rank=16, targets="all-linear", **settings))
    assert memory.peak - memory.terms["weights"] == pytest.approx(measured, rel=0.06)


def test_a_full_run_is_planned_with_its_optimizer_and_with_the_gradients_of_earlier_micro_batches() -> None:
    def peak(work: RunWork = WORK, **settings: Any) -> float:
        return float(plan(work, method="full", **settings)["memory"]["peak_gib"])

    parameters = 134_515_008 / 1024**3
    several = replace(WORK, accumulated=4)
    assert peak(several) - peak() == pytest.approx(2 * parameters, rel=0.05)
    assert peak() - peak(optimizer="adamw-8bit") == pytest.approx(3.9 * parameters, rel=0.05)
    assert peak(several, optimizer_in_backward=True) == pytest.approx(peak(several), rel=0.02)
    assert peak(grad_ckpt=True) < peak()
    short = plan(method="full", machine=replace(ROOMY, capacity_gib=1.0))["alternatives"]
    assert short[0]["change"] == "train.optimizer=adamw-8bit"


def test_time_and_cost_follow_from_tokens_speed_and_price() -> None:
    found = plan()
    hours = (100_000 / 500 + 30_000 / 1250) / 3600
    assert found["time"]["hours"] == pytest.approx(hours)
    assert found["time"]["low"] < hours < found["time"]["high"]
    assert found["cost"]["usd"] == pytest.approx(hours * 0.10)
    assert found["cost"]["low"] < found["cost"]["usd"] < found["cost"]["high"]
    assert any("500 tokens/s" in line for line in found["assumptions"])


def test_a_plan_that_fits_needs_no_alternatives() -> None:
    found = plan()
    assert found["fits"] is True
    assert found["alternatives"] == []


def test_a_plan_that_does_not_fit_offers_settings_that_exist() -> None:
    from tuneloop.recipe import make_recipe

    found = plan(machine=replace(ROOMY, capacity_gib=1.0))
    assert found["fits"] is False
    assert found["alternatives"]
    for alternative in found["alternatives"]:
        make_recipe({}, [alternative["change"]])
        assert alternative["why"]


def test_plan_has_the_keys_of_its_contract() -> None:
    found = plan()
    assert {
        "version",
        "model",
        "method",
        "gpu",
        "gpus",
        "fits",
        "memory",
        "time",
        "cost",
        "assumptions",
        "alternatives",
    } <= set(found)
    assert {"peak_gib", "capacity_gib", "phase", "terms"} == set(found["memory"])
    assert {"hours", "low", "high", "tokens_per_second"} == set(found["time"])
    assert {"usd", "low", "high", "breakdown", "usd_per_hour"} == set(found["cost"])
    assert sum(found["cost"]["breakdown"].values()) == pytest.approx(found["cost"]["usd"]), (
        "a breakdown is parts of a sum"
    )
    json.dumps(found, allow_nan=False)
    assert found["gpus"] == 0
    assert plan(machine=replace(ROOMY, name="NVIDIA L4"))["gpus"] == 1


@pytest.mark.parametrize(
    ("called", "key"),
    [("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA A100-PCIE-40GB", "a100-40gb"), ("NVIDIA H100 80GB HBM3", "h100-sxm"),
     ("NVIDIA H100 PCIe", "h100-pcie"), ("Tesla T4", "t4"), ("NVIDIA L4", "l4"), ("NVIDIA A10G", "a10g"), ("NVIDIA L40S", "l40s"),
     ("NVIDIA GeForce RTX 4090", "rtx4090"), ("NVIDIA RTX A6000", "a6000"), ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"), ("NVIDIA RTX A5000", "a5000"), ("NVIDIA GeForce RTX 3060", "rtx3060"),
     ("NVIDIA GeForce RTX 4070 Ti", "rtx4070-ti"), ("NVIDIA GeForce RTX 5080", "rtx5080"), ("Tesla V100-SXM2-16GB", "v100-16gb"), ("Tesla V100-PCIE-32GB", "v100-32gb"), ("NVIDIA A10", "a10"), ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200")],
)  # fmt: skip
def test_gpus_are_known_by_what_their_driver_calls_them(called: str, key: str) -> None:
    assert find_gpu(called).key == key


# --- on GPUs


ONE_ROW = RunWork(steps=10, tokens=20_480, supervised=20_480, val_tokens=0, micro_batches=((1, 2048, 0),))


def rows_of_1024(tokens: int) -> RunWork:
    """Steps of 16 rows of 1,024 tokens, so many tokens at once."""
    return replace(ONE_ROW, micro_batches=((max(min(tokens // 1024, 16), 1), 1024, 0),))


def sizes(name: str, gib: float, method: str = "lora", may_recompute: bool = True, **more: Any) -> MeasuredMachine:
    card = MachineAtHand(name, gib, 0.0, 1.0, 1.0).card
    return sizes_on_gpu(
        ModelShape.from_config(LLAMA_3_1_8B), rows_of_1024, card, gib - 0.6, may_recompute=may_recompute,
        model="llama-3.1-8b", method=method, rank=16, targets="all-linear", **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("card", "gib", "method", "found"),
    [
        ("NVIDIA H100 80GB HBM3", 79.11, "lora", MeasuredMachine(8192)),
        # weights of 15 GiB: 2,048 tokens need 9 more, and a part of the layers is computed again
        ("NVIDIA GeForce RTX 4090", 23.52, "lora", MeasuredMachine(2048, True, 23)),
        ("NVIDIA GeForce RTX 4090", 23.52, "qlora", MeasuredMachine(2048)),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "lora", MeasuredMachine(4096)),
        ("NVIDIA H200", 139.81, "lora", MeasuredMachine(16384)),
    ],
)
def test_micro_batches_are_as_large_as_memory_allows(
    card: str, gib: float, method: str, found: MeasuredMachine
) -> None:
    assert sizes(card, gib, method) == found


def test_without_recomputing_fewer_tokens_are_computed_at_once() -> None:
    assert sizes("NVIDIA GeForce RTX 4090", 23.52, may_recompute=False) == MeasuredMachine(
        512, False
    )  # a row of 1,024 is one in either
    assert sizes("NVIDIA GeForce RTX 4090", 23.52, grad_ckpt=True) == MeasuredMachine(8192, True), (
        "all of them, as it was said"
    )


def test_layers_that_are_kept_take_their_memory_and_save_their_time() -> None:
    def job(**settings: Any) -> TrainingSetup:
        more = {
            "model": "llama-3.1-8b",
            "method": "lora",
            "rank": 16,
            "targets": "all-linear",
            "gpu": find_gpu("h100-sxm"),
        }
        return loop_job(ModelShape.from_config(LLAMA_3_1_8B), ONE_ROW, **more, **settings)

    none, half, all_again = job(), job(grad_ckpt=True, kept_layers=16), job(grad_ckpt=True)
    least, between, most = (memory_of(item).peak for item in (all_again, half, none))
    assert between == pytest.approx((least + most) / 2, rel=0.05)
    slow, middle, fast = (1 / speed_of(item).tokens_per_second for item in (all_again, half, none))
    assert middle == pytest.approx((slow + fast) / 2, rel=0.01) and fast < 0.85 * slow


def test_steps_that_are_small_are_not_said_to_be_large() -> None:
    card = MachineAtHand("NVIDIA H200", 139.81, 0.0, 1.0, 1.0).card
    found = sizes_on_gpu(
        ModelShape.from_config(LLAMA_3_2_1B), lambda tokens: rows_of_1024(min(tokens, 2048)), card, 139.0, may_recompute=True,
        model="llama-3.2-1b", method="lora", rank=16, targets="all-linear",
    )  # fmt: skip
    assert found == MeasuredMachine(2048, False)


def on_card(name: str, gib: float, resident: float, **settings: Any) -> dict[str, Any]:
    settings = {"model": "llama-3.1-8b", "rank": 16, "targets": "all-linear", "method": "lora"} | settings
    return estimate(
        ModelShape.from_config(LLAMA_3_1_8B), ONE_ROW, MachineAtHand(name, gib, resident, 1.0, 3000.0), **settings
    )


def test_lora_of_8b_fits_24_gib_where_layers_are_computed_again_and_qlora_as_it_is() -> None:
    assert not on_card("NVIDIA GeForce RTX 4090", 23.52, 14.96)["fits"]
    assert on_card("NVIDIA GeForce RTX 4090", 23.52, 14.96, grad_ckpt=True)["fits"]
    assert on_card("NVIDIA GeForce RTX 4090", 23.52, 5.4, method="qlora")["fits"]


@pytest.mark.parametrize(
    ("name", "gib", "fits"),
    [
        ("Tesla T4", 14.74, False),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, True),  # of no table
        ("NVIDIA Tomorrow 9000", 79.0, True),
        ("Tesla V100-SXM2-16GB", 15.77, False),
        ("NVIDIA H100 NVL", 93.58, True),
    ],
)
def test_any_card_is_planned_as_a_gpu(name: str, gib: float, fits: bool) -> None:
    found = on_card(name, gib, 14.96, grad_ckpt=True)
    assert (found["gpu"], found["gpus"], found["fits"]) == (name, 1, fits)
    assert found["memory"]["capacity_gib"] == pytest.approx(gib, abs=0.01)
    assert "libraries and heap" not in found["memory"]["terms"]  # a processor's


def test_several_gpus_hold_a_layer_of_the_others_parts() -> None:
    machine = MachineAtHand("NVIDIA A100-SXM4-40GB", 39.39, 14.96 / 4, 4.0, 8000.0, gpus=4)
    found = estimate(
        ModelShape.from_config(LLAMA_3_1_8B), ONE_ROW, machine, model="llama-3.1-8b", rank=16, targets="all-linear"
    )
    assert found["gpus"] == 4 and found["memory"]["terms"]["gathered weights"] > 1
