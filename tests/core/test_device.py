"""What differs between devices stands in one place, and says what it is asked for the device in use."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from places import ROOT
from pretend_gpu import Card, Gpu, pretend_gpu
from tuneloop.core import device, machine
from tuneloop.core.errors import UserError

# Who asks torch for a kind of device.
ASKS = re.compile(r"torch\.(?:cuda|xpu|mps)\b|is_cuda\b|\.backends\.mps")


def test_nothing_else_asks_whether_there_is_a_gpu() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "src").rglob("*.py")
        if path.name != "device.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ASKS.search(line) and "max_memory_allocated)" not in line  # words of a table
    ]
    assert not found


def test_before_torch_is_loaded_the_device_is_the_processor() -> None:
    code = "import sys; from tuneloop.core import device; print(device.backend().kind, device.names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu", "[]", "False"]


@pytest.mark.parametrize(("cards", "loaded"), [([], False), (["NVIDIA L4"], True)])
def test_torch_is_loaded_for_the_names_of_gpus_only_where_there_are_some(cards: list[str], loaded: bool) -> None:
    code = (
        f"import sys; from tuneloop.core import device, machine; machine.cards = lambda: {cards}; "
        "print(device.names_in_use() == device.names(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(loaded)]


def test_on_a_gpu_memory_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"peak": 7 * machine.GIB}
    cuda = SimpleNamespace(
        is_available=lambda: True, memory_allocated=lambda: 3 * machine.GIB, max_memory_allocated=lambda: state["peak"],
        reset_peak_memory_stats=lambda: state.update(peak=3 * machine.GIB), device_count=lambda: 1,
        mem_get_info=lambda: (70 * machine.GIB, 79 * machine.GIB), get_device_name=lambda i: "NVIDIA H100 80GB HBM3",
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, backends=None))
    assert (device.memory_now(), device.peak_memory(), device.capacity()) == (3, 7, 79)
    device.reset_peak_memory()
    assert device.peak_memory() == 3
    assert machine.memory_capacity() != 79  # the host's


@pytest.mark.parametrize(
    ("card", "dtype"),
    [
        (Card("Tesla T4", 14.74, (7, 5)), "float16"),
        (Card("NVIDIA A10G", 22.06, (8, 6)), "bfloat16"),
        (Card("NVIDIA H100 80GB HBM3", 79.11, (9, 0)), "bfloat16"),
    ],
)
def test_a_card_computes_in_what_it_multiplies_natively(card: Card, dtype: str) -> None:
    with pretend_gpu(card):
        assert device.in_use() == "cuda"
        assert str(device.default_dtype()) == f"torch.{dtype}"
        assert device.needs_scaling(device.default_dtype()) == (dtype == "float16")
        assert device.names() == [card.name]
        assert device.capacity() == pytest.approx(card.gib, abs=0.01)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    with pretend_gpu() as made:
        yield made


def test_the_environment_chooses_device_and_dtype(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_DEVICE", "cpu")
    monkeypatch.setenv("TUNELOOP_DTYPE", "float32")
    assert device.backend().is_cpu
    assert str(device.default_dtype()) == "torch.float32"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TUNELOOP_DEVICE", "tpu", "no kind of device 'tpu'"),
        ("TUNELOOP_DEVICE", "xpu", "torch sees no xpu device here"),
        ("TUNELOOP_DTYPE", "int8", "can't be computed in 'int8'"),
    ],
)
def test_what_is_not_there_is_refused(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401 - only with it a device is looked for

    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        device.default_dtype()
        device.in_use()


def test_memory_that_is_used_is_counted_and_comes_back(gpu: Gpu) -> None:
    import torch

    before = device.memory_now()
    held: Any = torch.zeros(1 << 20, device="cuda")
    assert device.memory_now() - before == pytest.approx(4 / 1024)
    del held
    device.release_memory()
    assert device.memory_now() == before
    assert device.peak_memory() >= before + 4 / 1024
    device.reset_peak_memory()
    assert device.peak_memory() == before


@pytest.mark.parametrize(
    "text", ["CUDA out of memory.", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
              "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory"],
)  # fmt: skip
def test_memory_that_ran_out_is_known_in_all_its_words(text: str) -> None:
    assert device.is_out_of_memory(RuntimeError(text))
    assert not device.is_out_of_memory(RuntimeError("shapes do not match"))


def test_random_numbers_go_on_where_they_were() -> None:
    import torch

    state = device.random_state()
    drawn = torch.rand(3)
    device.set_random_state(state)
    assert torch.equal(torch.rand(3), drawn)
    device.set_random_state(state["cpu"])  # a checkpoint of before GPUs had a state
    assert torch.equal(torch.rand(3), drawn)
