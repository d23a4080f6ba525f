"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.files import content_hash, read_json, read_jsonl
from tuneloop.machine import memory_now, peak_memory, release_memory, reset_peak_memory
from tuneloop.models.load import Model
from tuneloop.models.template import Rendered
from tuneloop.train.batches import Step, plan_steps
from tuneloop.train.checkpoint import State, drop_checkpoints, load_best, load_checkpoint, save_best
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import agreed, is_first, regroup, seed_step, wait
from tuneloop.train.layers import compile_layers, recompute_layers
from tuneloop.train.loss import mean_loss, with_references
from tuneloop.train.methods import Trainable, attach, run_key
from tuneloop.train.optimizers import make_optimizer
from tuneloop.train.rows import TrainRow, check_rows, conversations, is_usable, tokens_of, training_rows
from tuneloop.train.run import Run
from tuneloop.train.setbacks import Preempted, act, notice_sigterm
from tuneloop.train.speed import within_time
from tuneloop.train.step import optimizer_step
from tuneloop.train.watch import make_watcher, trend
from tuneloop.types import Progress, Row, no_progress

# Steps between giving freed memory back: buffers of ever new sizes leave holes, and without this the process grew by
# two thirds over a run; at every step it would cost as much as `use_threads` gains.
TRIM_EVERY = 8


@dataclass(frozen=True)
class Rows:
    """What a run reads.

    Args:
        train, val: rows of the configured loss's kind.
        general: rows of other work, held out; their loss shows what is forgotten.
    """

    train: Sequence[TrainRow]
    val: Sequence[TrainRow] = ()
    general: Sequence[Rendered] = ()


@dataclass(frozen=True)
class Trained:
    """What a run came to; `run.json` is made of it."""

    steps: int
    total_steps: int
    epochs: float
    best_step: int
    best_val_loss: float
    first_val_loss: float
    stopped: str
    trainable_parameters: int
    tokens: int
    seconds: float
    tokens_per_second: float
    peak_memory_gib: float
    adapter_hash: str
    resumed_at: int
    findings: tuple[dict[str, Any], ...] = ()


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear rise over the warm-up, then down to zero at the end."""
    rise = max(round(total * config.warmup), 1)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    if config.schedule == "constant":
        return config.learning_rate
    left = 1 - (step - rise) / max(total - rise, 1)
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left)))


def train(
    model: Model,
    train_rows: Sequence[Row | TrainRow],
    val_rows: Sequence[Row | TrainRow],
    config: TrainConfig,
    out: Path,
    *,
    general: Sequence[Rendered] = (),
    mixed: Sequence[bool] = (),
    ids: Sequence[str] = (),
    seed: int = 0,
    data_id: str = "",
    tokens_per_second: float = 0.0,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
    progress: Progress = no_progress,
) -> Trained:
    """Train on rows and leave the best weights in the model and in `out/adapter` or `out/model`.

    Writes `metrics.jsonl` (a record a step and an evaluation) and `checkpoints/`; a run that was cut short goes on
    from its last checkpoint and, on CPU, ends with the same bits as one that was not.

    Args:
        train_rows, val_rows: rows of a data set, or made of them for the configured loss, see `training_rows`.
        out: folder of the run.
        general: rows of other work, held out; their loss is measured beside the validation loss and shows what is forgotten.
        mixed: for each training row whether it is general data; its share is then held in every stretch of steps.
        ids: of the training rows, for the watcher to name them. Rows of a data set say both themselves.
        seed: of the start, the order of rows and dropout.
        data_id: identifies the data set; a checkpoint made from another one is refused. Default: a hash of the training rows.
        tokens_per_second: measured speed, needed with `config.max_minutes`.
        log: gets every record of `metrics.jsonl` as it is written.

    Raises:
        UserError: no rows, a row without supervised tokens, the loss is not a number, foreign or damaged
            checkpoints, a full disk, a row that is too large for the memory.
        Preempted: SIGTERM came; a checkpoint is written.
    """
    usable = [row for row in train_rows if isinstance(row, Row) and is_usable(row, config)]
    ids = ids or [row.id for row in usable]
    mixed = mixed or ["mix" in row.meta for row in usable]
    rows = Rows(training_rows(train_rows, model.template, config), training_rows(val_rows, model.template, config))
    check_rows(rows.train, "training", model.head.shape[0])
    if rows.val:
        check_rows(rows.val, "validation", model.head.shape[0])
    key = run_key(
        model, config, seed, data_id or content_hash([part.ids for r in rows.train for part in conversations(r)])
    )
    state = load_checkpoint(out / "checkpoints", key) or State(key)
    resumed_at = state.step
    steps = plan_steps(rows.train, config, seed, mixed)
    if state.total_steps:
        steps = steps[: state.total_steps]
    else:
        steps = within_time(steps, rows.train, config, tokens_per_second)
        state.total_steps = len(steps)
    trainable = attach(model, config, seed, rows.train)  # spreads the model over the processes, where there are several
    began = time.monotonic()
    rows = Rows(
        train=_referenced(model, rows.train, config, trainable, progress, {i for step in steps for i in step.indices}),
        val=_referenced(model, _sample(rows.val, config.val_rows, seed), config, trainable, progress),
        general=_sample(general, config.val_rows, seed),
    )
    state.seconds += time.monotonic() - began
    run = _begin(model, config, trainable, state, rows, seed, out)
    run.ids = ids
    if is_first():
        run.log, run.progress = log, progress
    with run.open_metrics() as run.metrics, notice_sigterm(run):
        wait()
        for record in read_jsonl(out / "metrics.jsonl"):
            run.watcher.feed(record)
        wait()
        _steps(run, steps, rows)
    _finish(run)
    return _result(run, steps, resumed_at)


def _begin(
    model: Model, config: TrainConfig, trainable: Trainable, state: State, rows: Rows, seed: int, out: Path
) -> Run:
    """The run before its next step: the first one, or the one behind the checkpoint."""
    import torch

    run = Run(
        model,
        config,
        trainable,
        make_optimizer(trainable, config),
        state,
        out,
        watcher=make_watcher(config, rows.train, state.total_steps),
        seed=seed,
    )
    if config.l2_start:
        run.start = {name: p.detach().clone() for name, p in trainable.parameters.items()}
    if "rollback" in (config.on_spike, config.on_divergence):
        run.untrained = trainable.state()
    recompute_layers(model.net, config.gradient_checkpointing == "always" or state.recompute)
    if config.compile:
        compile_layers(model.net)
    torch.manual_seed(seed)
    if state.step:
        run.restore()
    release_memory()
    reset_peak_memory()
    return run


def _steps(run: Run, steps: list[Step], rows: Rows) -> None:
    """Optimizer steps from where the state is to the end, with evaluations and checkpoints between."""
    state, config, total = run.state, run.config, len(steps)
    due = {round(total * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    began = time.monotonic() - state.seconds
    run.saved_at = time.monotonic()
    if state.step == 0:
        _evaluate(run, rows, began)
        run.save()
    run.model.net.train()
    run.progress("training", state.step, total)
    while state.step < total and not state.stopped:
        if state.step + 1 in state.skipped:
            state.step += 1
            continue
        _step(run, steps[state.step], rows, began)
        if state.step in due and math.isfinite(run.watcher.losses[-1]):
            _evaluate(run, rows, began)
        if act(run, bool(rows.val)):
            continue
        if state.step % TRIM_EVERY == 0:
            release_memory()
        state.seconds = time.monotonic() - began
        run.asked_to_end = agreed(run.asked_to_end)
        if agreed(run.checkpoint_due()):
            run.save()
        if run.asked_to_end and state.step < total and not state.stopped:
            raise Preempted(state.step)
    if not state.stopped:
        state.stopped = "finished"
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())


def _step(run: Run, step: Step, rows: Rows, began: float) -> None:
    """One optimizer step and its record."""
    state = run.state
    seed_step(run.seed, state.step)
    started = time.monotonic()
    rate = learning_rate(state.step, state.total_steps, run.config) * state.rate_factor
    loss, norm, figures = optimizer_step(run, step, rows.train, rate)
    numbers = step.indices
    tokens = sum(tokens_of(rows.train[i]) for i in numbers)
    state.step += 1
    state.tokens += tokens
    speed = tokens / (time.monotonic() - started)
    run.record({
        "step": state.step, "epoch": round(step.epoch, 4), "loss": loss, "learning_rate": rate, "grad_norm": norm,
        "tokens": tokens, "tokens_per_second": round(speed, 1), "seconds": round(time.monotonic() - began, 2),
        "memory_gib": round(memory_now(), 3), "rows": numbers, **figures,
    })  # fmt: skip
    run.progress("training", state.step, state.total_steps, loss=trend(run.watcher.losses), tokens_per_second=speed,
                 learning_rate=rate, memory=memory_now())  # fmt: skip


def _referenced(
    model: Model,
    rows: Sequence[TrainRow],
    config: TrainConfig,
    trainable: Trainable,
    progress: Progress,
    needed: Collection[int] | None = None,
) -> list[TrainRow]:
    """Rows of preferences with what the reference makes of them: the untouched model, or what `init` goes on from.

    Args:
        needed: the rows that it is asked for; default: all. A run that is short in time trains on some.
    """
    places = sorted(range(len(rows)) if needed is None else needed)
    with nullcontext() if config.init else trainable.untouched():
        found = dict(zip(places, with_references(model, [rows[i] for i in places], progress), strict=True))
    regroup(model)
    return [found.get(i, row) for i, row in enumerate(rows)]


def _evaluate(run: Run, rows: Rows, began: float) -> None:
    """Validation loss: keep the best weights, count worse ones, decide on stopping."""
    state = run.state
    if not rows.val:
        state.best_step = state.step
    run.model.net.eval()
    record: dict[str, Any] = {"step": state.step}
    if rows.val:
        loss, figures = _loss_of(run, rows.val, run.config)
        better = loss < state.best_val_loss
        if state.step == 0:
            state.first_val_loss = loss  # the untouched model: a mark to compare with, not a candidate
        elif better:
            state.best_val_loss, state.best_step, state.worse = loss, state.step, 0
            save_best(run.checkpoints, state.step, run.trainable.state())
        else:
            state.worse += 1
            if state.worse >= run.config.patience and state.step < state.total_steps:
                state.stopped = "early"
        record |= {"val_loss": loss, "best": bool(better and state.step > 0)}
        record |= {f"val_{name}": figure for name, figure in figures.items()}
    if rows.general:
        record["general_loss"], _ = _loss_of(run, rows.general, TrainConfig())
    regroup(run.model)
    run.model.net.train()
    if len(record) > 1:
        run.record({**record, "seconds": round(time.monotonic() - began, 2)})


def _loss_of(run: Run, rows: Sequence[TrainRow], config: TrainConfig) -> tuple[float, dict[str, float]]:
    return mean_loss(run.model, rows, config, untouched=run.trainable.untouched, progress=run.progress)


def _finish(run: Run) -> None:
    """Put the best weights into the model and into the run's folder; checkpoints have served."""
    best = load_best(run.checkpoints, run.state.best_step)
    if best is not None:
        run.trainable.load(best, str(run.checkpoints))
    run.model.net.eval()
    recompute_layers(run.model.net, False)
    run.trainable.save(run.out / run.trainable.folder)
    wait()
    drop_checkpoints(run.checkpoints)


def _sample(rows: Sequence[Any], most: int, seed: int) -> list[Any]:
    return list(rows) if len(rows) <= most else random.Random(seed).sample(list(rows), most)


def _result(run: Run, steps: Sequence[Step], resumed_at: int) -> Trained:
    state = run.state
    return Trained(
        steps=state.step,
        total_steps=state.total_steps,
        epochs=round(steps[state.step - 1].epoch, 3) if state.step else 0.0,
        best_step=state.best_step,
        best_val_loss=state.best_val_loss if math.isfinite(state.best_val_loss) else float("nan"),
        first_val_loss=state.first_val_loss,
        stopped=state.stopped,
        trainable_parameters=sum(p.numel() for p in run.trainable.parameters.values()),
        tokens=state.tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        peak_memory_gib=state.peak_memory_gib,
        adapter_hash=read_json(run.out / run.trainable.folder / "tuneloop.json")["hash"],
        resumed_at=resumed_at,
        findings=tuple(r for r in read_jsonl(run.out / "metrics.jsonl") if "finding" in r),
    )
