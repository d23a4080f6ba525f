"""What a run does when something goes wrong: stop, go back to a checkpoint, or save and end on SIGTERM."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.machine import is_first
from tuneloop.training.checkpoint import list_checkpoints, load_checkpoint
from tuneloop.training.distributed import wait
from tuneloop.training.monitors import TrainingFinding, policy
from tuneloop.training.run import TrainingRun

MOST_ROLLBACKS = 3  # a run that must go back more often has another fault


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
