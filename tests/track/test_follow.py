"""The process that follows a run: what fails there never reaches the training."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracked_run import RECIPE, add_steps, needs_mlflow, scalars, with_trackers

from patience import HANG, slowness
from tuneloop import track
from tuneloop.track import follow, tracking


def test_a_follower_that_hangs_is_left_behind(project: Path) -> None:
    warnings = list[str]()
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    tracking.Tracking([tracking.Tracker(process, warnings.append)]).finish(timeout=0.5)
    assert time.monotonic() - started < 5 * slowness() and process.poll() is not None
    assert len(warnings) == 1


def test_a_follower_that_crashes_costs_one_warning(project: Path) -> None:
    warnings = list[str]()
    process = subprocess.Popen(
        [sys.executable, "-c", "raise SystemExit(3)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tracking.Tracking([tracking.Tracker(process, warnings.append)]).finish(timeout=HANG)
    assert len(warnings) == 1 and "status 3" in warnings[0]


@needs_mlflow
def test_a_tracker_that_fails_leaves_the_others_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    run, warnings = project / "runs/tickets-1", list[str]()
    add_steps(run, 1, 5)
    track.start_tracking(with_trackers("mlflow", "tensorboard", "wandb"), run, warn=warnings.append).finish(
        timeout=HANG
    )
    assert len(warnings) == 2
    assert "Weights & Biases is not installed" in warnings[0] and "MLflow could not be written" in warnings[1]
    assert len(scalars(run / "tensorboard")["train/loss"]) == 5


def test_figures_that_fail_to_be_written_are_tried_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.track import tensorboard

    run, seen = project / "runs/tickets-1", list[int]()
    settings = {"to": "tensorboard", "run": str(run), "config": RECIPE, "experiment": "e", "uri": "", "started": 0}
    follower = follow.make_follower(settings)
    add_steps(run, 1, 5)
    monkeypatch.setattr(tensorboard, "open_run", lambda follower: None)
    monkeypatch.setattr(tensorboard, "log_points", lambda follower, points: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        follow.sync(follower)
    monkeypatch.setattr(tensorboard, "log_points", lambda follower, points: seen.extend(p.step for p in points))
    follow.sync(follower)
    assert sorted(set(seen)) == [1, 2, 3, 4, 5]
    follow.sync(follower)
    assert len(seen) == 12, "two figures a step and two of the validation, once each"
