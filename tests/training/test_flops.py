"""Operations are counted as the formula says, and the share of the peak follows from them."""

from __future__ import annotations

import time

import pytest
import torch

from patience import slowness
from tuneloop.models.chat.template import Rendered
from tuneloop.training.flops import matmul_peak, needed_gflop, utilisation

CONFIG = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2}  # fmt: skip
LAYER = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128  # q and o, k and v, the feed-forward part
ROW = Rendered(list(range(10)), [0] * 6 + [1] * 4)


@pytest.mark.parametrize(("method", "passes"), [("lora", 4), ("prefix", 4), ("full", 6)])
def test_matrices_cost_by_method_and_the_head_by_learned_tokens(method: str, passes: int) -> None:
    matrices = passes * (2 * LAYER * 10 + 1000 * 64 * 4)
    attention = 3 * 2 * 10 * 10 * 64 * 2  # forward and twice that backward, half of it masked, two layers
    assert needed_gflop(CONFIG, method, [ROW]) == pytest.approx((matrices + attention) / 1e9)
    assert needed_gflop(CONFIG, method, [ROW] * 3) == pytest.approx(3 * (matrices + attention) / 1e9)


def test_utilisation_counts_the_rows_of_the_steps_and_the_seconds_of_the_steps() -> None:
    records = [{"step": 0, "val_loss": 3.0}, {"step": 1, "loss": 2.0, "rows": [0, 1], "tokens": 20, "tokens_per_second": 40.0},
               {"step": 2, "loss": 2.0, "rows": [1], "tokens": 10, "tokens_per_second": 20.0}]  # fmt: skip
    found = utilisation(CONFIG, "lora", [ROW, ROW], records, peak=1.0)
    assert found is not None
    assert found["step_seconds"] == 1.0
    assert found["value"] == pytest.approx(needed_gflop(CONFIG, "lora", [ROW] * 3))
    assert "2 a weight and token" in found["definition"]
    busy_peak = utilisation(CONFIG, "lora", [ROW, ROW], records, peak=0.5 * found["value"])
    assert busy_peak and busy_peak["value"] is None and busy_peak["step_seconds"] == 1.0


def test_without_steps_or_for_other_architectures_there_is_none() -> None:
    assert utilisation(CONFIG, "lora", [ROW], [{"step": 0, "val_loss": 1.0}], 1.0) is None
    records = [{"step": 1, "loss": 2.0, "rows": [0], "tokens": 10, "tokens_per_second": 10.0}]
    assert utilisation({"n_embd": 64, "n_layer": 2}, "lora", [ROW], records, 1.0) is None


def test_the_peak_is_a_plausible_speed_in_the_dtype_that_models_have_here() -> None:
    assert 1 < matmul_peak(seconds=0.1) < 1e7


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_that_is_slow_here_is_measured_as_quickly(dtype: torch.dtype) -> None:
    start = time.perf_counter()
    assert 1e-3 < matmul_peak(dtype, seconds=0.1) < 1e7
    assert time.perf_counter() - start < 3 * slowness()  # products of fixed size take a minute without native bf16
