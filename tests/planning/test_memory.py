"""The memory model: against published runs, and as a formula."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_runs import read_points

from tuneloop.core.errors import UserError
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.job import TrainingSetup, make_job
from tuneloop.planning.memory import QUANT_BYTES, memory_of, weight_bytes
from tuneloop.planning.speed import SPREAD, speed_of

POINTS = sorted((Path(__file__).parent / "points").glob("*.yaml"))
GIB = 1024**3


def job(model: str = "llama-3.1-8b", gpu: str = "a100-80gb", **settings: Any) -> TrainingSetup:
    return make_job(model=model, shape=find_model(model)[1], gpu=find_gpu(gpu), **settings)


def errors(half: str) -> tuple[list[float], list[float], list[tuple[bool, bool, float]]]:
    """Errors of peaks and of speeds, and for each fit what was predicted, what was, and what was required of the capacity."""
    memory: list[float] = []
    speed: list[float] = []
    fits: list[tuple[bool, bool, float]] = []
    for point in (point for path in POINTS for point in read_points(path) if point.half == half):
        predicted = memory_of(point.job)
        if point.gib:
            memory.append(predicted.peak / point.gib - 1)
        if point.tokens_per_second:
            speed.append(speed_of(point.job).tokens_per_second / point.tokens_per_second - 1)
        if point.gib or not point.fits:
            fits.append((predicted.fits, point.fits, predicted.required / predicted.capacity))
    return memory, speed, fits


def meets_what_is_promised(half: str, peaks: float = 0.9, median: float = 0.03, under: float = 0.05) -> None:
    """Peaks within 8 %, at the median, and 5 % too low; fits right and none false outside of 3 %; speed within 20 %, and in the range that a plan gives."""
    memory, speed, fits = errors(half)
    print(
        f"\n{half}: {len(memory)} peaks, {share(memory, 0.08):.0%} within 8 %; {len(speed)} speeds, {share(speed, 0.2):.0%}"
    )
    assert statistics.median(map(abs, memory)) <= median
    assert share(memory, 0.08) >= peaks
    assert sum(error < -0.05 for error in memory) <= under * len(memory)
    assert sum(said == was for said, was, _ in fits) >= 0.95 * len(fits)
    assert not [of for said, was, of in fits if said and not was and of < 0.97]
    assert share(speed, 0.2) >= 0.8
    assert sum(1 / SPREAD <= 1 + error <= SPREAD for error in speed) >= 0.8 * len(speed)


def share(values: list[float], limit: float) -> float:
    return sum(abs(value) <= limit for value in values) / len(values)


def reserve_errors(half: str, *, varied: bool = False) -> list[float]:
    points = [
        point for path in POINTS for point in read_points(path) if point.half == half and point.job.varied is varied
    ]
    found = [error for point in points if (error := point.reserve_error) is not None]
    print(f"\n{half}: {len(found)} reserves, {share(found, 0.08):.0%} within 8 %")
    return found


def test_published_runs_that_constants_were_fitted_to_are_met() -> None:
    meets_what_is_promised("fit", under=0.06)


def test_published_runs_that_nothing_was_fitted_to_are_met() -> None:
    meets_what_is_promised("held out")


def test_runs_first_predicted_blind_do_not_get_worse() -> None:
    # docs/plan.md has the figures of the first look: 12.0 % at the median, 35 % within 8 %.
    meets_what_is_promised("blind", peaks=0.65, median=0.055, under=0.3)


@pytest.mark.parametrize(
    ("half", "within", "low", "median"),
    # Of the blind ones, two sources that shard frozen weights are up to 49 % too low, which is not explained.
    [("fit", 0.9, 0.08, 0.03), ("held out", 0.9, 0.08, 0.03), ("blind", 0.55, 0.35, 0.055)],
)
def test_what_nvidia_smi_and_the_allocator_showed_is_met(half: str, within: float, low: float, median: float) -> None:
    found = reserve_errors(half)
    assert statistics.median(map(abs, found)) <= median
    assert share(found, 0.08) >= within
    assert sum(error < -0.05 for error in found) <= low * len(found)


@pytest.mark.parametrize("half", ["fit", "held out"])
def test_rows_of_ever_new_lengths_keep_more_blocks_and_are_met_less_well(half: str) -> None:
    found = reserve_errors(half, varied=True)
    assert abs(statistics.median(found)) <= 0.07 and statistics.median(map(abs, found)) <= 0.12
    even, uneven = (memory_of(job(method="lora", grad_ckpt=True, varied=varied)) for varied in (False, True))
    assert uneven.reserved > even.reserved and (uneven.peak, uneven.required) == (even.peak, even.required)


def test_what_a_run_must_have_is_the_card_that_it_just_fits() -> None:
    points = [point for path in POINTS for point in read_points(path) if point.card_gib]
    errors = [memory_of(point.job).required / (point.card_gib or 1) - 1 for point in points]
    assert len(errors) >= 7 and max(map(abs, errors)) < 0.08 and statistics.median(map(abs, errors)) < 0.05


def test_blocks_that_are_kept_are_those_of_the_phases_that_can_not_share() -> None:
    def reserved(**settings: Any) -> float:
        return memory_of(job(**{"model": "llama-3.2-1b", "grad_ckpt": True, "micro_batch": 8, **settings})).reserved

    usual = memory_of(job("llama-3.2-1b", method="full", grad_ckpt=True, micro_batch=8))
    alone = {phase: sum(terms.values()) for phase, terms in usual.phases.items()}
    assert usual.reserved > max(alone.values()) + usual.context  # one phase's blocks do not serve all of another
    assert usual.reserved < sum(alone.values())
    assert reserved(method="full", loss_kernel="fused") < reserved(method="full")
    assert reserved(method="lora", loss_kernel="fused") < reserved(method="lora", loss_kernel="triton")
    shared = {"method": "full", "gpus": 8, "sharding": "fsdp"}
    assert reserved(**shared) < reserved(method="full")
    short = memory_of(job("llama-3.2-1b", "l4", method="full", loss_kernel="fused", grad_ckpt=True, micro_batch=8))
    assert short.fits and short.reserved <= short.capacity  # blocks are given back where memory is short


def test_a_run_keeps_its_half_whatever_was_measured(tmp_path: Path) -> None:
    def halves(measured: float) -> list[str]:
        rows = [{"rank": 2**power, "gib": measured} for power in range(9)]
        settings = {"gpu": "a100-80gb", "model": "llama-3-8b", "method": "lora"}
        path = tmp_path / "points.yaml"
        path.write_text(json.dumps({"half": "split", "defaults": settings, "points": rows}), encoding="utf-8")
        return [point.half for point in read_points(path)]

    assert halves(10.0) == halves(12.0)
    assert set(halves(10.0)) == {"fit", "held out"}


def test_bitsandbytes_without_checkpointing_keeps_inputs_and_a_head_in_fp32_its_logits() -> None:
    def held(**settings: Any) -> float:
        return sum(memory_of(job(**{"method": "qlora", "seq_len": 512, **settings})).phases["loss"].values())

    assert held() > held(loss_kernel="compiled") + 1  # torchao frees them
    kept = memory_of(job(method="qlora", seq_len=512)).phases["loss"]["activations"]
    assert kept > memory_of(job(method="lora", seq_len=512)).phases["loss"]["activations"] + 1
    bf16, fp32 = (memory_of(job(method="qlora", grad_ckpt=True, head_fp32=wide)) for wide in (False, True))
    assert fp32.phases["loss"]["logits"] > bf16.phases["loss"]["logits"]


def test_autocast_keeps_what_it_cast_until_the_loss_or_the_backward_pass() -> None:
    def phases(**settings: Any) -> dict[str, dict[str, float]]:
        return memory_of(job(**{"method": "full", "seq_len": 512, **settings})).phases

    shape = job().shape
    casts = 2 * (shape.matrix_parameters + shape.embedding) / GIB
    assert phases(dtype="mixed")["loss"]["cast weights"] == pytest.approx(casts)
    assert "cast weights" in phases(dtype="mixed")["layer backward"]
    assert "cast weights" not in phases(dtype="mixed", grad_ckpt=True)["layer backward"]
    assert phases(method="lora", dtype="mixed", grad_ckpt=True)["loss"]["cast weights"] < casts / 20
    shared = {"sharding": "fsdp", "gpus": 8}  # which casts what it gathers, unless autocast is asked for
    assert "cast weights" not in phases(dtype="mixed", **shared)["loss"]
    assert "cast weights" in phases(dtype="autocast", **shared)["loss"]
    stream = [phases(dtype=dtype)["loss"]["layer inputs"] for dtype in ("bf16", "mixed")]
    assert stream[1] == 2 * stream[0]


def test_nf4_takes_the_bits_of_its_paper() -> None:
    assert QUANT_BYTES["nf4"] * 8 == pytest.approx(4.5)
    assert QUANT_BYTES["nf4-dq"] * 8 == pytest.approx(4.127, abs=1e-3)
    plain, double = (weight_bytes(job(method="qlora", quant=quant)) for quant in ("nf4", "nf4-dq"))
    assert plain - double == pytest.approx(job().shape.matrix_parameters * (4.5 - 4.127) / 8, rel=1e-2)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "prefix"])
def test_the_peak_is_the_largest_phase_and_its_terms_add_up(method: str) -> None:
    memory = memory_of(job(method=method, grad_ckpt=True))
    sums = {phase: sum(terms.values()) for phase, terms in memory.phases.items()}
    assert memory.peak == pytest.approx(max(sums.values()))
    assert sums[memory.phase] == max(sums.values())
    assert memory.peak <= memory.required <= memory.reserved
    everything = {name: gib for terms in memory.phases.values() for name, gib in terms.items()}
    assert memory.peak < sum(everything.values())


@given(
    method=st.sampled_from(["full", "lora", "qlora", "prefix"]),
    kernel=st.sampled_from(["eager", "compiled", "triton", "chunked", "fused"]),
    seq=st.sampled_from([128, 1024, 4096]),
    rows=st.integers(1, 8),
)
def test_more_never_takes_less(method: str, kernel: str, seq: int, rows: int) -> None:
    usual = {"method": method, "loss_kernel": kernel, "seq_len": seq, "micro_batch": rows}
    peak = memory_of(job(**usual)).peak
    assert memory_of(job(**{**usual, "micro_batch": rows + 1})).peak >= peak
    assert memory_of(job(**{**usual, "seq_len": 2 * seq})).peak >= peak
    assert memory_of(job(**usual, grad_ckpt=True)).peak <= peak
    assert memory_of(job(**usual, attention="eager")).peak >= peak
    assert memory_of(job("llama-3.1-70b", **usual)).peak > peak


def test_128256_words_are_counted_and_a_fused_loss_drops_them() -> None:
    tokens = 8192
    usual = {"method": "lora", "seq_len": tokens, "grad_ckpt": True}
    logits = memory_of(job(**usual, loss_kernel="triton")).phases["loss"]["logits"]
    assert logits == pytest.approx(4 * tokens * 128_256 * 2 / GIB)
    assert memory_of(job(**usual, loss_kernel="fused")).phases["loss"]["logits"] < logits / 10


def test_sharding_divides_what_it_says() -> None:
    def terms(sharding: str, gpus: int) -> dict[str, float]:
        return memory_of(job(method="full", sharding=sharding, gpus=gpus)).phases["optimizer step"]

    alone = memory_of(job(method="full")).phases["optimizer step"]
    assert terms("fsdp", 8)["weights"] == pytest.approx(alone["weights"] / 8)
    assert terms("ddp", 8)["weights"] == alone["weights"]
    assert terms("ddp", 8)["reduction buckets"] == terms("ddp", 8)["gradients"]
    assert terms("zero2", 8)["weights"] == alone["weights"]
    assert terms("zero2", 8)["gradients"] == pytest.approx(alone["gradients"] / 8)
    rests = [
        memory_of(job(method="full", loss_kernel="tuneloop", sharding=sharding, gpus=gpus)).phases["loss"]["what rounding takes from the weights"]
        for sharding, gpus in (("none", 1), ("ddp", 8), ("fsdp", 8))
    ]  # fmt: skip
    assert rests == pytest.approx([rests[0], rests[0], rests[0] / 8])


@pytest.mark.parametrize(
    ("method", "settings", "fits"),
    [
        ("lora", {}, True),
        ("qlora", {}, True),
        ("full", {"grad_ckpt": True}, False),  # 12 bytes a parameter
        ("full", {"grad_ckpt": True, "optimizer": "adamw-8bit"}, True),  # 8
    ],
)
def test_70b_fits_on_eight_cards_of_80_gb_in_our_loop(method: str, settings: dict[str, Any], fits: bool) -> None:
    made = job("llama-3.1-70b", "h100-sxm", method=method, gpus=8, sharding="fsdp", loss_kernel="tuneloop", **settings)
    assert memory_of(made).fits is fits


def test_paged_states_and_offloaded_ones_take_nothing() -> None:
    for settings in ({"optimizer": "paged-adamw-8bit"}, {"offload": True}):
        assert "optimizer" not in memory_of(job(method="full", **settings)).phases["optimizer step"]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"method": "full", "quant": "nf4"}, "quantised"),
        ({"sharding": "fsdp"}, "two GPUs"),
        ({"gpus": 4}, "share the work"),
        ({"dtype": "fp32", "attention": "flash"}, "FlashAttention"),
        ({"optimizer_in_backward": True, "grad_accum": 2}, "accumulate"),
        ({"method": "loraa"}, "Unknown method"),
        ({"micro_batch": 0}, "micro batch"),
        ({"seq_len": -5}, "seq len"),
        ({"seq_len": 500_000}, "positions"),
        ({"rank": 10**9}, "rank"),
    ],
)
def test_what_can_not_be_is_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        job(**settings)
    assert caught.value.next_step


def test_a_giant_on_a_laptop_and_attention_that_a_card_lacks_are_refused() -> None:
    with pytest.raises(UserError, match="406 billion"):
        job("llama-3.1-405b", "cpu")
    with pytest.raises(UserError, match="T4"):
        job(gpu="t4", attention="flash", dtype="fp16")


def test_the_loops_attention_is_counted_in_the_loops_own_blocks() -> None:
    from tuneloop.models.nn import llama
    from tuneloop.planning import memory

    assert memory.OWN_QUERY_BLOCK == llama.QUERY_BLOCK
    for length in (40, 128, 256, 500):
        kept = sum((block.stop - block.start) * block.stop for block in llama.query_blocks(length))
        assert memory._causal(length) == pytest.approx(kept, rel=0.01)
