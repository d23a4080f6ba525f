"""Weights & Biases gets a run without network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tracked_run import add_steps, finish_run, with_trackers

from patience import HANG
from tuneloop import track


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_takes_a_run_offline(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 20)
    finish_run(run)
    track.start_tracking(with_trackers("wandb"), run, warn=warnings.append).finish(timeout=HANG)
    assert warnings == []
    (log,) = project.glob("wandb/offline-run-*/*.wandb")
    text = log.read_bytes()
    for name in (b"train/loss", b"val/loss", b"test/accuracy", b"usage/minutes", b"train.learning_rate"):
        assert name in text
