"""The training loop, readable from top to bottom."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.files import content_hash, user_errors_of_the_disk
from tuneloop.machine import memory_now, peak_memory, release_memory, reset_peak_memory
from tuneloop.models.generate import answer_losses
from tuneloop.models.load import Model
from tuneloop.models.lora import (
    LoraShape,
    adapter_state,
    add_lora,
    load_adapter_state,
    lora_layers,
    save_adapter,
    target_names,
)
from tuneloop.models.template import Rendered
from tuneloop.train.batches import Step, plan_steps
from tuneloop.train.checkpoint import State, drop_checkpoints, load_checkpoint, save_checkpoint
from tuneloop.train.config import TrainConfig
from tuneloop.train.loss import head_cross_entropy
from tuneloop.types import Progress, UserError, no_progress

if TYPE_CHECKING:
    from torch import Tensor, nn


# Steps between giving freed memory back: buffers of ever new sizes leave holes, and without this the process grew by
# two thirds over a run; at every step it would cost as much as `use_threads` gains.
TRIM_EVERY = 8


# A run's speed over minutes as a share of that over its first seconds: the optimizer, freed memory that is faulted in again, and a
# shared processor that slows down under load. .90, .78 and .75 on three runs of the demo; a figure of experience.
SUSTAINED = 0.82


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


def lora_shape(model: Model, config: TrainConfig) -> LoraShape:
    """The adapter that the configuration asks for on this model."""
    return LoraShape(config.rank, config.alpha, config.dropout, target_names(model.net, config.targets))


def attach_adapter(model: Model, config: TrainConfig, seed: int) -> list[nn.Parameter]:
    """Put a fresh adapter into the model, or find the one that is there; returns its parameters."""
    layers = lora_layers(model.net)
    if layers:
        return [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    return add_lora(model.net, lora_shape(model, config), seed)


def make_optimizer(model: Model, config: TrainConfig) -> Any:
    """AdamW over the adapter, the B matrices at `config.lora_plus` times the rate.

    B starts at zero and has the larger role in early learning, so one rate for both is too low for B or too high for A
    (LoRA+, Hayou et al. 2024, arXiv 2402.12354). The factor stands in each parameter group as `ratio`.
    """
    import torch

    layers = lora_layers(model.net).values()
    groups = [
        {"params": [layer.lora_A for layer in layers], "ratio": 1.0},
        {"params": [layer.lora_B for layer in layers], "ratio": config.lora_plus},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.999), fused=True
    )


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
    train_rows: Sequence[Rendered],
    val_rows: Sequence[Rendered],
    config: TrainConfig,
    out: Path,
    *,
    seed: int = 0,
    data_id: str = "",
    tokens_per_second: float = 0.0,
    log: Callable[[dict[str, Any]], None] = lambda record: None,
    progress: Progress = no_progress,
) -> Trained:
    """Train an adapter on rendered rows and leave the best one in the model and in `out/adapter`.

    Writes `metrics.jsonl` (a record a step and an evaluation) and `checkpoints/`; a run that was cut short goes on
    from its last checkpoint and, on CPU, ends with the same bits as one that was not.

    Args:
        train_rows, val_rows: conversations with their loss masks.
        out: folder of the run.
        seed: of the adapter's start, the order of rows and dropout.
        data_id: identifies the data set; a checkpoint made from another one is refused.
        tokens_per_second: measured speed, needed with `config.max_minutes`.
        log: gets every record of `metrics.jsonl` as it is written.

    Raises:
        UserError: no rows, a row without supervised tokens, the loss is not a number, foreign or damaged
            checkpoints, a full disk.
    """
    import torch

    _check_rows(train_rows, "training")
    key = content_hash([config, seed, data_id, model.fingerprint])
    steps = plan_steps(train_rows, config, seed)
    steps = within_time(steps, train_rows, config, tokens_per_second)
    parameters = attach_adapter(model, config, seed)
    optimizer = make_optimizer(model, config)
    torch.manual_seed(seed)
    state = load_checkpoint(out / "checkpoints", key)
    resumed_at = state.step if state else 0
    if state is None:
        state = State(key, total_steps=len(steps))
    else:
        load_adapter_state(model.net, state.adapter, str(out / "checkpoints"))
        optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng)
        steps = plan_steps(train_rows, config, seed)[: state.total_steps]
    val_rows = _sample(val_rows, config.val_rows, seed)
    run = _Run(model, config, optimizer, parameters, state, out, log, progress)
    release_memory()
    reset_peak_memory()
    with _MetricsFile(out / "metrics.jsonl", state.step) as run.metrics:
        _steps(run, steps, train_rows, val_rows)
    _finish(run, out)
    return Trained(
        steps=state.step,
        total_steps=state.total_steps,
        epochs=round(steps[state.step - 1].epoch, 3) if state.step else 0.0,
        best_step=state.best_step,
        best_val_loss=state.best_val_loss if math.isfinite(state.best_val_loss) else float("nan"),
        first_val_loss=state.first_val_loss,
        stopped=state.stopped,
        trainable_parameters=sum(p.numel() for p in parameters),
        tokens=state.tokens,
        seconds=state.seconds,
        tokens_per_second=state.tokens / max(state.seconds, 1e-9),
        peak_memory_gib=state.peak_memory_gib,
        adapter_hash=json.loads((out / "adapter" / "tuneloop.json").read_text())["hash"],
        resumed_at=resumed_at,
    )


@dataclass
class _Run:
    """What the loop's parts share."""

    model: Model
    config: TrainConfig
    optimizer: Any
    parameters: list[nn.Parameter]
    state: State
    out: Path
    log: Callable[[dict[str, Any]], None]
    progress: Progress
    metrics: Any = None
    saved_at: float = 0.0


def _steps(run: _Run, steps: list[Step], train_rows: Sequence[Rendered], val_rows: Sequence[Rendered]) -> None:
    """Optimizer steps from where the state is to the end, with evaluations and checkpoints between."""
    state, config, model = run.state, run.config, run.model
    total = len(steps)
    due = {round(total * (i + 1) / config.evaluations) for i in range(config.evaluations)}
    began = time.monotonic() - state.seconds
    run.saved_at = time.monotonic()
    if state.step == 0:
        _evaluate(run, val_rows, began)
        _save(run)
    model.net.train()
    run.progress("training", state.step, total)
    while state.step < total and not state.stopped:
        step = steps[state.step]
        started = time.monotonic()
        rate = learning_rate(state.step, total, config)
        loss, norm = optimizer_step(model, step, train_rows, run.optimizer, run.parameters, rate, config.max_grad_norm)
        tokens = sum(len(train_rows[i].ids) for micro in step.micro_batches for i in micro)
        state.step += 1
        state.tokens += tokens
        seconds = time.monotonic() - started
        _record(run, {
            "step": state.step, "epoch": round(step.epoch, 4), "loss": loss, "learning_rate": rate, "grad_norm": norm,
            "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1), "seconds": round(time.monotonic() - began, 2),
            "memory_gib": round(memory_now(), 3),
        })  # fmt: skip
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise UserError(
                f"The loss is {loss} at step {state.step}: training has diverged",
                where=str(run.out / "metrics.jsonl"),
                next_step=f"start again with a lower rate, as in train.learning_rate={config.learning_rate / 5:g} output_dir=FOLDER",
            )
        run.progress("training", state.step, total, loss=loss, tokens_per_second=tokens / seconds)
        if state.step in due:
            _evaluate(run, val_rows, began)
        if state.step % TRIM_EVERY == 0:
            release_memory()
        state.seconds = time.monotonic() - began
        if state.step in due or time.monotonic() - run.saved_at > config.checkpoint_seconds:
            _save(run)
    if not state.stopped:
        state.stopped = "finished"
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())


def optimizer_step(
    model: Model,
    step: Step,
    rows: Sequence[Rendered],
    optimizer: Any,
    parameters: Sequence[nn.Parameter],
    rate: float,
    max_grad_norm: float,
) -> tuple[float, float]:
    """One optimizer step: the mean loss over the supervised tokens of all its micro-batches, and the gradient's norm.

    The mean is taken over the whole step, so that how it is divided into micro-batches changes nothing.
    """
    import torch

    supervised = sum(sum(rows[i].mask[1:]) for micro in step.micro_batches for i in micro)
    total = 0.0
    for micro in step.micro_batches:
        loss = batch_loss(model, [rows[i] for i in micro], 1.0 / supervised)
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, float(norm)


def batch_loss(model: Model, rows: Sequence[Rendered], weight: float) -> Tensor:
    """Loss of one micro-batch: the sum over supervised tokens times `weight`.

    What all rows begin with (an instruction) is computed once. Rows are padded on the right; a causal model never
    looks there, so no padding mask is needed.
    """
    import torch

    prefix = shared_prefix(rows)
    longest = max(len(row.ids) for row in rows) - prefix
    ids = torch.full((len(rows), longest), model.template.pad_id, dtype=torch.long)
    learned = torch.zeros((len(rows), longest), dtype=torch.bool)
    for slot, row in enumerate(rows):
        ids[slot, : len(row.ids) - prefix] = torch.tensor(row.ids[prefix:])
        learned[slot, : len(row.ids) - prefix] = torch.tensor(row.mask[prefix:], dtype=torch.bool)
    ids, learned = ids.to(model.device), learned.to(model.device)
    if prefix:
        hidden = model.hidden_after(torch.tensor(rows[0].ids[:prefix], device=model.device), ids)
    else:
        hidden = model.hidden(ids)
    supervised = hidden[:, :-1][learned[:, 1:]]
    targets = ids[:, 1:][learned[:, 1:]]
    weights = torch.full((len(targets),), weight, dtype=torch.float32, device=model.device)
    return head_cross_entropy(supervised, model.head, targets, weights)


def micro_shape(rows: Sequence[Rendered]) -> tuple[int, int, int]:
    """Rows, their padded length behind what they share, and the length of that."""
    prefix = shared_prefix(rows)
    return len(rows), max(len(row.ids) for row in rows) - prefix, prefix


def shared_prefix(rows: Sequence[Rendered]) -> int:
    """Tokens that all rows begin with and none of which is learned; 0 when too few to be worth it.

    The token behind them must not be learned either: its prediction is made at the last shared position.
    """
    if len(rows) < 2:
        return 0
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    same = 0
    while same < len(first) - 1 and same < len(last) - 1 and first[same] == last[same]:
        same += 1
    learned = min(row.mask.index(1) for row in rows)
    same = min(same, learned - 1)
    return same if same >= 8 else 0


def measure_speed(
    model: Model, rows: Sequence[Rendered], config: TrainConfig, seed: int, seconds: float = 3.0
) -> float:
    """Tokens a second that a run will keep up, from forward and backward passes on some of its own batches.

    Nothing is changed. A few seconds run faster than many minutes, see SUSTAINED.
    """
    import torch

    parameters = attach_adapter(model, config, seed)
    steps = plan_steps(rows, config, seed)
    picked = random.Random(seed).sample(steps, min(len(steps), 8))
    model.net.train()
    with torch.random.fork_rng(devices=[]):
        batch_loss(model, [rows[i] for i in picked[0].micro_batches[0]], 1.0).backward()  # type: ignore[no-untyped-call]
        began, tokens = time.monotonic(), 0
        for step in picked:
            for micro in step.micro_batches:
                batch_loss(model, [rows[i] for i in micro], 1.0).backward()  # type: ignore[no-untyped-call]
                tokens += sum(len(rows[i].ids) for i in micro)
            if time.monotonic() - began > seconds:
                break
    took = time.monotonic() - began
    for parameter in parameters:
        parameter.grad = None
    model.net.eval()
    return SUSTAINED * tokens / took


def _evaluate(run: _Run, rows: Sequence[Rendered], began: float) -> None:
    """Validation loss: keep the best adapter, count worse ones, decide on stopping."""
    state = run.state
    if not rows:
        state.best, state.best_step = adapter_state(run.model.net), state.step
        return
    run.model.net.eval()
    loss, _ = answer_losses(run.model, rows, progress=run.progress)
    run.model.net.train()
    better = loss < state.best_val_loss
    if state.step == 0:
        state.first_val_loss = loss  # the untouched model: a mark to compare with, not a candidate
    elif better:
        state.best_val_loss, state.best_step, state.worse = loss, state.step, 0
        state.best = adapter_state(run.model.net)
    else:
        state.worse += 1
        if state.worse >= run.config.patience and state.step < state.total_steps:
            state.stopped = "early"
    _record(run, {"step": state.step, "val_loss": loss, "best": bool(better and state.step > 0),
                  "seconds": round(time.monotonic() - began, 2)})  # fmt: skip


def _record(run: _Run, record: dict[str, Any]) -> None:
    run.metrics.write(record)
    run.log(record)


def _save(run: _Run) -> None:
    import torch

    state = run.state
    state.adapter = adapter_state(run.model.net)
    state.optimizer = run.optimizer.state_dict()
    state.rng = torch.get_rng_state()
    state.peak_memory_gib = max(state.peak_memory_gib, peak_memory())
    run.metrics.sync()
    save_checkpoint(run.out / "checkpoints", state, run.config.keep_checkpoints)
    run.saved_at = time.monotonic()


def _finish(run: _Run, out: Path) -> None:
    """Put the best adapter into the model and into `out/adapter`; checkpoints have served."""
    state, model = run.state, run.model
    best = state.best or adapter_state(model.net)
    load_adapter_state(model.net, best, str(out))
    model.net.eval()
    save_adapter(out / "adapter", best, lora_shape(model, run.config), _base_name(model), model.fingerprint)
    model.template.save(out / "adapter")
    state.adapter = best
    drop_checkpoints(out / "checkpoints")


def _base_name(model: Model) -> str:
    """What PEFT can load the base from: the hub name, or the folder."""
    return model.name if "/" in model.name and not Path(model.name).exists() else str(model.folder)


def _check_rows(rows: Sequence[Rendered], split: str) -> None:
    if not rows:
        raise UserError(f"The {split} split is empty", next_step="give more data, or smaller split.val and split.test")
    for number, row in enumerate(rows, 1):
        if not any(row.mask[1:]):
            raise UserError(
                f"Row {number} of the {split} split has no token to learn",
                next_step="every row needs an assistant turn; `tuneloop prepare --show 3` shows what is learned",
            )


def _sample(rows: Sequence[Rendered], most: int, seed: int) -> list[Rendered]:
    return list(rows) if len(rows) <= most else random.Random(seed).sample(list(rows), most)


def within_time(steps: list[Step], rows: Sequence[Rendered], config: TrainConfig, speed: float) -> list[Step]:
    """Cut the plan to what fits into `max_minutes` at the measured speed; the learning rate falls over what is left."""
    if config.max_minutes is None or speed <= 0:
        return steps
    budget = config.max_minutes * 60 * speed
    used = 0
    for count, step in enumerate(steps):
        used += sum(len(rows[i].ids) for micro in step.micro_batches for i in micro)
        if used > budget:
            return steps[: max(count, 1)]
    return steps


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
