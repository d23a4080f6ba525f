"""What a machine does to a run: no memory, no disk, a request to end. The run goes on, or says what it has kept."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from train_helpers import CONFIG, begin, changed, losses, make_rows, run

from tuneloop.core.errors import UserError
from tuneloop.core.files import read_jsonl
from tuneloop.models.load import Model, load_model
from tuneloop.training.batches import Step, halved
from tuneloop.training.checkpoint import list_checkpoints
from tuneloop.training.loss import LOSSES
from tuneloop.training.run import Preempted
from tuneloop.training.speed import measure_speed
from tuneloop.training.step import optimizer_step


def limited(monkeypatch: pytest.MonkeyPatch, rows: int, message: str = "CUDA out of memory. Tried to allocate") -> None:
    """A device on which no more than some rows fit into a backward pass."""
    real = LOSSES["supervised"]

    def value(batch: Any) -> Any:
        if torch.is_grad_enabled() and len(batch.rows) > rows:
            raise RuntimeError(message)
        return real.value(batch)

    monkeypatch.setitem(LOSSES, "supervised", LOSSES["supervised"].__class__(value, real.units))


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate",
        "DefaultCPUAllocator: can't allocate memory",
        "could not create a primitive",
    ],
)
def test_when_memory_runs_out_the_step_is_done_in_smaller_parts_with_the_same_result(
    message: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(epochs=1.0, dropout=0.0)
    whole, _ = run(tiny_llama, tmp_path / "whole", config)
    limited(monkeypatch, 2, message)
    said: list[dict[str, Any]] = []
    cut, _ = run(tiny_llama, tmp_path / "cut", config, log=said.append)
    events = [r for r in said if r.get("event") == "out_of_memory"]
    assert len(events) == 1, "once told, later steps begin in smaller parts"
    assert "micro-batches of 2 rows instead of 4 from step 1 on" in events[0]["message"]
    assert events == [r for r in read_jsonl(tmp_path / "cut" / "metrics.jsonl") if "event" in r]
    for a, b in zip(
        losses(tmp_path / "whole"), [x for x in losses(tmp_path / "cut") if x[1:] != (None, None)], strict=True
    ):
        assert [x for x in a if x is not None] == pytest.approx([x for x in b if x is not None], rel=1e-4)
    assert cut.best_val_loss == pytest.approx(whole.best_val_loss, rel=1e-4)


def test_a_row_that_does_not_fit_alone_is_told_and_other_faults_pass_through(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tiny_model.template, 4)
    step = Step(((0, 1, 2, 3),), 0.0)
    limited(monkeypatch, 0)
    state = begin(tiny_model)
    with pytest.raises(UserError, match=r"Out of memory at step 1: a single row of \d+ tokens does not fit") as error:
        optimizer_step(state, step, rows, 1e-3)
    assert "data.max_length=" in error.value.next_step
    limited(monkeypatch, 0, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes"):
        optimizer_step(state, step, rows, 1e-3)


def test_the_speed_is_measured_in_what_fits_and_a_row_that_does_not_is_told(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(tiny_model.template, 8)
    limited(monkeypatch, 1, "DefaultCPUAllocator: can't allocate memory")
    assert measure_speed(tiny_model, rows, CONFIG, 0, seconds=0.01) > 0
    limited(monkeypatch, 0)
    with pytest.raises(
        UserError, match=r"Out of memory while measuring the speed: a single row of \d+ tokens"
    ) as error:
        measure_speed(tiny_model, rows, CONFIG, 0, seconds=0.01)
    assert "data.max_length=" in error.value.next_step


def test_halving_keeps_every_row() -> None:
    step = Step(((0, 1, 2), (3,), (4, 5)), 0.5)
    assert halved(step).micro_batches == ((0,), (1, 2), (3,), (4,), (5,))
    with pytest.raises(ValueError, match="single rows"):
        halved(halved(halved(step)))


def test_a_request_to_end_saves_and_exits_with_its_own_status(tiny_llama: Path, tmp_path: Path) -> None:
    def log(record: dict[str, Any]) -> None:
        if record["step"] == 5 and "loss" in record:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    config = changed(checkpoint_seconds=1e6)  # only the request can have saved it
    with pytest.raises(Preempted) as ended:
        run(tiny_llama, tmp_path / "cut", config, log=log)
    assert ended.value.code == 143 and ended.value.step == 5
    assert signal.getsignal(signal.SIGTERM) == before
    assert list_checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "step-0000005.pt"
    again, _ = run(tiny_llama, tmp_path / "cut", config)
    whole, _ = run(tiny_llama, tmp_path / "whole", config)
    assert again.resumed_at == 5 and again.adapter_hash == whole.adapter_hash
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_one_row_is_enough(tiny_llama: Path, tmp_path: Path) -> None:
    result, _ = run(tiny_llama, tmp_path, changed(epochs=4.0), rows=1)
    assert result.steps == result.total_steps == 4


def test_the_loss_of_other_work_is_measured_beside_the_tasks(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_llama), dtype="float32")
    general = make_rows(model.template, 5, system="Something else.")
    run(tiny_llama, tmp_path, changed(epochs=1.0), general=general)
    records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "val_loss" in r]
    assert len(records) > 2 and all(r["general_loss"] > 0 for r in records)
    assert len({r["general_loss"] for r in records}) == len(records)
