"""The training loop, readable from top to bottom."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tuneloop.core.device import (
    memory_now,
    needs_scaling,
    peak_memory,
    release_memory,
    reset_peak_memory,
    settled_memory,
)
from tuneloop.core.files import content_hash, read_json, read_jsonl
from tuneloop.core.machine import is_first, processes
from tuneloop.core.ui import busy, progress
from tuneloop.core.units import counted, exactly, verb
from tuneloop.models import Model
from tuneloop.models.chat import Rendered
from tuneloop.models.methods import Trainable
from tuneloop.records.plan import MeasuredMachine
from tuneloop.records.rows import Row
from tuneloop.training import budget
from tuneloop.training.answers import write_answers
from tuneloop.training.batches import Step, plan_steps
from tuneloop.training.checkpoint import State, drop_checkpoints, load_best, load_checkpoint, save_best
from tuneloop.training.config import TrainConfig
from tuneloop.training.distributed import agreed, regroup, seed_step, summed, wait
from tuneloop.training.loss import loss_in_time, mean_loss, with_references
from tuneloop.training.methods import attach, compile_layers, recompute_layers, run_key
from tuneloop.training.monitors import make_monitors, trend
from tuneloop.training.optimizers import make_optimizer
from tuneloop.training.rows import (
    SplitRows,
    TrainRow,
    check_rows,
    conversations,
    is_usable,
    reference_tokens,
    tokens_of,
    training_rows,
)
from tuneloop.training.run import Log, OutOfTime, Preempted, TrainingRun, act, notice_sigterm
from tuneloop.training.speed import measure_speed
from tuneloop.training.step import LOSS_SCALE, optimizer_step

# Steps between giving freed memory back: buffers of always new sizes leave holes, and without this the process grew by
# two thirds over a run; at every step it would cost as much as `use_threads` gains.
TRIM_EVERY = 8

Reference = Callable[..., list[TrainRow]]  # `_with_reference` of a run


@dataclass(frozen=True)
class TrainingJob:
    """What a run belongs to: its data set, its plan, its folder's owner. Rows of your own need none of it."""

    general: Sequence[Rendered] = ()  # rows of other work, held out; their loss shows what is forgotten
    mixed: Sequence[bool] = ()  # for each training row whether it is general data; every stretch of steps has its share
    ids: Sequence[str] = ()  # of the training rows, for the monitors; rows of a data set say both themselves
    data_id: str = ""  # a checkpoint made from another data set is refused; default: a hash of the training rows
    # Without a speed it is measured first where `config.max_minutes` needs it, in a few seconds of the time.
    measured: MeasuredMachine = field(default_factory=MeasuredMachine)
    saved: Callable[[], None] = lambda: None  # called by each process when a checkpoint has been written


@dataclass(frozen=True)
class Trained:
    """What a run came to; `run.json` is made of it."""

    steps: int  # done
    total_steps: int  # to be done in the end; see `budget.refit_steps`
    planned_steps: int  # planned at first
    epochs: float  # passes over the training rows
    rows: int  # training rows
    rows_seen: int  # how many of them a step saw
    seen: str  # that in words
    best_step: int
    best_val_loss: float
    first_val_loss: float
    stopped: str
    trainable_parameters: int
    tokens: int  # trained
    seconds: float  # with validations and references
    checking_seconds: float  # of these, validations and references
    tokens_per_second: float
    planned_tokens_per_second: float  # the speed of steps that the run was planned with; 0: none
    speed_share: float | None  # what share of it they had
    peak_memory_gib: float
    adapter_hash: str
    resumed_at: int  # step of the checkpoint from which the run continued
    findings: tuple[dict[str, Any], ...] = ()  # of the monitors


def learning_rate(step: float, total: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear rise over the warm-up, then down to zero at the end."""
    rise = max(round(total * config.warmup), 1)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    if config.schedule == "constant":
        return config.learning_rate
    left = 1 - (step - rise) / max(total - rise, 1)
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def scheduled_rate(state: State, config: TrainConfig) -> float:
    """Learning rate of the next step: on the planned schedule, or on that of a run planned with all added steps."""
    length = max(state.planned_steps, state.total_steps)
    return learning_rate(budget.place_of(state, state.step) * length / state.planned_steps, length, config)


def train(
    model: Model,
    train_rows: Sequence[Row | TrainRow],
    val_rows: Sequence[Row | TrainRow],
    config: TrainConfig,
    out: Path,
    *,
    seed: int = 0,
    job: TrainingJob = TrainingJob(),
    log: Log = lambda record: None,
) -> Trained:
    """Train on rows and leave the best weights in the model and in `out/adapter` or `out/model`.

    Writes `metrics.jsonl` (a record a step and an evaluation) and `checkpoints/`; a run that was cut short continues
    from its last checkpoint and, on CPU, ends with the same bits as one that was not. With `config.max_minutes` that
    holds where both do as many steps: how many fit depends on the machine's speed, see `training/budget.py`.

    Args:
        train_rows, val_rows: rows of a data set, or made of them for the configured loss, see `training_rows`.
        out: folder of the run.
        seed: of the start, the order of rows and dropout.
        log: gets every record of `metrics.jsonl` as it is written.

    Raises:
        UserError: no rows, a row without supervised tokens, the loss is not a number, foreign or damaged checkpoints, a
            full disk, a row that does not fit into memory.
        Preempted: SIGTERM came; a checkpoint is written.
    """
    usable = [row for row in train_rows if isinstance(row, Row) and is_usable(row, config)]
    ids = job.ids or [row.id for row in usable]
    mixed = job.mixed or ["mix" in row.meta for row in usable]
    train_split, val_split = (training_rows(split, model.template, config) for split in (train_rows, val_rows))
    rows = SplitRows(train_split, val_split, job.general)
    check_rows(rows.train, "training", model.head.shape[0])
    if rows.val:
        check_rows(rows.val, "validation", model.head.shape[0])
    data_id = job.data_id or content_hash([part.ids for row in rows.train for part in conversations(row)])
    key, measured = run_key(model, config, seed, data_id), job.measured
    config = config.model_copy(update={"micro_batch_tokens": measured.micro_batch_tokens or config.micro_batch_tokens})
    state = load_checkpoint(out / "checkpoints", key)
    state = state or State(key, recompute=measured.recompute, kept_layers=measured.kept_layers)
    resumed_at = state.step
    began = time.monotonic()
    steps = plan_steps(rows.train, config, seed, mixed)
    schedule = budget.schedule_to_follow(out)
    if schedule is not None and not state.planned_steps:
        budget.start_by(schedule, state)
    elif not state.planned_steps:
        if config.max_minutes is not None and not measured.tokens_per_second:
            speed = measure_speed(model, rows.train, config, seed)
            measured = replace(measured, tokens_per_second=summed([speed])[0] / processes())
        spent = measured.seconds_spent + summed([time.monotonic() - began])[0] / processes()
        measured = replace(measured, seconds_spent=spent)
        plan = budget.RunPlan.of(steps, rows, config, seed, measured)
        state.planned_steps = state.total_steps = len(plan.steps)
        state.due = [round(len(plan.steps) * (i + 1) / plan.evaluations) for i in range(plan.evaluations)]
        state.val_rows, state.planned_speed = plan.val_rows, measured.tokens_per_second
        state.spent = job.measured.seconds_spent
    planned_due = list(state.due)
    timed = config if schedule is None else config.model_copy(update={"max_minutes": None})
    trainable = attach(model, config, seed, rows.train)  # divides the model over the processes, where there are several
    reference = functools.partial(_with_reference, model, config, trainable)
    rows = SplitRows(
        train=_with_reference_in_time(reference, rows.train, timed, state, steps, began),
        val=reference(budget.sample(rows.val, state.val_rows, seed)),
        general=budget.sample(rows.general, state.val_rows, seed),
    )
    if schedule is None:
        budget.keep_plan(out, state, planned_due)
    state.seconds += time.monotonic() - began
    state.checking_seconds += time.monotonic() - began
    with busy("getting ready to train"):
        run = _begin(model, config, trainable, state, rows, seed, out)
    run.ids, run.schedule, run.saved = ids, schedule, job.saved
    if is_first():
        run.log = log
    with settled_memory(), run.open_metrics() as run.metrics, notice_sigterm(run):
        reset_peak_memory()
        wait()
        for record in read_jsonl(out / "metrics.jsonl"):
            run.monitors.feed(record)
        wait()
        _steps(run, steps, rows)
    with busy("saving the result"):
        best = load_best(run.checkpoints, run.state.best_step)
        if best is not None:
            run.trainable.load(best, str(run.checkpoints))
        run.model.net.eval()
        recompute_layers(run.model.net, False)
        run.trainable.save(run.out / run.trainable.folder)
        wait()
        drop_checkpoints(run.checkpoints)
    return _result(run, steps, len(rows.train), resumed_at)


def _begin(
    model: Model, config: TrainConfig, trainable: Trainable, state: State, rows: SplitRows, seed: int, out: Path
) -> TrainingRun:
    """The run before its next step: the first one, or the one behind the checkpoint."""
    monitors = make_monitors(config, rows.train, state.total_steps)
    optimizer = make_optimizer(trainable, config)
    run = TrainingRun(model, config, trainable, optimizer, state, out, monitors=monitors, seed=seed)
    if config.l2_start:
        run.start = {name: p.detach().clone() for name, p in trainable.parameters.items()}
    if "rollback" in (config.on_spike, config.on_divergence):
        run.untrained = trainable.state()
    recompute_layers(model.net, config.gradient_checkpointing == "always" or state.recompute, state.kept_layers)
    if config.compile:
        compile_layers(model.net)
    torch.manual_seed(seed)
    if needs_scaling(model.head.dtype) and not state.loss_scale:
        state.loss_scale = LOSS_SCALE
    if state.step:
        run.restore()
    return run


def _steps(run: TrainingRun, steps: list[Step], rows: SplitRows) -> None:
    state = run.state
    began = time.monotonic() - state.seconds
    run.saved_at = time.monotonic()
    if run.schedule is None:
        limit = budget.limit_of(run.config, state)
        run.ends_at, run.last_moment = began + limit, began + budget.OVER * limit
    if state.step == 0:
        _evaluate(run, rows, began)
        with busy("saving a checkpoint"):
            run.save()
    run.model.net.train()
    progress("training", state.step, state.total_steps)
    while state.step < state.total_steps and not state.stopped:
        if state.step + 1 in state.skipped:
            state.step += 1
            continue
        if not _step(run, steps[state.step], rows, began):
            break
        if budget.is_due(state) and math.isfinite(run.monitors.losses[-1]):
            _evaluate(run, rows, began)
        if act(run, bool(rows.val)):
            continue
        if state.step % TRIM_EVERY == 0:
            release_memory()
        _keep_time(run, steps, rows, time.monotonic() - began)
        state.seconds = time.monotonic() - began
        run.preempted = agreed(run.preempted)
        if agreed(run.checkpoint_due()):
            with busy("saving a checkpoint"):
                run.save()
        if run.preempted and state.step < state.total_steps and not state.stopped:
            raise Preempted(state.step)
    if state.validated_at < state.step and not state.stopped:  # the next step would have ended too late
        _evaluate(run, rows, began)
        state.seconds = time.monotonic() - began
    state.stopped = state.stopped or "finished"
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())


def _keep_time(run: TrainingRun, steps: Sequence[Step], rows: SplitRows, seconds: float) -> None:
    """Report a machine that is much slower than planned, and do as many steps as fit into the time."""
    state = run.state
    if (threads := torch.get_num_threads()) != run.threads:
        run.report("threads", f"computes with {counted(threads, 'thread')} from here, not with {run.threads}")
        run.threads = threads
    stepping = seconds - state.checking_seconds
    share = state.tokens / max(stepping, 1e-9) / state.planned_speed if state.planned_speed else 1.0
    slow = share < budget.BUSY and stepping > budget.BUSY_AFTER and state.step >= budget.KNOWN_FROM
    if slow and not run.is_busy_reported:
        run.is_busy_reported = True
        run.report("busy", busy_words(share, state.planned_speed))
    if run.schedule is not None:
        budget.change_by(run.schedule, state)
        return
    if run.config.max_minutes is None:
        return
    before = state.turn
    change = budget.refit_steps(state, steps, rows.train, run.config, summed([seconds])[0] / processes())
    total = state.total_steps
    if state.turn != before:
        budget.keep_change(run.out, state)
        run.monitors.facts = replace(run.monitors.facts, total_steps=total)
    if abs(change) > 0.1 * total:
        fits = f"{counted(total, 'step')} {verb(total, 'fits', 'fit')} into {exactly(run.config.max_minutes, 'minute')}"
        rest = f"not {total - change:,}; the learning rate falls over those that are left"
        run.report("steps", f"at the recent speed {fits}, {rest}")


def busy_words(share: float, planned: float) -> str:
    """The message about a machine that is much slower than it was when it was measured."""
    speeds = f"{share * planned:,.0f} of {planned:,.0f} tokens/s"
    slow = f"this machine runs at {budget.speed_words(share)} the speed planned ({speeds})"
    return f"{slow}; is something else running on it?"


def _step(run: TrainingRun, step: Step, rows: SplitRows, began: float) -> bool:
    """Do a step; False where the time ended within it, and nothing has come of it."""
    state = run.state
    seed_step(run.seed, state.step)
    started = time.monotonic()
    rate = scheduled_rate(state, run.config) * state.rate_factor
    try:
        loss, norm, metrics = optimizer_step(run, step, rows.train, rate)
    except OutOfTime:
        run.optimizer.zero_grad(set_to_none=True)
        state.turn, state.total_steps = (state.step, budget.place_of(state, state.step)), state.step
        budget.keep_change(run.out, state)
        run.report("steps", f"time ended within step {state.step + 1}, which is left out: the machine is slower now")
        return False
    tokens = sum(tokens_of(rows.train[i]) for i in step.indices)
    state.step += 1
    state.tokens += tokens
    speed, memory = tokens / (time.monotonic() - started), memory_now()
    run.record({
        "step": state.step, "epoch": round(step.epoch, 4), "loss": loss, "learning_rate": rate, "grad_norm": norm,
        "tokens": tokens, "tokens_per_second": round(speed, 1), "seconds": round(time.monotonic() - began, 2),
        "memory_gib": round(memory, 3), "rows": step.indices, **metrics,
    })  # fmt: skip
    info = {"tokens_per_second": speed, "learning_rate": rate, "memory": memory}
    progress("training", state.step, state.total_steps, loss=trend(run.monitors.losses), **info)
    return True


def _with_reference_in_time(
    reference: Reference, rows: Sequence[TrainRow], config: TrainConfig, state: State, steps: list[Step], began: float
) -> list[TrainRow]:
    """The training rows with their reference, in the order of the steps; where it takes too long, for fewer steps.
    Without a limit on time all at once: then nothing depends on the clock."""
    with_reference, referenced, read, ready, started = list(rows), set[int](), 0, 0, time.monotonic()
    while ready < state.total_steps:
        last = state.total_steps
        if config.max_minutes is not None:
            last = min(ready + budget.REFERENCE_STEPS, last)
        fresh = {i for step in steps[ready:last] for i in step.indices} - referenced
        tokens = sum(reference_tokens(rows[i]) for i in fresh)
        if tokens:
            with_reference = reference(with_reference, fresh)
        referenced, read, ready = referenced | fresh, read + tokens, last
        if read:
            now, took = summed([time.monotonic() - began, time.monotonic() - started])
            seconds_a_token, seconds = took / processes() / read, state.seconds + now / processes()
            state.total_steps = budget.steps_in_time(state, steps, rows, config, seconds, seconds_a_token, ready)
    return with_reference


def _with_reference(
    model: Model, config: TrainConfig, trainable: Trainable, rows: Sequence[TrainRow], indices: Collection[int] = ()
) -> list[TrainRow]:
    """Rows with their reference (the base model, or `init`), of preferences; those of `indices`, default all."""
    places = sorted(indices or range(len(rows)))
    with nullcontext() if config.init else trainable.base():
        with_reference = dict(zip(places, with_references(model, [rows[i] for i in places]), strict=True))
    regroup(model)
    return [with_reference.get(i, row) for i, row in enumerate(rows)]


def _evaluate(run: TrainingRun, rows: SplitRows, began: float) -> None:
    """Validation loss: keep the best weights, count worse ones, decide on stopping."""
    state = run.state
    started = time.monotonic()
    run.model.net.eval()
    record: dict[str, Any] = {"step": state.step}
    if not rows.val:
        state.best_step = state.step
    elif validated := _validation_loss(run, rows.val[: state.read_rows or None], run.config):
        loss, metrics = validated
        if best := state.validated(loss, run.config.patience):
            save_best(run.checkpoints, state.step, run.trainable.state())
        record |= {"val_loss": loss, "best": best}
        record |= {f"val_{name}": metric for name, metric in metrics.items()}
        write_answers(run, rows.val)
    general = rows.general[: state.read_rows or None]
    if general and (forgotten := _validation_loss(run, general, TrainConfig())):
        record["general_loss"], _ = forgotten
    state.validated_at = state.step
    regroup(run.model)
    run.model.net.train()
    state.validation_seconds = summed([time.monotonic() - started])[0] / processes()
    state.checking_seconds += state.validation_seconds
    if len(record) > 1:
        run.record({**record, "seconds": round(time.monotonic() - began, 2)})


def _validation_loss(
    run: TrainingRun, rows: Sequence[TrainRow], config: TrainConfig
) -> tuple[float, dict[str, float]] | None:
    """The loss of validation rows and its metrics; None where there is no time for all that the validations read.

    How many that is turns out in the first one, before the first step, which has a share of the time. The last one has
    all that is left, and what a run may take longer.
    """
    state, limit = run.state, budget.limit_of(run.config, run.state)
    if math.isinf(run.ends_at):
        if run.schedule is None or run.config.max_minutes is None:
            return mean_loss(run.model, rows, config, base=run.trainable.base)
        # The run that this one follows had a clock, and summed in pieces: another order has other last bits.
        loss, metrics, _ = loss_in_time(run.model, rows, config, lambda: math.inf, 0.0, base=run.trainable.base)
        return loss, metrics
    ends_at = run.last_moment
    if state.step < state.total_steps:
        share = budget.CHECKING_SHARE if state.step else budget.FIRST_SHARE
        ends_at = min(ends_at, time.monotonic() + share * limit)
    left, pace = lambda: ends_at - time.monotonic(), budget.forward_pace(state)
    started = time.monotonic()
    loss, metrics, read = loss_in_time(run.model, rows, config, left, pace, base=run.trainable.base)
    if read:
        state.pace = (time.monotonic() - started) / sum(map(tokens_of, rows[:read]))
    if read == len(rows):
        return loss, metrics
    if state.step or not read:
        run.report(
            "validation", f"time leaves no validation at step {state.step}: {read} of {len(rows)} rows were read"
        )
        return None
    run.report("validation", f"validations read {counted(read, 'row')}, not {len(rows)}: there is no time for more")
    state.read_rows = read
    budget.keep_change(run.out, state)
    return loss, metrics


def _result(run: TrainingRun, steps: Sequence[Step], rows: int, resumed_at: int) -> Trained:
    state = run.state
    epochs = round(steps[state.step - 1].epoch, 3) if state.step else 0.0
    rows_seen = budget.rows_seen(steps[: state.step], state.skipped)
    step_speed = state.tokens / max(state.seconds - state.checking_seconds, 1e-9)
    same = ("total_steps", "planned_steps", "best_step", "first_val_loss", "stopped", "tokens", "seconds",
            "checking_seconds", "peak_memory_gib")  # fmt: skip
    return Trained(
        **{name: getattr(state, name) for name in same},
        steps=state.step,
        epochs=epochs,
        rows=rows,
        rows_seen=rows_seen,
        seen=budget.seen_words(rows_seen, rows, epochs),
        best_val_loss=state.best_val_loss if math.isfinite(state.best_val_loss) else float("nan"),
        trainable_parameters=sum(p.numel() for p in run.trainable.parameters.values()),
        planned_tokens_per_second=state.planned_speed,
        speed_share=round(step_speed / state.planned_speed, 3) if state.planned_speed else None,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        adapter_hash=read_json(run.out / run.trainable.folder / "tuneloop.json")["hash"],
        resumed_at=resumed_at,
        findings=tuple(r for r in read_jsonl(run.out / "metrics.jsonl") if "finding" in r),
    )
