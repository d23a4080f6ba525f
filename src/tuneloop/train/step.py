"""One optimizer step: the gradient of all its rows, in as many parts as the memory asks for, and the update."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tuneloop.core.device import is_out_of_memory, random_state, release_memory, set_random_state
from tuneloop.models.load import Model
from tuneloop.models.sharded import processes, whole
from tuneloop.train.batches import Step, halved, too_large
from tuneloop.train.config import TrainConfig
from tuneloop.train.distributed import own_share, sum_gradients, summed
from tuneloop.train.layers import recompute_layers
from tuneloop.train.loss import LOSSES, Batch
from tuneloop.train.rows import TrainRow, tokens_of
from tuneloop.train.run import Run


def optimizer_step(
    run: Run, step: Step, rows: Sequence[TrainRow], rate: float
) -> tuple[float, float, dict[str, float]]:
    """One optimizer step: the mean loss over all its micro-batches, the gradient's norm, and the loss's further figures.

    The mean is taken over the whole step, so that how it is divided into micro-batches changes nothing. When memory runs
    out the step is done again in micro-batches of half as many rows, and so are those that follow.

    Raises:
        UserError: a single row does not fit into memory.
    """
    parameters = list(run.trainable.parameters.values())
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)
    for _ in range(run.state.halvings):
        with contextlib.suppress(ValueError):
            step = halved(step)
    while True:
        rng = random_state()
        try:
            total, figures = _gradients(run, step, rows)
            break
        except (RuntimeError, MemoryError) as error:
            # With several processes the others are in the middle of the step; in the backward pass weights have changed already.
            if not is_out_of_memory(error) or processes() > 1 or run.in_backward:
                raise
        run.optimizer.zero_grad(set_to_none=True)
        set_random_state(rng)
        step = _with_less_memory(run, step, rows)
    if run.in_backward:
        norm = run.in_backward.norm()
    else:
        norm = _clip(parameters, run.config.max_grad_norm)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return total, norm, figures


def _gradients(run: Run, step: Step, rows: Sequence[TrainRow]) -> tuple[float, dict[str, float]]:
    loss = LOSSES[run.config.loss]
    of_step = [rows[i] for i in step.indices]
    share = 1 / sum(loss.units(row) for row in of_step)
    constant = loss.constant(Batch(run.model, of_step, share, run.config, run.trainable.base))
    total, figures = 0.0, dict[str, float]()
    own_micro_batches = own_share(step.micro_batches)
    for place, (micro, counted) in enumerate(own_micro_batches, 1):
        if run.in_backward:
            run.in_backward.armed = place == len(own_micro_batches)
        own = share if counted else 0.0
        batch = Batch(run.model, [rows[i] for i in micro], own, run.config, run.trainable.base, constant)
        value, sums = loss.value(batch)
        value.backward()  # type: ignore[no-untyped-call]
        total += float(value.detach())
        for name, figure in sums.items():
            figures[name] = figures.get(name, 0.0) + float(figure)
    sum_gradients(list(run.trainable.parameters.values()))
    total, *sums_of_all = summed([total, *figures.values()])
    figures = dict(zip(figures, sums_of_all, strict=True))
    if run.start:
        figures["l2_start"] = _pull_to_start(run)
    return total, figures


def _clip(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Shrink the gradients to a norm of at most `most` over all of them; returns what it was. Norms are fp32 also where gradients are bf16."""
    learned = [p for p in parameters if p.grad is not None]
    norms = torch._foreach_norm([p.grad for p in learned], 2, dtype=torch.float32)  # type: ignore[misc]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(learned, most, norm)
    return float(whole(norm))


def _pull_to_start(run: Run) -> float:
    """Add the gradient of `l2_start` times the squared distance from where the run began; returns the distance.

    A weight at a time, for the differences are fp32. Of a bf16 weight they are what the model computes with, without what rounding took away.
    """
    distances = []
    for name, p in run.trainable.parameters.items():
        moved = p.detach().float() - run.start[name].float()
        distances.append(moved.square().sum())
        pull = moved.mul_(2 * run.config.l2_start).to(p.dtype)
        p.grad = pull if p.grad is None else p.grad.add_(pull)
    return float(whole(torch.stack(distances).sum()))


def _with_less_memory(run: Run, step: Step, rows: Sequence[TrainRow]) -> Step:
    """The step in smaller micro-batches; what is said about it stands in `metrics.jsonl`."""
    release_memory()
    try:
        smaller = halved(step)
    except ValueError:
        if run.config.gradient_checkpointing == "auto" and not run.state.recompute:
            run.state.recompute = True
            recompute_layers(run.model.net, True)
            run.record({"step": run.state.step, "event": "out_of_memory",
                          "message": f"memory ran out: from step {run.state.step + 1} on layers are computed again in the backward "
                                     "pass, which takes about a third longer; the result stays the same"})  # fmt: skip
            return step
        longest = max(tokens_of(rows[i]) for i in step.indices)
        raise too_large(longest, f"at step {run.state.step + 1}", str(run.out)) from None
    run.state.halvings += 1
    before, after = (max(len(micro) for micro in s.micro_batches) for s in (step, smaller))
    run.record({"step": run.state.step, "event": "out_of_memory",
                  "message": f"memory ran out: micro-batches of {after} rows instead of {before} from step "
                             f"{run.state.step + 1} on; a step's rows and its result stay the same"})  # fmt: skip
    return smaller


def batch_loss(model: Model, rows: Sequence[TrainRow], weight: float, config: TrainConfig = TrainConfig()) -> Tensor:
    """The configured loss of one micro-batch, each unit (a learned token, a pair) counted `weight`."""
    return LOSSES[config.loss].value(Batch(model, rows, weight, config))[0]
