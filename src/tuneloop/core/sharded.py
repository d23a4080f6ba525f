"""Tensors that are divided over several processes (torch's DTensor), where a whole one is needed, and the reverse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuneloop.core.machine import processes

if TYPE_CHECKING:
    from torch import Tensor


def is_sharded(value: Any) -> bool:
    """Whether a tensor's rows are divided over the processes."""
    return processes() > 1 and hasattr(value, "full_tensor")


def copied(tensor: Tensor) -> Tensor:
    """A copy in the host's memory; of what is divided over processes where it is. A GPU never holds both."""
    if is_sharded(tensor) or tensor.device.type == "cpu":
        return tensor.clone() if is_sharded(tensor) else tensor.clone().contiguous()
    return tensor.cpu()


def whole(tensor: Tensor) -> Tensor:
    """The tensor in one piece; where it is divided over processes, all of them must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is divided over several, the very memory; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def distribute(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded as `like` is: each process has the tensor and keeps its part."""
    if not hasattr(like, "full_tensor") or hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
