"""TensorBoard gets every step and the scores."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tracked_run import add_steps, finish_run, scalars, with_trackers

from patience import HANG
from tuneloop import track


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX is not installed")
def test_tensorboard_has_every_step_of_a_continued_run_once_and_the_scores(project: Path) -> None:
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    track.start_tracking(with_trackers("tensorboard"), run, warn=warnings.append).finish("KILLED", timeout=HANG)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:10]))
    add_steps(run, 11, 30)
    finish_run(run)
    track.start_tracking(with_trackers("tensorboard"), run, warn=warnings.append).finish(timeout=HANG)
    shown = scalars(run / "tensorboard")
    assert warnings == []
    assert [step for step, _ in shown["train/loss"]] == list(range(1, 31))
    assert shown["val/loss"] == [(20, pytest.approx(0.1)), (30, pytest.approx(2 / 30))]
    assert shown["test/accuracy"] == [(0, pytest.approx(0.9))] and shown["usage/minutes"] == [(0, 1.5)]
