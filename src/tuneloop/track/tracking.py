"""Logging runs to MLflow, TensorBoard and Weights & Biases, from low-priority processes that can't slow the run.

Each follower (`python -m tuneloop.track`) copies the run folder's files as they appear. Both sides write JSON lines:
the parent the settings and `{"finish": STATUS}` (an end without it: it died), the follower `{"warning": TEXT}`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from tuneloop.core.foreign import parse_line

Status = Literal["FINISHED", "FAILED", "KILLED"]

POLL_SECONDS = 3.0
# Set unless the user has: else a dead server is retried for minutes, and trackers report usage or want a login.
QUICK_AND_QUIET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet",
    "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_INIT_TIMEOUT": "20",
}  # fmt: skip


@dataclass(frozen=True)
class TrackerKind:
    """A tracker: its name for people, the package that writes for it, and what installs that."""

    title: str
    package: str
    install: str


KINDS = {
    "mlflow": TrackerKind("MLflow", "mlflow", "pip install 'tuneloop[track]'"),
    "tensorboard": TrackerKind("TensorBoard", "tensorboardX", "pip install 'tuneloop[tensorboard]'"),
    "wandb": TrackerKind("Weights & Biases", "wandb", "pip install 'tuneloop[wandb]'"),
}


@dataclass
class Tracker:
    """The run's handle on one follower. Without a follower every call does nothing."""

    process: subprocess.Popen[str] | None  # the follower, or None
    warn: Callable[[str], None]  # called once, with one sentence, when something does not work
    title: str = "MLflow"  # the tracker's name
    warned: bool = False
    reader: threading.Thread | None = field(default=None, repr=False)

    def send(self, status: Status) -> None:
        """Report how the run ended; the follower then logs the rest."""
        if self.process is not None:
            with contextlib.suppress(OSError, ValueError):
                assert self.process.stdin is not None
                self.process.stdin.write(json.dumps({"finish": status}) + "\n")
                self.process.stdin.close()

    def wait(self, timeout: float) -> None:
        """Wait for the last writes, at most `timeout` seconds; then leave the follower behind."""
        process, self.process = self.process, None
        if process is None:
            return
        if self.warned:  # it is down: one more try, and no long wait for it
            timeout = min(timeout, 6.0)
        try:
            process.wait(max(timeout, 0.1))
        except subprocess.TimeoutExpired:
            took = f"took more than {timeout:.0f} s to take the last metrics"
            self._warn_once(f"{self.title} {took}; the run itself is complete")
            process.kill()
            process.wait()
        if self.reader is not None:
            self.reader.join(2.0)
        if (code := process.returncode) not in (0, None, -getattr(signal, "SIGKILL", 9)):
            self._warn_once(f"Logging to {self.title} ended with status {code}; the run itself is complete")

    def _read(self, stream: TextIO) -> None:
        with contextlib.suppress(ValueError, OSError), stream:
            for line in stream:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    self._warn_once(str(parse_line(line)["warning"]))

    def _warn_once(self, text: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(text)


@dataclass(frozen=True)
class Tracking:
    """The followers of a run."""

    trackers: Sequence[Tracker] = ()

    def finish(self, status: Status = "FINISHED", *, timeout: float = 20.0) -> None:
        """Have the rest logged and close the tracked runs, within `timeout` seconds; raises nothing that goes wrong."""
        end = time.monotonic() + timeout
        for tracker in self.trackers:
            tracker.send(status)
        for tracker in self.trackers:
            tracker.wait(end - time.monotonic())


def start_tracking(
    recipe_dump: Mapping[str, Any],
    run: Path,
    *,
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    poll_seconds: float = POLL_SECONDS,
) -> Tracking:
    """Begin, or continue, to log a run folder; returns at once.

    MLflow: to `MLFLOW_TRACKING_URI`, else to `mlflow.db` and `mlartifacts/` in the current folder. TensorBoard: to
    `tensorboard/` in the run folder. Weights & Biases: by its own variables (`WANDB_MODE=offline` needs no account).

    Args:
        recipe_dump: the resolved recipe as plain values; `track.report_to: [none]` turns this off.
        run: the run folder; `tracking*.json` in it remember the tracked runs.
        warn: gets one sentence for each tracker that can't log; the run continues in any case.
        poll_seconds: how often the folder is looked at.
    """
    track = recipe_dump.get("track") or {}
    settings = {
        "run": str(Path(run).resolve()), "config": recipe_dump,
        "experiment": track.get("experiment") or "tuneloop", "uri": os.environ.get("MLFLOW_TRACKING_URI") or "",
        "poll_seconds": poll_seconds, "started": int(time.time() * 1000),
    }  # fmt: skip
    names = [name for name in track.get("report_to", ["mlflow"]) if name in KINDS]
    return Tracking([_start(name, settings, warn) for name in names])


def _start(name: str, settings: Mapping[str, Any], warn: Callable[[str], None]) -> Tracker:
    kind = KINDS[name]
    tracker = Tracker(None, warn, kind.title)
    if importlib.util.find_spec(kind.package) is None:
        missing = f"{kind.title} is not installed, so this run is not logged there"
        tracker._warn_once(f"{missing}: {kind.install}, or leave {name} out of report_to")
        return tracker
    source = str(Path(__file__).resolve().parents[2])
    env = {**QUICK_AND_QUIET, **os.environ}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuneloop.track"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=env,
            start_new_session=True,  # Ctrl-C ends the run, and the follower then closes the log in order
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({**settings, "to": name}, default=str) + "\n")
        process.stdin.flush()
    except OSError as error:
        tracker._warn_once(f"Logging to {kind.title} could not start ({error}); the run continues without it")
        return tracker
    tracker.process = process
    tracker.reader = threading.Thread(target=tracker._read, args=(process.stdout,), daemon=True)
    tracker.reader.start()
    return tracker
