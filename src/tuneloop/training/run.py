"""A run as its parts share it: what is trained, how far it is, its metrics, and what it does when something fails."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuneloop.core.device import peak_memory, random_state, set_random_state
from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.core.foreign import parse_line
from tuneloop.core.machine import is_first
from tuneloop.models import Model
from tuneloop.models.methods import Trainable
from tuneloop.records.run import Schedule
from tuneloop.training.checkpoint import State, list_checkpoints, load_checkpoint, save_checkpoint
from tuneloop.training.config import TrainConfig
from tuneloop.training.distributed import load_optimizer, wait
from tuneloop.training.monitors import Monitors, TrainingFinding, policy
from tuneloop.training.optimizers import UpdatesInBackward

SAVES_APART = 19.0  # times what writing a checkpoint took: full 8B writes 50 to 80 GB

Log = Callable[[dict[str, Any]], None]  # gets every record of `metrics.jsonl`


@dataclass
class TrainingRun:
    """What the parts of the loop share."""

    model: Model
    config: TrainConfig
    trainable: Trainable
    optimizer: Any
    state: State
    out: Path
    log: Log = lambda record: None
    saved: Callable[[], None] = lambda: None
    start: dict[str, Tensor] = field(default_factory=dict)  # parameters before the first step, for `l2_start`
    monitors: Monitors = field(default_factory=Monitors)
    ids: Sequence[str] = ()  # of the training rows
    findings: list[TrainingFinding] = field(default_factory=list)  # since `act` last took them
    untrained: dict[str, Tensor] = field(default_factory=dict)  # parameters to go back to before any checkpoint
    metrics: Any = None
    saved_at: float = 0.0  # by the monotonic clock
    saving_seconds: float = 0.0  # of the last checkpoint
    answering_seconds: float = 0.0  # of all answers to validation rows
    ends_at: float = math.inf  # when `max_minutes` are over, by the monotonic clock
    last_moment: float = math.inf  # when a step or validation that has begun is cut off
    preempted: bool = False  # SIGTERM came
    is_busy_reported: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    seed: int = 0
    in_backward: UpdatesInBackward | None = None
    schedule: Schedule | None = None  # of an earlier run, which is reproduced

    def __post_init__(self) -> None:
        if self.config.optimizer_in_backward:
            self.in_backward = UpdatesInBackward(self.optimizer)
            self.trainable.ready[:] = [self.in_backward]

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def record(self, record: dict[str, Any]) -> None:
        """Write a record to `metrics.jsonl`, pass it on, and note what the monitors find in it; `act` acts on that."""
        if self.metrics is not None:
            self.metrics.write(record)
        self.log(record)
        batch = [self.ids[i] for i in record.get("rows", ())] if self.ids and "loss" in record else []
        for finding in self.monitors.feed(record, batch):
            self.findings.append(finding)
            self.record(finding.to_record())

    def report(self, event: str, message: str) -> None:
        """Record an event at the step that has just been done."""
        self.record({"step": self.state.step, "event": event, "message": message})

    def checkpoint_due(self) -> bool:
        """Whether it is time for one: by the clock, by steps, or because the process is to end."""
        every, seconds = self.config.checkpoint_steps, self.config.checkpoint_seconds or 0.0
        if seconds:  # no more than a twentieth of the time goes into writing them
            seconds = max(seconds, SAVES_APART * self.saving_seconds)
        late = time.monotonic() - self.saved_at > seconds
        return self.preempted or late or (every is not None and self.state.step % every == 0)

    def save(self) -> None:
        """Write a checkpoint."""
        state, began = self.state, time.monotonic()
        if state.step:  # the first checkpoint only holds the plan: a resumed run makes the same start again
            state.parameters = self.trainable.state()
            state.optimizer = self.optimizer.state_dict()
        state.rng = random_state()
        state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())
        if self.metrics is not None:
            self.metrics.sync()
        save_checkpoint(self.checkpoints, state, self.config.keep_checkpoints)
        state.parameters, state.optimizer = {}, {}
        self.saved()
        self.saved_at = time.monotonic()
        self.saving_seconds = self.saved_at - began

    def restore(self) -> None:
        """Put what the state holds, fresh from a checkpoint, into the model, the optimizer and the random numbers."""
        self.trainable.load(self.state.parameters or self.untrained, str(self.checkpoints))
        self.optimizer.state.clear()
        if self.state.optimizer:
            load_optimizer(self.optimizer, self.state.optimizer)
        if self.in_backward:
            self.in_backward.find_groups()
        set_random_state(self.state.rng)

    def open_metrics(self) -> contextlib.AbstractContextManager[MetricsFile | None]:
        """The run's metrics, opened by the process that writes them."""
        return MetricsFile(self.out / "metrics.jsonl", self.state.step) if is_first() else contextlib.nullcontext()


class MetricsFile(contextlib.AbstractContextManager["MetricsFile"]):
    """`metrics.jsonl`, appended record by record; opening drops what an interrupted run wrote after its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        with user_errors_of_the_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            if step and path.is_file():
                for line in path.read_text(encoding="utf-8").splitlines():
                    try:
                        if parse_line(line)["step"] <= step:
                            lines.append(line + "\n")
                    except (ValueError, KeyError):
                        continue  # the line that was being written when the process died
            path.write_text("".join(lines), encoding="utf-8")
            self.file = path.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in record.items()}
        with user_errors_of_the_disk(self.path):
            self.file.write(json.dumps(clean) + "\n")
            self.file.flush()

    def sync(self) -> None:
        """Make the records durable."""
        with user_errors_of_the_disk(self.path):
            os.fsync(self.file.fileno())


# --- when something goes wrong: stop, go back to a checkpoint, or save and end on SIGTERM


MOST_ROLLBACKS = 3  # a run that must go back more often has another fault


class OutOfTime(Exception):
    """`max_minutes` ended within a step."""


class Preempted(SystemExit):
    """SIGTERM came, as spot machines send it, and a checkpoint is saved; the exit status is 143."""

    def __init__(self, step: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.step = step


def act(run: TrainingRun, validated: bool) -> bool:
    """Do what the policies say about what the monitors have found; whether the run went back to a checkpoint. Raises
    UserError: the run is to stop and has no evaluated weights worth keeping, or its weights are no numbers any more."""
    state, config = run.state, run.config
    findings, run.findings = run.findings, []
    broken = not (math.isfinite(run.monitors.losses[-1]) and math.isfinite(run.monitors.norms[-1]))
    for finding in findings:
        action = policy(finding.kind, config)
        if action == "rollback" and state.rollbacks < MOST_ROLLBACKS:
            _roll_back(run, finding)
            return True
        useless = validated and not (state.best_step and state.best_val_loss < state.first_val_loss)
        if broken or (action != "warn" and useless):
            rates = [r for r in finding.remedies if r.startswith("train.learning_rate=")]
            lower = rates[0] if rates else f"train.learning_rate={config.learning_rate / 5:g}"
            where, step = str(run.out / "metrics.jsonl"), f"start again with {lower} output_dir=FOLDER"
            raise UserError(f"{finding.sentence} The run is stopped", where=where, next_step=step)
        if action != "warn":
            state.stopped = finding.kind
    return False


def _roll_back(run: TrainingRun, finding: TrainingFinding) -> None:
    """Continue from a checkpoint before the finding at half the learning rate, without the batch at fault, if any."""
    state, checkpoints = run.state, list_checkpoints(run.checkpoints)
    for newer in checkpoints[1:] if finding.kind in ("divergence", "learning_rate_too_high") and is_first() else []:
        newer.unlink()  # it may hold weights that were on their way already
    wait()
    before = load_checkpoint(run.checkpoints, state.key)
    if before is None:
        where, step = str(run.checkpoints), "set train.on_divergence=stop"
        raise UserError("There is no checkpoint to go back to", where=where, next_step=step)
    skipped = [*state.skipped, finding.step] if finding.rows else state.skipped
    halved_rate, rollbacks, tokens = state.rate_factor / 2, state.rollbacks + 1, state.tokens
    vars(state).update(vars(before))
    state.rate_factor, state.skipped, state.rollbacks, state.tokens = halved_rate, skipped, rollbacks, tokens
    run.restore()
    run.monitors.go_back(state.step)
    without = f", without the rows of step {finding.step}" if finding.rows else ""
    cause = f"{finding.kind.replace('_', ' ')} at step {finding.step}"
    run.report(
        "rollback", f"{cause}: back to step {state.step}, the learning rate times {state.rate_factor:g}{without}"
    )
    run.save()


@contextlib.contextmanager
def notice_sigterm(run: TrainingRun) -> Iterator[None]:
    """Let the step that is being computed end when the system asks the process to; a second signal ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def notice(number: int, frame: Any) -> None:
        run.preempted = True
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
