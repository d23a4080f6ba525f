"""Several processes on one run, as `torchrun` and `accelerate launch` start them: how a model and a step are divided.

The base model's weights are sharded by FSDP2, layer by layer. What an adapter or a prefix trains is small, so it is
whole on every process, and its gradients are summed once a step. A step's rows are divided, never the plan of steps:
schedule, loss and gradient are those of one process. Every function here does nothing where there is one process.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tuneloop.core import device
from tuneloop.core.errors import UserError
from tuneloop.core.machine import GIB, processes, rank
from tuneloop.core.sharded import distribute, is_sharded
from tuneloop.models import Model, layers_of
from tuneloop.models.methods import USUAL, Method

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


# --- what they send to each other


def wait() -> None:
    """Continue when all processes have come here."""
    if processes() > 1:
        summed([0.0])


def summed(values: Sequence[float]) -> list[float]:
    """Sums over the processes; the same bits on each."""
    if processes() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    totals = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(totals)
    return totals.tolist()


def agreed(flag: bool) -> bool:
    """Whether any process says so."""
    return bool(flag) if processes() == 1 else summed([float(flag)])[0] > 0


def gathered(value: Any) -> list[Any]:
    """Something picklable of each process, on all of them."""
    if processes() == 1:
        return [value]
    import torch.distributed as dist

    parts: list[Any] = [None] * processes()
    dist.all_gather_object(parts, value)
    return parts


def merged(entries: Mapping[int, T]) -> dict[int, T]:
    """The entries of all processes."""
    return {key: value for part in gathered(dict(entries)) for key, value in part.items()}


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients of what is whole on each process; those of sharded weights are summed by FSDP already."""
    if processes() == 1:
        return
    import torch
    import torch.distributed as dist

    grads = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    if not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


# --- how work is divided


def own_share(groups: Sequence[Sequence[T]]) -> list[tuple[Sequence[T], bool]]:
    """The groups of rows that this process computes, and whether they count.

    Layers are gathered by all processes together, so each must compute as many groups as the others: groups are halved
    until they can be dealt out evenly, and where there are too few rows a process computes one that does not count.
    """
    world = processes()
    if world == 1:
        return [(group, True) for group in groups]
    parts = list(groups)
    while len(parts) % world and any(len(part) > 1 for part in parts):
        middle = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[middle]) + 1) // 2
        parts[middle : middle + 1] = [parts[middle][:half], parts[middle][half:]]
    dealt = [(part, True) for part in parts]
    dealt += [(parts[-1], False)] * (-len(dealt) % world)
    return dealt[rank() :: world]


def seed_step(seed: int, step: int) -> None:
    """Let each of several processes draw its own dropout, the same whenever the step is done."""
    if processes() > 1:
        import torch

        torch.manual_seed((seed * 1_000_003 + step) * 4099 + rank())


# --- how the model is divided


REPLICATE = "TUNELOOP_REPLICATE"  # in the environment, 1 or 0: each process has the whole base, or its part
REPLICATED_SHARE = 0.5  # of a GPU's memory that the base may take on each of them


def replicates(model: Model, method: Method) -> bool:
    """Whether each process has the whole base model, so that only gradients are summed: by `TUNELOOP_REPLICATE`, else
    on GPUs whose memory it takes at most half of; never where the base learns."""
    if method.footprint.all_weights:
        return False
    if setting := os.environ.get(REPLICATE):
        return setting != "0"
    if device.backend().is_cpu:
        return False
    weights = sum(p.numel() * p.element_size() for p in model.net.parameters()) / GIB
    if method.prepare is not None:
        weights /= 3  # of 16 bits 4.1 in the layers, and embeddings as they are
    return weights <= REPLICATED_SHARE * device.capacity()


def shard(model: Model, method: Method) -> None:
    """Divide the base model's weights over the processes, in place, but where it `replicates` or is divided already.

    A layer is moved to this process's device, prepared as the method has it, and cut, before the next one is touched:
    so a device holds its share and one layer, at no time the whole model. Embeddings and vocabulary projection form the
    last group, which is whole while a batch is computed. Of other architectures than our own only the layers are cut.
    """
    if processes() == 1:
        return
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    net: Any = model.net
    prepare = method.prepare
    layers = layers_of(net)
    if isinstance(layers[0], FSDPModule):
        return
    # The last states come as a part of a larger tensor; who reads them picks rows and changes nothing in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    kind = device.in_use()
    whole, policy = replicates(model, method), MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        layer.to(kind)
        if prepare is not None:
            prepare(layer)
        if not whole:
            fully_shard(layer, mesh=mesh(), mp_policy=policy)
    net.to(kind)
    if whole:
        return
    if model.is_own:
        fully_shard(net, mesh=mesh(), mp_policy=policy)
        for name in ("hidden", "hidden_at", "hidden_of_rows"):
            register_fsdp_forward_method(net, name)
    for module in net.modules():
        if isinstance(module, FSDPModule):  # shares of a step add up: the loss is divided by the whole step's tokens
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def regroup(model: Model) -> None:
    """Cut weights that are whole since a batch was computed, so that changes to the cut ones are seen."""
    if processes() > 1:
        from torch.distributed.fsdp import FSDPModule

        for module in model.net.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def refuse_unsharded(model: Model, method: Method) -> None:
    """Raises UserError: full tuning by several processes of an architecture that is not cut as a whole."""
    if processes() > 1 and method.footprint.all_weights and not model.is_own:
        message = "Full tuning on several processes works with tuneloop's own model only"
        raise UserError(message, where="train.method", next_step=f"set train.method={USUAL.name}, or start one process")


def mesh() -> Any:
    """The processes in a row, as torch's distributed tensors know them."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.in_use(), (processes(),))


def load_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict` of a state that may have been saved by another number of processes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def divided(value: Any, parameter: Tensor) -> Any:
        of_rows = getattr(value, "shape", ())[:1] == parameter.shape[:1]
        return distribute(value, parameter) if of_rows else value

    states = {
        parameter_id: {name: divided(value, parameters[parameter_id]) for name, value in entries.items()}
        for parameter_id, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": states})
