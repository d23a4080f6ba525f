"""What serving takes: sizes are those of files that people know, and speed follows the roofline."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tuneloop.cli.main import main
from tuneloop.core.machine import GIB
from tuneloop.planning.catalogue.gpus import find_gpu, this_cpu
from tuneloop.planning.catalogue.shape import find_model
from tuneloop.planning.serve import FORMATS, ServingFit, cache_bytes, plan_serving, weight_bytes

# llama.cpp's tools/quantize/README.md (Llama 3.1 8B and 70B), and files on the hub.
KNOWN_GIB = {
    "llama-3.1-8b": {"f16": 14.96, "q8_0": 7.95, "q6_k": 6.14, "q5_k_m": 5.33, "q4_k_m": 4.58},
    "llama-3.1-70b": {"f16": 131.42, "q8_0": 69.82, "q6_k": 53.91, "q5_k_m": 46.51, "q4_k_m": 39.60},
    "smollm2-135m": {
        "f16": 0.2523,
        "q4_k_m": 0.0982,
    },  # with 1.7 MB of vocabulary; K-quants fall back at a width of 576
}


@pytest.mark.parametrize("model", KNOWN_GIB)
def test_files_have_the_sizes_that_llama_cpp_writes(model: str) -> None:
    shape = find_model(model)[1]
    kinds = {kind.name: kind for kind in FORMATS}
    for name, gib in KNOWN_GIB[model].items():
        assert weight_bytes(shape, kinds[name]) / GIB == pytest.approx(gib, rel=0.02 if shape.tied else 0.005), name


def asked(model: str, gpu: str, context: int = 8192, concurrency: int = 16) -> dict[str, ServingFit]:
    found = plan_serving(find_model(model)[1], [find_gpu(gpu, measured=False)], context, concurrency)
    return {match.format: match for match in found}


def test_memory_holds_weights_and_the_keys_and_values_of_all_requests() -> None:
    shape = find_model("llama-3.1-8b")[1]
    assert cache_bytes(shape, 1) == 131_072, "2 x 32 layers x 1,024 wide x 2 bytes"
    found = asked("llama-3.1-8b", "h100-sxm")["f16"]
    assert (found.gpus, found.fits, found.cache_gib) == (1, True, 16.0)
    assert found.weights_gib + found.cache_gib + 0.6 < found.peak_gib < found.weights_gib + found.cache_gib + 1.2
    assert asked("llama-3.1-8b", "h100-sxm", concurrency=32)["f16"].cache_gib == 32.0


def test_speed_is_bound_by_reading_for_one_and_gains_by_many() -> None:
    item = asked("llama-3.1-8b", "h100-sxm", 1024)
    # 3,350 GB/s of which 80 % are reached, over 15.0 GB that are read without the embedding's table
    assert item["f16"].one == pytest.approx(2680 / 15.1, rel=0.1)
    assert (item["q4_k_m"].one or 0) > 2 * (item["f16"].one or 0) and (item["fp8"].one or 0) > 1.6 * (
        item["f16"].one or 0
    )
    assert 12 * (item["f16"].one or 0) < (item["f16"].all or 0) <= 16 * (item["f16"].one or 0)
    many = asked("llama-3.1-8b", "h100-sxm", 1024, 4096)["f16"]
    assert many.gpus == 8 and (many.all or 0) < 4096 * (many.one or 0) / 3, "products bound many requests"


def test_as_many_gpus_as_hold_it_and_only_vllm_is_faster_on_several() -> None:
    found = asked("llama-3.1-70b", "h100-sxm", 4096, 8)
    assert [found[name].gpus for name in ("f16", "q8_0", "q4_k_m")] == [2, 2, 1]
    shape, gpu = find_model("llama-3.1-70b")[1], find_gpu("h100-sxm", measured=False)
    eight = {item.format: item for item in plan_serving(shape, [gpu], 4096, 8, 8)}
    assert (eight["f16"].one or 0) > 2 * (found["f16"].one or 0)
    assert eight["q8_0"].one == pytest.approx(found["q8_0"].one)
    small = {item.format: item for item in plan_serving(shape, [replace(gpu, gib=8.0)], 4096, 8)}
    assert not small["f16"].fits and small["f16"].all is None
    here = {item.format: item for item in plan_serving(find_model("smollm2-135m")[1], [this_cpu()], 1024, 1)}
    assert here["fp8"].one is None and here["f16"].engine == "llama.cpp" and (here["q8_0"].one or 0) > 1


def test_the_command_shows_every_gpu_and_refuses_what_makes_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--serve", "--model", "llama-3.3-70b", "--concurrency", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {item["machine"] for item in said["served"]} >= {"h100-sxm", "l4", "cpu"} and said["context"] == 8192
    assert main(["plan", "--serve", "--model", "llama-3.1-8b", "--gpu", "l40s"]) == 0
    out = capsys.readouterr().out
    assert "l40s" in out and "prompt tokens/s" in out and "assumed: " in out
    for text, message in (
        (["--serve"], "No model is named"),
        (["--serve", "-m", "llama-3.1-8b", "--rank", "8"], "--rank has no meaning with --serve"),
        (["--serve", "-m", "llama-3-8b", "--context", "9000"], "reads 8,192 tokens"),
        (["--serve", "-m", "llama-3-8b", "--concurrency", "0"], "--concurrency"),
        (["--serve", "-m", "llama-3-8b", "--gpu", "h1000"], "No GPU named"),
    ):
        assert main(["plan", *text]) == 2
        assert message in capsys.readouterr().err
