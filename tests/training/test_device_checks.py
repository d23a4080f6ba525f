"""The self-test finds a device that computes as the processor does right, says what is wrong, and the planner takes its speeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretend_gpu import Card, pretend_gpu
from tuneloop.core.files import write_json
from tuneloop.models.load import SIZES
from tuneloop.planning.catalogue.gpus import find_gpu
from tuneloop.training import device_checks as self_test


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: Path) -> None:
    from tuneloop.models.files import names

    monkeypatch.setattr(self_test, "measured_file", lambda: tmp_path / "device.json")
    monkeypatch.setattr("tuneloop.planning.catalogue.gpus.measured_file", lambda: tmp_path / "device.json")
    assert names.resolve("smollm2-135m") == smollm2


@pytest.mark.nightly
@pytest.mark.slow
def test_on_the_processor_nothing_is_wrong(tmp_path: Path) -> None:
    checks = self_test.self_test()
    assert {check.name for check in checks if check.status != "ok"} <= set(), [c for c in checks if c.status != "ok"]
    assert len(checks) > 12
    written = json.loads((tmp_path / "device.json").read_text())
    assert written["tflops"] > 0 and written["gb_s"] > 0


@pytest.mark.parametrize("name", ["lora, padded", "lora, packed"])
def test_a_device_that_computes_right_is_ok_and_one_that_does_not_is_wrong(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuneloop.models.nn import llama

    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    folder = self_test.small_llama(tmp_path / "model")
    with pretend_gpu():
        assert self_test._gradient(folder, name, {}).status == "ok"
    right = llama._by_kernel

    def wrong(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return right(q, k, v, bias) * 1.1

    monkeypatch.setattr(llama, "_by_kernel", wrong)  # the processor attends by plain products
    with pretend_gpu():
        assert self_test._gradient(folder, name, {}).status == "wrong"


def test_what_a_driver_says_is_a_line_of_the_table() -> None:
    def fails() -> self_test.DeviceCheck:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    def missing() -> self_test.DeviceCheck:
        raise NotImplementedError("aten::x is not implemented for MPS")

    assert self_test._guarded("a", fails) == self_test.DeviceCheck(
        "a", "wrong", "RuntimeError: CUDA error: no kernel image is available"
    )
    assert self_test._guarded("b", missing).status == "not supported"


def test_the_planner_takes_the_measured_speeds_of_that_card_alone(tmp_path: Path) -> None:
    write_json(tmp_path / "device.json", {
        "version": 1, "date": "2026-11-26T00:00:00", "name": "NVIDIA L4", "tflops": 60.5, "gb_s": 250, "host_gb_s": 20,
    })  # fmt: skip
    card = find_gpu("l4")
    assert (card.gb_s, card.host_gb_s, card.tflops * card.matmul) == (250, 20, pytest.approx(60.5))
    assert "measured here" in card.share_of
    assert find_gpu("l4", measured=False).gb_s == 300
    assert find_gpu("a10g").gb_s == 600


def test_slow_links_and_memory_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    with pretend_gpu(Card("NVIDIA L4", 22.49, (8, 9))):
        found = self_test._speed_checks("cuda", {"tflops": 70.0, "gb_s": 60.0, "host_gb_s": 20.0})
    assert [(check.name, check.status) for check in found] == [
        ("matrix products", "ok"), ("memory", "slow"), ("from the host", "ok"),
    ]  # fmt: skip


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "1b", {**SIZES["1b"], "num_hidden_layers": 2})
    monkeypatch.setattr(self_test, "STEPS", 1)


def test_a_step_is_measured_next_to_the_plan(two_layers: None) -> None:
    with pretend_gpu(values=False):
        checks = {check.name: check for check in self_test._step_checks("cuda")}
    assert checks["memory of a step"].status == "ok", checks
    assert "tokens/s of LoRA on 384M parameters" in checks["speed of a step"].detail
    (alone,) = self_test._step_checks("cpu")
    assert alone.status == "ok" and "planned" in alone.detail


def test_a_plan_that_is_far_off_is_said(two_layers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "planned_step", lambda *given, **settings: (1.0, 1.0))
    with pretend_gpu(values=False):
        checks = {check.name: check for check in self_test._step_checks("cuda")}
    assert checks["memory of a step"].status == "wrong" and "1.00 planned" in checks["memory of a step"].detail
