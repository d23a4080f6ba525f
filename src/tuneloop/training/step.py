"""One optimizer step: the gradient of all its rows, in as many parts as the memory asks for, and the update."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tuneloop.core.device import is_out_of_memory, random_state, release_memory, set_random_state
from tuneloop.core.machine import processes
from tuneloop.core.sharded import whole
from tuneloop.models import Model
from tuneloop.training.batches import Step, halved, too_large
from tuneloop.training.config import TrainConfig
from tuneloop.training.distil import distil as distil  # which puts its loss into LOSSES
from tuneloop.training.distributed import own_share, sum_gradients, summed
from tuneloop.training.loss import LOSSES, Batch
from tuneloop.training.methods import recompute_layers
from tuneloop.training.rows import TrainRow, tokens_of
from tuneloop.training.run import OutOfTime, TrainingRun


def optimizer_step(
    run: TrainingRun, step: Step, rows: Sequence[TrainRow], rate: float
) -> tuple[float, float, dict[str, float]]:
    """One optimizer step: its mean loss, the gradient's norm, the loss's further metrics. How it is divided into
    micro-batches changes nothing; when memory runs out it and later ones are repeated in halves. Raises UserError: a
    single row does not fit."""
    parameters = list(run.trainable.parameters.values())
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)
    for _ in range(run.state.halvings):
        with contextlib.suppress(ValueError):
            step = halved(step)
    while True:
        rng = random_state()
        try:
            total, metrics = _gradients(run, step, rows)
            if run.state.loss_scale <= 1 or bool(torch.stack(_norms(parameters)).isfinite().all()):
                break
            run.state.loss_scale /= 2  # a gradient became infinite: again with a smaller scale (arXiv 1710.03740)
            run.state.scaled_steps = 0
        except (RuntimeError, MemoryError) as error:
            # Of several processes the others are within the step; updates in the backward pass have changed weights.
            if not is_out_of_memory(error) or processes() > 1 or run.in_backward:
                raise
        run.optimizer.zero_grad(set_to_none=True)
        set_random_state(rng)
        step = _with_less_memory(run, step, rows)
    if run.in_backward:
        norm = run.in_backward.norm()
    else:  # the gradients are shrunk to a norm of at most `max_grad_norm` over all of them
        total_norm = torch.linalg.vector_norm(torch.stack(_norms(parameters)))
        with_gradient = [p for p in parameters if p.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(with_gradient, run.config.max_grad_norm, total_norm)
        norm = float(whole(total_norm))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    if run.state.loss_scale:
        run.state.scaled_steps += 1
        if run.state.scaled_steps % SCALED_STEPS == 0:
            run.state.loss_scale = min(2 * run.state.loss_scale, LOSS_SCALE)
    return total, norm, metrics


def _gradients(run: TrainingRun, step: Step, rows: Sequence[TrainRow]) -> tuple[float, dict[str, float]]:
    loss = LOSSES[run.config.loss]
    step_rows = [rows[i] for i in step.indices]
    scale = run.state.loss_scale or 1.0
    share = scale / sum(loss.units(row) for row in step_rows)
    whole_step = Batch(run.model, step_rows, share, run.config, run.trainable.base)
    whole_step = replace(whole_step, constant=loss.constant(whole_step))
    values: list[Tensor] = []
    parts: dict[str, list[Tensor]] = {}
    own_micro_batches = own_share(step.micro_batches)
    divisible = processes() == 1 and not run.in_backward and run.state.step  # without a step there is no result
    for index, (micro, counts) in enumerate(own_micro_batches, 1):
        if divisible and time.monotonic() > run.last_moment:
            raise OutOfTime
        if run.in_backward:
            run.in_backward.armed = index == len(own_micro_batches)
        value, sums = loss.value(replace(whole_step, rows=[rows[i] for i in micro], share=share if counts else 0.0))
        value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
        for name, metric in sums.items():
            parts.setdefault(name, []).append(metric)
    sum_gradients(list(run.trainable.parameters.values()))
    # Read only now: until here a GPU has been given its work without waiting.
    read = torch.stack(
        [number.to(values[0].device) for tensors in (values, *parts.values()) for number in tensors]
    ).tolist()
    ends = [0, *itertools.accumulate(map(len, (values, *parts.values())))]
    total, *sums_of_all = summed([sum(read[start:end]) for start, end in itertools.pairwise(ends)])
    metrics = dict(zip(parts, sums_of_all, strict=True))
    if run.state.loss_scale:
        total, metrics = total / scale, {name: metric / scale for name, metric in metrics.items()}
        torch._foreach_mul_([p.grad for p in run.trainable.parameters.values() if p.grad is not None], 1 / scale)
    if run.start:
        metrics["l2_start"] = _pull_to_start(run)
    return total, metrics


# Half precision: the scale of the loss at first; halved after each overflow, doubled after so many steps without one.
LOSS_SCALE, SCALED_STEPS = 2.0**16, 1000


def _norms(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Of the gradients, in fp32 also where these are bf16."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return list(torch._foreach_norm(gradients, 2, dtype=torch.float32))


def _pull_to_start(run: TrainingRun) -> float:
    """Add the gradient of `l2_start` times the squared distance from the start, and return that: fp32, a weight at a
    time, without what rounding took away from bf16 weights."""
    distances = []
    for name, p in run.trainable.parameters.items():
        moved = p.detach().float() - run.start[name].float()
        distances.append(moved.square().sum())
        pull = moved.mul_(2 * run.config.l2_start).to(p.dtype)
        p.grad = pull if p.grad is None else p.grad.add_(pull)
    return float(whole(torch.stack(distances).sum()))


def _with_less_memory(run: TrainingRun, step: Step, rows: Sequence[TrainRow]) -> Step:
    """The step in smaller micro-batches; the message about it is in `metrics.jsonl`."""
    release_memory()
    number = run.state.step + 1
    try:
        smaller = halved(step)
    except ValueError:
        if run.config.gradient_checkpointing == "auto" and (run.state.kept_layers or not run.state.recompute):
            run.state.recompute, run.state.kept_layers = True, 0
            recompute_layers(run.model.net, True)
            change = f"from step {number} on layers are computed again in the backward pass, which takes about a third"
            run.report("out_of_memory", f"memory ran out: {change} longer; the result stays the same")
            return step
        raise too_large(max(tokens_of(rows[i]) for i in step.indices), f"at step {number}", str(run.out)) from None
    run.state.halvings += 1
    before, after = (max(len(micro) for micro in s.micro_batches) for s in (step, smaller))
    change = f"micro-batches of {after} rows instead of {before} from step {number} on"
    run.report("out_of_memory", f"memory ran out: {change}; a step's rows and its result stay the same")
    return smaller


def batch_loss(model: Model, rows: Sequence[TrainRow], weight: float, config: TrainConfig = TrainConfig()) -> Tensor:
    """The configured loss of one micro-batch, each unit (a supervised token, a pair) counted `weight`."""
    return LOSSES[config.loss].value(Batch(model, rows, weight, config))[0]
