"""The benchmark of GPUs runs on a processor with a tiny model, and says of a card what the planner and a roofline expect."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from places import ROOT
from tuneloop.planning.catalogue.gpus import find_gpu


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # it imports Transformers and PEFT
def test_engines_train_the_same_model_and_their_first_losses_agree(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STEP_TOKENS", 512)
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    for method in ("lora", "full"):
        item, other = (bench.measured(bench.Case("tiny", method, 128, engine, 0.05)) for engine in ("tuneloop", "peft"))
        assert item["loss"] == pytest.approx(other["loss"], rel=1e-4), method
        assert item["tokens_per_second"] > 0 and other["peak_gib"] > 0 and item["planned_gib"] > 0


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_four_bits_are_measured_and_what_is_missing_is_said(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STEP_TOKENS", 256)
    found = bench.measured(bench.Case("tiny", "qlora", 128, seconds=0.05))
    assert found["loss"] > 0 and "error" not in found
    monkeypatch.setitem(bench.PACKAGES, "liger", ("no_such_package",))
    assert bench.measured(bench.Case("tiny", "lora", 128, "liger"))["error"] == "not installed: no_such_package"


def test_answers_are_measured_and_what_is_missing_is_said(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "NEW", 4)
    found = bench.written(bench.Writing("tiny", 2, "tuneloop"))
    assert found["decode_tokens_per_second"] > 0 and found["scored_rows_per_second"] > 0
    monkeypatch.setitem(bench.PACKAGES, "vllm", ("no_such_package",))
    assert bench.written(bench.Writing("tiny", 2, "vllm"))["error"] == "not installed: no_such_package"


def test_a_card_that_is_not_there_has_expected_figures(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bench.SIZES, "8b", {**bench.SIZES["8b"], "num_hidden_layers": 2})
    options = ["--expected", "h100-sxm", "--sizes", "8b", "--methods", "lora", "--lengths", "2048"]
    bench.main([*options, "--json", str(tmp_path / "lines.json")])
    (found,) = json.loads((tmp_path / "lines.json").read_text())
    assert found["fits"] and 0.2 < found["roofline_mfu"] < 0.7 and found["launches"] > 100
    assert "roofline MFU" in capsys.readouterr().out


def test_recomputing_adds_the_forward_pass_to_the_launches(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**bench.SIZES["1b"], "num_hidden_layers": 2}
    monkeypatch.setitem(bench.SIZES, "1b", config)
    case, card = bench.Case("1b", "lora", 256), find_gpu("h100-sxm")
    plain, again = (bench.launches_of(case, 2, recompute) for recompute in (False, True))
    hidden, tokens, learned = config["hidden_size"], 2 * 256, 2 * 255
    weights = hidden * (2 * hidden + 2 * 8 * 64 + 3 * config["intermediate_size"])
    # 2 a weight and token; the last product of a layer is not needed for its gradient, and is computed all the same.
    assert again.flop["wide"] - plain.flop["wide"] == pytest.approx(2 * tokens * 2 * weights, rel=0.02)
    assert plain.flop["wide"] > 4 * learned * hidden * config["vocab_size"]
    assert again.count > plain.count
    assert plain.seconds(card) >= bench.LAUNCH * plain.count
