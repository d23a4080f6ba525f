"""Threads follow what other programs leave of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import changed, run

import tuneloop.training.loop as loop
from tuneloop.core import threads
from tuneloop.core.files import read_jsonl

CORES = 4


class Machine:
    """A machine of four cores: how long this thread has waited for one, and how fast each thread count is."""

    def __init__(self) -> None:
        self.now, self.waited, self.measurements = 100.0, 0.0, 0
        self.rates = {4: 4.0, 2: 2.0, 1: 1.0}

    def compute(self, seconds: float, waiting: float) -> int:
        """The thread count after so many seconds of work, of which so large a share was spent waiting for a core."""
        for _ in range(int(10 * seconds)):
            self.now += 0.1
            self.waited += 0.1 * waiting
            threads.adapt_threads()
        return torch.get_num_threads()

    def rate(self, count: int) -> float:
        self.measurements += 1
        torch.set_num_threads(count)
        return self.rates[count]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    before, machine = torch.get_num_threads(), Machine()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: CORES)
    monkeypatch.setattr(threads, "_watched", threads._Watched())
    monkeypatch.setattr(threads, "_rate", machine.rate)
    monkeypatch.setattr(threads, "_seconds_waited", lambda: machine.waited)
    monkeypatch.setattr(threads.time, "monotonic", lambda: machine.now)
    threads.use_threads()
    yield machine
    torch.set_num_threads(before)


def test_a_quiet_machine_computes_with_all_cores_and_measures_nothing(machine: Machine) -> None:
    assert machine.compute(60, waiting=0.0) == CORES
    assert machine.measurements == 0


def test_a_busy_machine_computes_with_the_fastest_count_within_seconds(machine: Machine) -> None:
    machine.rates = {4: 0.1, 2: 1.5, 1: 1.0}
    assert machine.compute(3, waiting=0.5) == 2


def test_all_cores_are_used_again_when_the_others_have_gone(machine: Machine) -> None:
    machine.rates = {4: 0.1, 2: 0.1, 1: 1.0}
    assert machine.compute(3, waiting=0.5) == 1
    machine.rates = {4: 4.0, 2: 2.0, 1: 1.0}
    assert machine.compute(threads.MEASURE_EVERY + 2, waiting=0.0) == CORES


def test_counts_that_are_about_as_fast_leave_all_cores(machine: Machine) -> None:
    machine.rates = {4: 1.0, 2: 1.1, 1: 1.0}
    assert machine.compute(3, waiting=0.5) == CORES


def test_measuring_takes_little_of_a_busy_hour(machine: Machine) -> None:
    machine.compute(3600, waiting=0.5)
    assert machine.measurements * threads.TURN < 0.03 * 3600


def test_a_count_that_the_user_set_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    machine.rates = {4: 0.1, 2: 1.5, 1: 1.0}
    assert threads.use_threads() == 3
    assert machine.compute(60, waiting=0.9) == 3


def test_the_time_that_this_thread_waits_for_a_core_is_read_from_the_system() -> None:
    waited = threads._seconds_waited()
    assert waited is None or waited >= 0.0
    assert threads.fastest_threads() >= 1


def test_losses_are_the_same_with_any_thread_count_but_for_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    losses = []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            result, _ = run(tiny_llama, tmp_path / str(count), changed(epochs=1), rows=16)
        finally:
            torch.set_num_threads(before)
        losses.append(result.best_val_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_run_says_when_its_thread_count_changes(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    real = loop.optimizer_step

    def step(run: Any, *arguments: Any) -> Any:
        torch.set_num_threads(2 if run.state.step >= 3 else 1)
        return real(run, *arguments)

    monkeypatch.setattr(loop, "optimizer_step", step)
    torch.set_num_threads(1)
    try:
        run(tiny_llama, tmp_path, changed(epochs=1))
    finally:
        torch.set_num_threads(before)
    events = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if line.get("event") == "threads"]
    assert [(line["step"], line["message"]) for line in events] == [
        (4, "computes with 2 threads from here, not with 1")
    ]
