"""The training loop, readable from top to bottom."""

from __future__ import annotations

import contextlib
import json
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.files import read_json, read_jsonl, user_errors_of_the_disk
from tuneloop.machine import memory_now, peak_memory, release_memory, reset_peak_memory
from tuneloop.models.load import Model
from tuneloop.models.sharded import whole
from tuneloop.models.template import Rendered
from tuneloop.train.batches import Step, halved, is_out_of_memory, plan_steps
from tuneloop.train.checkpoint import (
    State,
    drop_checkpoints,
    list_checkpoints,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
)
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import (
    agreed,
    is_first,
    load_optimizer,
    own_share,
    processes,
    regroup,
    seed_step,
    sum_gradients,
    summed,
    wait,
)
from tuneloop.train.layers import compile_layers, recompute_layers
from tuneloop.train.loss import LOSSES, Batch, mean_loss, shared_prefix, with_references
from tuneloop.train.methods import Trainable, attach, run_key
from tuneloop.train.optimizers import UpdatesInBackward, make_optimizer
from tuneloop.train.rows import TrainRow, check_rows, conversations, tokens_of
from tuneloop.train.watch import Finding, Watcher, make_watcher, policy, trend
from tuneloop.types import Progress, UserError, no_progress

if TYPE_CHECKING:
    from torch import Tensor


# Steps between giving freed memory back: buffers of ever new sizes leave holes, and without this the process grew by
# two thirds over a run; at every step it would cost as much as `use_threads` gains.
TRIM_EVERY = 8


# A run's speed over minutes as a share of that over its first seconds: the optimizer, freed memory that is faulted in again, and a
# shared processor that slows down under load. .90, .78 and .75 on three runs of the demo; a figure of experience.
SUSTAINED = 0.82


# A run that must go back more often than this has another fault.
MOST_ROLLBACKS = 3


class Preempted(SystemExit):
    """The process was asked to end (SIGTERM, as spot machines send it) and has saved what it had; the exit status is 143."""

    def __init__(self, step: int) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.step = step


@dataclass(frozen=True)
class Rows:
    """What a run reads.

    Args:
        train, val: rows of the configured loss's kind.
        general: rows of other work, held out; their loss shows what is forgotten.
        mixed: for each training row whether it is general data that was blended in.
    """

    train: Sequence[TrainRow]
    val: Sequence[TrainRow] = ()
    general: Sequence[Rendered] = ()
    mixed: Sequence[bool] = ()


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
    train_rows: Sequence[TrainRow],
    val_rows: Sequence[TrainRow],
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
    """Train on rendered rows and leave the best weights in the model and in `out/adapter` or `out/model`.

    Writes `metrics.jsonl` (a record a step and an evaluation) and `checkpoints/`; a run that was cut short goes on
    from its last checkpoint and, on CPU, ends with the same bits as one that was not.

    Args:
        train_rows, val_rows: rows of the configured loss's kind, see `training_rows`.
        out: folder of the run.
        general: rows of other work, held out; their loss is measured beside the validation loss and shows what is forgotten.
        mixed: for each training row whether it is general data; its share is then held in every stretch of steps.
        ids: of the training rows, for the watcher to name them.
        seed: of the start, the order of rows and dropout.
        data_id: identifies the data set; a checkpoint made from another one is refused.
        tokens_per_second: measured speed, needed with `config.max_minutes`.
        log: gets every record of `metrics.jsonl` as it is written.

    Raises:
        UserError: no rows, a row without supervised tokens, the loss is not a number, foreign or damaged
            checkpoints, a full disk, a row that is too large for the memory.
        Preempted: SIGTERM came; a checkpoint is written.
    """
    import torch

    check_rows(train_rows, "training", model.head.shape[0])
    key = run_key(model, config, seed, data_id)
    state = load_checkpoint(out / "checkpoints", key) or State(key)
    resumed_at = state.step
    steps = plan_steps(train_rows, config, seed, mixed)
    if state.total_steps:
        steps = steps[: state.total_steps]
    else:
        steps = within_time(steps, train_rows, config, tokens_per_second)
        state.total_steps = len(steps)
    trainable = attach(model, config, seed, train_rows)  # spreads the model over the processes, where there are several
    rows = Rows(
        train=_referenced(model, train_rows, config, trainable, progress),
        val=_referenced(model, _sample(val_rows, config.val_rows, seed), config, trainable, progress),
        general=_sample(general, config.val_rows, seed),
    )
    start = {name: p.detach().clone() for name, p in trainable.parameters.items()} if config.l2_start else {}
    untrained = trainable.state() if "rollback" in (config.on_spike, config.on_divergence) else {}
    optimizer = make_optimizer(trainable, config)
    recompute_layers(model.net, config.gradient_checkpointing == "always" or state.recompute)
    if config.compile:
        compile_layers(model.net)
    torch.manual_seed(seed)
    if state.step:
        trainable.load(state.parameters, str(out / "checkpoints"))
        load_optimizer(optimizer, state.optimizer)
        torch.set_rng_state(state.rng)
    watcher = make_watcher(config, train_rows, state.total_steps)
    run = Run(
        model,
        config,
        trainable,
        optimizer,
        state,
        out,
        log,
        progress,
        start,
        watcher,
        ids,
        untrained=untrained,
        seed=seed,
    )
    release_memory()
    reset_peak_memory()
    if not is_first():
        run = replace(run, log=lambda record: None, progress=no_progress)
    with _metrics(run) as run.metrics, _notice_sigterm(run):
        wait()
        for record in read_jsonl(out / "metrics.jsonl"):
            watcher.feed(record)
        wait()
        _steps(run, steps, rows)
    _finish(run)
    return Trained(
        steps=state.step,
        total_steps=state.total_steps,
        epochs=round(steps[state.step - 1].epoch, 3) if state.step else 0.0,
        best_step=state.best_step,
        best_val_loss=state.best_val_loss if math.isfinite(state.best_val_loss) else float("nan"),
        first_val_loss=state.first_val_loss,
        stopped=state.stopped,
        trainable_parameters=sum(p.numel() for p in trainable.parameters.values()),
        tokens=state.tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        peak_memory_gib=state.peak_memory_gib,
        adapter_hash=read_json(out / trainable.folder / "tuneloop.json")["hash"],
        resumed_at=resumed_at,
        findings=tuple(r for r in read_jsonl(out / "metrics.jsonl") if "finding" in r),
    )


@dataclass
class Run:
    """What the loop's parts share."""

    model: Model
    config: TrainConfig
    trainable: Trainable
    optimizer: Any
    state: State
    out: Path
    log: Callable[[dict[str, Any]], None] = lambda record: None
    progress: Progress = no_progress
    start: dict[str, Tensor] = field(default_factory=dict)
    watcher: Watcher = field(default_factory=Watcher)
    ids: Sequence[str] = ()
    found: list[Finding] = field(default_factory=list)
    untrained: dict[str, Tensor] = field(default_factory=dict)
    metrics: Any = None
    saved_at: float = 0.0
    asked_to_end: bool = False
    seed: int = 0
    in_backward: UpdatesInBackward | None = None

    def __post_init__(self) -> None:
        if self.config.optimizer_in_backward:
            self.in_backward = UpdatesInBackward(self.optimizer)
            self.trainable.ready[:] = [self.in_backward]

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


def _steps(run: Run, steps: list[Step], rows: Rows) -> None:
    """Optimizer steps from where the state is to the end, with evaluations and checkpoints between."""
    state, config, model = run.state, run.config, run.model
    total = len(steps)
    due = {round(total * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    began = time.monotonic() - state.seconds
    run.saved_at = time.monotonic()
    if state.step == 0:
        _evaluate(run, rows, began)
        _save(run)
    model.net.train()
    run.progress("training", state.step, total)
    while state.step < total and not state.stopped:
        if state.step + 1 in state.skipped:
            state.step += 1
            continue
        step = steps[state.step]
        seed_step(run.seed, state.step)
        started = time.monotonic()
        rate = learning_rate(state.step, total, config) * state.rate_factor
        loss, norm, figures = optimizer_step(run, step, rows.train, rate)
        tokens = sum(tokens_of(rows.train[i]) for micro in step.micro_batches for i in micro)
        state.step += 1
        state.tokens += tokens
        seconds = time.monotonic() - started
        _record(run, {
            "step": state.step, "epoch": round(step.epoch, 4), "loss": loss, "learning_rate": rate, "grad_norm": norm,
            "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1), "seconds": round(time.monotonic() - began, 2),
            "memory_gib": round(memory_now(), 3), "rows": [i for micro in step.micro_batches for i in micro], **figures,
        })  # fmt: skip
        run.progress("training", state.step, total, loss=trend(run.watcher.losses), tokens_per_second=tokens / seconds,
                     learning_rate=rate, memory=memory_now())  # fmt: skip
        if state.step in due and math.isfinite(loss):
            _evaluate(run, rows, began)
        if _act(run, bool(rows.val)):
            continue
        if state.step % TRIM_EVERY == 0:
            release_memory()
        state.seconds = time.monotonic() - began
        run.asked_to_end = agreed(run.asked_to_end)
        if agreed(_checkpoint_due(run)):
            _save(run)
        if run.asked_to_end and state.step < total and not state.stopped:
            raise Preempted(state.step)
    if not state.stopped:
        state.stopped = "finished"
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())


def _act(run: Run, validated: bool) -> bool:
    """Do what the policies say about what the watcher has found; whether the run went back to a checkpoint.

    Raises:
        UserError: the run is to stop and has no evaluated weights worth keeping, or its weights are no numbers any more.
    """
    state, config = run.state, run.config
    found, run.found = run.found, []
    broken = not (math.isfinite(run.watcher.losses[-1]) and math.isfinite(run.watcher.norms[-1]))
    for finding in found:
        wanted = policy(finding.kind, config)
        if wanted == "rollback" and state.rollbacks < MOST_ROLLBACKS:
            _roll_back(run, finding)
            return True
        useless = validated and not (state.best_step and state.best_val_loss < state.first_val_loss)
        if broken or (wanted != "warn" and useless):
            rates = [r for r in finding.remedies if r.startswith("train.learning_rate=")]
            lower = rates[0] if rates else f"train.learning_rate={config.learning_rate / 5:g}"
            raise UserError(
                f"{finding.sentence} The run is stopped",
                where=str(run.out / "metrics.jsonl"),
                next_step=f"start again with {lower} output_dir=FOLDER",
            )
        if wanted != "warn":
            state.stopped = finding.kind
    return False


def _roll_back(run: Run, finding: Finding) -> None:
    """Go on from a checkpoint before the finding at half the learning rate, without the batch that is to blame, if one is."""
    import torch

    state, kept = run.state, list_checkpoints(run.checkpoints)
    for newer in kept[1:] if finding.kind in ("divergence", "learning_rate_too_high") and is_first() else []:
        newer.unlink()  # it may hold weights that were on their way already
    wait()
    before = load_checkpoint(run.checkpoints, state.key)
    if before is None:
        raise UserError(
            "There is no checkpoint to go back to", where=str(run.checkpoints), next_step="set train.on_divergence=stop"
        )
    skipped = [*state.skipped, finding.step] if finding.rows else state.skipped
    halved_rate, rollbacks, tokens = state.rate_factor / 2, state.rollbacks + 1, state.tokens
    vars(state).update(vars(before))
    state.rate_factor, state.skipped, state.rollbacks, state.tokens = halved_rate, skipped, rollbacks, tokens
    run.trainable.load(state.parameters or run.untrained, str(run.checkpoints))
    run.optimizer.state.clear()
    if state.optimizer:
        load_optimizer(run.optimizer, state.optimizer)
    torch.set_rng_state(state.rng)
    run.watcher.go_back(state.step)
    _record(run, {"step": state.step, "event": "rollback",
                  "message": f"{finding.kind.replace('_', ' ')} at step {finding.step}: back to step {state.step}, the learning rate "
                             f"times {state.rate_factor:g}" + (f", without the rows of step {finding.step}" if finding.rows else "")})  # fmt: skip
    _save(run)


def _checkpoint_due(run: Run) -> bool:
    every = run.config.checkpoint_steps
    return (
        run.asked_to_end
        or time.monotonic() - run.saved_at > run.config.checkpoint_seconds
        or (every is not None and run.state.step % every == 0)
    )


@contextlib.contextmanager
def _notice_sigterm(run: Run) -> Iterator[None]:
    """Let the step that is being computed end when the system asks the process to; a second signal ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def notice(number: int, frame: Any) -> None:
        run.asked_to_end = True
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def optimizer_step(
    run: Run, step: Step, rows: Sequence[TrainRow], rate: float
) -> tuple[float, float, dict[str, float]]:
    """One optimizer step: the mean loss over all its micro-batches, the gradient's norm, and the loss's further figures.

    The mean is taken over the whole step, so that how it is divided into micro-batches changes nothing. When memory runs
    out the step is done again in micro-batches of half as many rows, and so are those that follow.

    Raises:
        UserError: a single row does not fit into memory.
    """
    import torch

    parameters = list(run.trainable.parameters.values())
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)
    for _ in range(run.state.halvings):
        with contextlib.suppress(ValueError):
            step = halved(step)
    while True:
        rng = torch.get_rng_state()
        try:
            total, figures = _gradients(run, step, rows)
            break
        except (RuntimeError, MemoryError) as error:
            # With several processes the others are in the middle of the step; in the backward pass weights have changed already.
            if not is_out_of_memory(error) or processes() > 1 or run.in_backward:
                raise
        run.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(rng)
        step = _with_less_memory(run, step, rows)
    if run.in_backward:
        norm = run.in_backward.norm()
    else:
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    run.trainable.after_step()
    return total, norm, figures


def _gradients(run: Run, step: Step, rows: Sequence[TrainRow]) -> tuple[float, dict[str, float]]:
    """Add the gradient of a step to the parameters, micro-batch by micro-batch."""
    import torch

    loss = LOSSES[run.config.loss]
    of_step = [rows[i] for micro in step.micro_batches for i in micro]
    share = 1 / sum(loss.units(row) for row in of_step)
    constant = loss.constant(Batch(run.model, of_step, share, run.config, run.trainable.untouched))
    total, figures = 0.0, dict[str, float]()
    own_micro_batches = own_share(step.micro_batches)
    for place, (micro, counted) in enumerate(own_micro_batches, 1):
        if run.in_backward:
            run.in_backward.armed = place == len(own_micro_batches)
        own = share if counted else 0.0
        batch = Batch(run.model, [rows[i] for i in micro], own, run.config, run.trainable.untouched, constant)
        value, sums = loss.value(batch)
        value.backward()  # type: ignore[no-untyped-call]
        total += float(value.detach())
        for name, figure in sums.items():
            figures[name] = figures.get(name, 0.0) + float(figure)
    sum_gradients(list(run.trainable.parameters.values()))
    total, *sums_of_all = summed([total, *figures.values()])
    figures = dict(zip(figures, sums_of_all, strict=True))
    if run.start:
        parameters = run.trainable.parameters.items()
        distance = torch.stack([(p - run.start[name]).square().sum() for name, p in parameters]).sum()
        (run.config.l2_start * distance).backward()  # type: ignore[no-untyped-call]
        figures["l2_start"] = float(whole(distance.detach()))
    return total, figures


def _with_less_memory(run: Run, step: Step, rows: Sequence[TrainRow]) -> Step:
    """The step in smaller micro-batches; what is said about it stands in `metrics.jsonl`."""
    import torch

    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        smaller = halved(step)
    except ValueError:
        if run.config.gradient_checkpointing == "auto" and not run.state.recompute:
            run.state.recompute = True
            recompute_layers(run.model.net, True)
            _record(run, {"step": run.state.step, "event": "out_of_memory",
                          "message": f"memory ran out: from step {run.state.step + 1} on layers are computed again in the backward "
                                     "pass, which takes about a third longer; the result stays the same"})  # fmt: skip
            return step
        longest = max(tokens_of(rows[i]) for micro in step.micro_batches for i in micro)
        raise UserError(
            f"Out of memory at step {run.state.step + 1}: a single row of {longest:,} tokens does not fit",
            where=str(run.out),
            next_step=f"set data.max_length={longest // 2}, or use a machine with more memory; the same command goes on",
        ) from None
    run.state.halvings += 1
    before, after = (max(len(micro) for micro in s.micro_batches) for s in (step, smaller))
    _record(run, {"step": run.state.step, "event": "out_of_memory",
                  "message": f"memory ran out: micro-batches of {after} rows instead of {before} from step "
                             f"{run.state.step + 1} on; a step's rows and its result stay the same"})  # fmt: skip
    return smaller


def batch_loss(model: Model, rows: Sequence[TrainRow], weight: float, config: TrainConfig = TrainConfig()) -> Tensor:
    """The configured loss of one micro-batch, each unit (a learned token, a pair) counted `weight`."""
    return LOSSES[config.loss].value(Batch(model, rows, weight, config))[0]


def micro_shape(rows: Sequence[TrainRow]) -> tuple[int, int, int]:
    """Conversations, their padded length behind what they share, and the length of that."""
    parts = [part for row in rows for part in conversations(row)]
    prefix = shared_prefix(parts)
    return len(parts), max(len(part.ids) for part in parts) - prefix, prefix


def measure_speed(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, seed: int, seconds: float = 3.0
) -> float:
    """Tokens a second that a run will keep up, from forward and backward passes on some of its own batches.

    Nothing is changed. A few seconds run faster than many minutes, see SUSTAINED.
    """
    import torch

    check_rows(rows, "training", model.head.shape[0])
    trainable = attach(model, config, seed, rows)
    steps = plan_steps(rows, config, seed)
    picked = random.Random(seed).sample(steps, min(len(steps), 8))
    model.net.train()
    with torch.random.fork_rng(devices=[]):
        batch_loss(model, [rows[i] for i in picked[0].micro_batches[0]], 1.0, config).backward()  # type: ignore[no-untyped-call]
        began, tokens = time.monotonic(), 0
        for step in picked:
            for micro, _ in own_share(step.micro_batches):
                batch_loss(model, [rows[i] for i in micro], 1.0, config).backward()  # type: ignore[no-untyped-call]
            tokens += sum(tokens_of(rows[i]) for micro in step.micro_batches for i in micro)
            if agreed(time.monotonic() - began > seconds):
                break
    took = time.monotonic() - began
    for parameter in trainable.parameters.values():
        parameter.grad = None
    trainable.detach()
    model.net.eval()
    return SUSTAINED * tokens / took


def _referenced(
    model: Model, rows: Sequence[TrainRow], config: TrainConfig, trainable: Trainable, progress: Progress
) -> list[TrainRow]:
    """Rows of preferences with what the reference makes of them: the untouched model, or what `init` goes on from."""
    with nullcontext() if config.init else trainable.untouched():
        found = with_references(model, rows, progress)
    regroup(model)
    return found


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
        _record(run, {**record, "seconds": round(time.monotonic() - began, 2)})


def _loss_of(run: Run, rows: Sequence[TrainRow], config: TrainConfig) -> tuple[float, dict[str, float]]:
    return mean_loss(run.model, rows, config, untouched=run.trainable.untouched, progress=run.progress)


def _record(run: Run, record: dict[str, Any]) -> None:
    if run.metrics is not None:
        run.metrics.write(record)
    run.log(record)
    batch = [run.ids[i] for i in record.get("rows", ())] if run.ids and "loss" in record else []
    for finding in run.watcher.feed(record, batch):
        run.found.append(finding)
        _record(run, finding.to_record())


def _save(run: Run) -> None:
    import torch

    state = run.state
    if state.step:  # the first checkpoint only holds the plan: a resumed run makes the same start again
        state.parameters = run.trainable.state()
        state.optimizer = run.optimizer.state_dict()
    state.rng = torch.get_rng_state()
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())
    if run.metrics is not None:
        run.metrics.sync()
    save_checkpoint(run.checkpoints, state, run.config.keep_checkpoints)
    state.parameters, state.optimizer = {}, {}
    run.saved_at = time.monotonic()


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


def within_time(steps: list[Step], rows: Sequence[Any], config: TrainConfig, speed: float) -> list[Step]:
    """Cut the plan to what fits into `max_minutes` at the measured speed; the learning rate falls over what is left."""
    if config.max_minutes is None or speed <= 0:
        return steps
    budget = config.max_minutes * 60 * speed
    used = 0
    for count, step in enumerate(steps):
        used += sum(tokens_of(rows[i]) for micro in step.micro_batches for i in micro)
        if used > budget:
            return steps[: max(count, 1)]
    return steps


def _metrics(run: Run) -> contextlib.AbstractContextManager[_MetricsFile | None]:
    """The run's metrics, opened by the process that writes them."""
    return _MetricsFile(run.out / "metrics.jsonl", run.state.step) if is_first() else nullcontext()


class _MetricsFile:
    """`metrics.jsonl`, appended record by record; opening drops what a cut-short run wrote behind its last checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        with user_errors_of_the_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = []
            if step and path.is_file():
                for line in path.read_text(encoding="utf-8").splitlines():
                    try:
                        if json.loads(line)["step"] <= step:
                            kept.append(line + "\n")
                    except (ValueError, KeyError):
                        continue  # the line that was being written when the process died
            path.write_text("".join(kept), encoding="utf-8")
            self.file = path.open("a", encoding="utf-8")

    def __enter__(self) -> _MetricsFile:
        return self

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
        import os

        with user_errors_of_the_disk(self.path):
            os.fsync(self.file.fileno())
