"""The follower reads a run folder as it grows and passes what is new to one tracker.

A tracker is a module of this package with four functions: `open_run`, `log_points`, `log_file` and `close_run`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, sha256_file
from tuneloop.core.foreign import parse_line
from tuneloop.core.urls import masked
from tuneloop.records.dataset import DatasetManifest
from tuneloop.records.evaluation import EvaluationManifest
from tuneloop.records.plan import Plan
from tuneloop.records.record import Record, read_record, write_record
from tuneloop.records.run import Environment, RunManifest
from tuneloop.track.record import TrackingState
from tuneloop.track.tracking import KINDS, Status

RETRY_SECONDS = 30.0
LAST_SECONDS = 60  # the follower ends itself this long after its parent, whatever happens
LONGEST_PARAM = 500
OUTCOME = ("peak_memory_gib", "usd", "tokens", "tokens_per_second", "steps", "best_step", "best_val_loss",
           "trainable_parameters")  # fmt: skip
# What makes a run another run; a changed evaluation of the same adapter belongs to the same one.
IDENTITY = ("name", "model", "seed", "data", "train")
# Files of a run folder that trackers take whole, when they are there; dataset.json alone: of a data set without a run.
FILES: dict[str, type[Record]] = {
    Environment.file: Environment,
    f"dataset/{DatasetManifest.file}": DatasetManifest,
    DatasetManifest.file: DatasetManifest,
    Plan.file: Plan,
    RunManifest.file: RunManifest,
    EvaluationManifest.file: EvaluationManifest,
}


class Point(NamedTuple):
    """One metric of one step."""

    name: str
    value: float
    step: int


@dataclass
class Follower:
    """What the follower knows. `started` is in milliseconds since the epoch; `state` is its `tracking*.json`."""

    to: str
    run: Path
    config: dict[str, Any]
    experiment: str
    uri: str
    local: bool
    started: int
    state: TrackingState
    client: Any = None
    offset: int = 0
    opened: bool = False

    @property
    def state_file(self) -> Path:
        """Where it remembers what was logged."""
        return state_file(self.run, self.to)


def state_file(run: Path, to: str) -> Path:
    """`tracking.json` of MLflow, `tracking-NAME.json` of the others."""
    return run / ("tracking.json" if to == "mlflow" else f"tracking-{to}.json")


def main(lines: TextIO | None = None) -> int:
    """Follow a run folder until the parent says that it ended, or dies."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such call
        os.nice(10)
    lines = lines or sys.stdin
    settings = parse_line(lines.readline() or "null")
    if not settings:
        return 1
    follower = make_follower(settings)
    warned, failed_at = False, -RETRY_SECONDS
    status: Status | None = None
    while status is None:
        if select.select([lines], [], [], settings["poll_seconds"])[0]:
            line = lines.readline()
            status = parse_line(line)["finish"] if line.strip() else "KILLED"
            signal.alarm(LAST_SECONDS)
        if status is None and time.monotonic() - failed_at < RETRY_SECONDS:
            continue
        try:
            sync(follower, status)
        except Exception as error:
            failed_at = time.monotonic()
            if not warned:
                warned = True
                entry_name = f"{KINDS[follower.to].title} could not be written ({_reason(error)})"
                with contextlib.suppress(OSError, ValueError):  # the parent may have ended
                    print(json.dumps({"warning": f"{entry_name}; the run continues without it"}), flush=True)
    return 0


def _reason(error: BaseException) -> str:
    """The cause of a failure in one short line: the innermost message says most."""
    while not isinstance(error, UserError) and (error.__cause__ is not None or error.__context__ is not None):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def make_follower(settings: Mapping[str, Any]) -> Follower:
    """The follower of a run folder, with what an earlier one has logged."""
    to, run = settings.get("to", "mlflow"), Path(settings["run"])
    local = to == "mlflow" and not settings["uri"]
    uri = f"sqlite:///{Path('mlflow.db').resolve()}" if local else settings["uri"] if to == "mlflow" else to
    config = dict(settings["config"])
    identity = content_hash({key: config.get(key) for key in IDENTITY})
    fresh = TrackingState(uri=masked(uri), experiment=settings["experiment"], identity=identity)
    try:
        state = read_record(TrackingState, state_file(run, to))
    except (UserError, OSError):
        state = fresh
    if (state.uri, state.experiment, state.identity) != (fresh.uri, fresh.experiment, fresh.identity):
        state = fresh
    return Follower(to, run, config, settings["experiment"], uri, local, int(settings["started"]), state)


def sync(follower: Follower, status: Status | None = None) -> None:
    """Log what is new in the folder, and with a status the end. What was logged is remembered and not logged again."""
    tracker = importlib.import_module(f"tuneloop.track.{follower.to}")
    if not follower.opened:
        tracker.open_run(follower)
        follower.opened = True
        save(follower)
    points, offset, latest = new_points(follower)
    if points:
        tracker.log_points(follower, points)
    follower.offset = offset
    follower.state.train_step, follower.state.val_step = latest["train"], latest["val"]
    for name, kind in FILES.items():
        path = follower.run / name
        if path.exists() and follower.state.seen.get(name) != (digest := sha256_file(path)):
            tracker.log_file(follower, name, read_record(kind, path))
            follower.state.seen = {**follower.state.seen, name: digest}
    if status is not None:
        tracker.close_run(follower, status)
    save(follower)


def save(follower: Follower) -> None:
    """Remember what was logged."""
    write_record(follower.state_file, follower.state)


def forget(follower: Follower) -> None:
    """Start again: nothing was logged."""
    state = follower.state
    follower.state = TrackingState(uri=state.uri, experiment=state.experiment, identity=state.identity)


def new_points(follower: Follower) -> tuple[list[Point], int, dict[str, int]]:
    """Metrics by step from the new lines of `metrics.jsonl`, the offset where they end, and the latest steps.

    A step that a resumed run repeats is logged once.
    """
    path, offset = follower.run / "metrics.jsonl", follower.offset
    latest = {"train": follower.state.train_step, "val": follower.state.val_step}
    if not path.exists():
        return [], 0, latest
    if path.stat().st_size < offset:  # cut back to a checkpoint
        offset = 0
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read()
    block = block[: block.rfind(b"\n") + 1]  # the last line may still be in writing
    points: list[Point] = []
    for line in block.splitlines():
        try:
            record = parse_line(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        kind = "val" if "val_loss" in record else "train"
        if step > latest[kind]:
            latest[kind] = step
            points += [Point(name, value, step) for name, value in step_metrics(record, kind).items()]
    return points, offset + len(block), latest


def step_metrics(record: Mapping[str, Any], kind: str) -> dict[str, float]:
    """The metrics of one line of `metrics.jsonl`: `train/loss`, `val/loss`, `train/learning_rate` ..."""
    metrics = {}
    for key, value in record.items():
        if key not in ("step", "best") and (number := to_float(value)) is not None:
            metrics[f"{kind}/{safe(key.removeprefix('val_'))}"] = number
    return metrics


def run_metrics(record: Record) -> dict[str, float]:
    """Metrics of the whole run from one of its files: what was predicted, what it took, how it scored."""
    metrics: dict[str, float | None] = {}
    if isinstance(record, Plan):
        hours = record.time.hours
        metrics = {
            "usage/predicted_minutes": None if hours is None else hours * 60,
            "usage/predicted_peak_memory_gib": record.memory.peak_gib,
            "usage/predicted_usd": record.cost.usd,
        }
    elif isinstance(record, RunManifest):
        metrics = {f"usage/{key}": getattr(record, key) for key in OUTCOME if key in record.model_fields_set}
        metrics["usage/minutes"] = record.seconds / 60 if "seconds" in record.model_fields_set else None
        metrics["usage/mfu"] = record.mfu.value if record.mfu else None
    elif isinstance(record, EvaluationManifest):
        metrics = _scores(record)
    return {safe(key): number for key, value in metrics.items() if (number := to_float(value)) is not None}


def _scores(evaluation: EvaluationManifest) -> dict[str, float | None]:
    """The tuned model's metrics; of the baselines the metric that decides, and what the tuned model gains over each.

    All other metrics of the baselines are in the table `comparison.json`: as metrics they would bury the curves.
    """
    split, metrics, baselines = safe(evaluation.split), evaluation.metrics, evaluation.baselines
    primary = evaluation.primary or next(iter(metrics or next(iter(baselines.values()), {})), "")
    scores_by_name: dict[str, float | None] = {f"{split}/{metric}": score.value for metric, score in metrics.items()}
    for name, scores in baselines.items():
        scores_by_name[f"baselines {primary}/{name}"] = scores[primary].value if primary in scores else None
    for pair in evaluation.comparisons:
        if pair.metric == primary and pair.b == evaluation.name:
            scores_by_name[f"gain in {primary}/over {pair.a}"] = pair.delta
    return scores_by_name


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested config as `section.key -> text`; unset values are left out and long ones cut."""
    out: dict[str, str] = {}
    for key, value in config.items():
        name = safe(f"{prefix}{key}")
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{name}."))
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            out[name] = text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"
    return out


def safe(name: str) -> str:
    """A name that every tracker takes for metrics, parameters and tags."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name).strip()[:250] or "_"


def to_float(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        return None
    return float(value)
