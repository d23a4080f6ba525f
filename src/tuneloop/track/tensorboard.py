"""TensorBoard: event files in `RUN/tensorboard`, by tensorboardX; `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

from collections.abc import Sequence

from tuneloop.records.record import Record
from tuneloop.track.follow import Follower, Point, flatten, forget, run_metrics
from tuneloop.track.tracking import Status


def open_run(follower: Follower) -> None:
    """Begin an event file; the settings stand under Text."""
    from tensorboardX import SummaryWriter

    folder = follower.run / "tensorboard"
    if not folder.is_dir():
        forget(follower)
    follower.client = SummaryWriter(str(folder), flush_secs=5)
    rows = [f"| {key} | {value} |".replace("\n", " ") for key, value in flatten(follower.config).items()]
    follower.client.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *rows]))


def log_points(follower: Follower, points: Sequence[Point]) -> None:
    """Scalars by step."""
    for point in points:
        follower.client.add_scalar(point.name, point.value, point.step)
    follower.client.flush()


def log_file(follower: Follower, name: str, record: Record) -> None:
    """Metrics of the whole run, at step 0."""
    log_points(follower, [Point(key, value, 0) for key, value in run_metrics(record).items()])


def close_run(follower: Follower, status: Status) -> None:
    """Write the last metrics out."""
    follower.client.add_text("status", status)
    follower.client.close()
