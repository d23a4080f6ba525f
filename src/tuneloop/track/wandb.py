"""Weights & Biases: curves, settings, and metrics of the whole run as its summary; offline too, see `wandb sync`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.record import Record
from tuneloop.records.run import Environment
from tuneloop.track.follow import Follower, Point, flatten, forget, run_metrics
from tuneloop.track.tracking import Status


def open_run(follower: Follower) -> None:
    """Begin the run of this folder, or continue it by its id."""
    import wandb

    if not follower.state.run_id:
        forget(follower)
        follower.state.run_id = secrets.token_hex(4)
    settings = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    names = {"project": follower.experiment, "name": follower.run.name, "id": follower.state.run_id}
    follower.client = wandb.init(**names, resume="allow", config=flatten(follower.config), settings=settings)


def log_points(follower: Follower, points: Sequence[Point]) -> None:
    """Curves; W&B takes steps in rising order only."""
    by_step: dict[int, dict[str, float]] = {}
    for point in points:
        by_step.setdefault(point.step, {})[point.name] = point.value
    for step in sorted(by_step):
        follower.client.log(by_step[step], step=step)


def log_file(follower: Follower, name: str, record: Record) -> None:
    """Metrics of the whole run."""
    follower.client.summary.update(run_metrics(record))
    keys = {DatasetManifest: ("id", "hash"), Environment: ("git_commit", "cpu", "gpu")}.get(type(record))
    if keys:
        follower.client.config.update({name: {key: record[key] for key in keys}}, allow_val_change=True)


def close_run(follower: Follower, status: Status) -> None:
    """Close it with the run's status."""
    follower.client.finish(exit_code=0 if status == "FINISHED" else 1)
