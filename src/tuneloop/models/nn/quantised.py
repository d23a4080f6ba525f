"""Frozen weights in four bits: NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314), by
bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.core.errors import UserError
from tuneloop.core.sharded import whole

BLOCK = 64  # weights that share a scale, as in the paper
SHARE_LEFT = 4.13 / 16  # of a layer's bytes in 16 bits


class _FrozenProduct(torch.autograd.Function):
    """x W' with W unpacked for the moment in the forward and again in the backward pass; only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ ctx.layer.weight.to(grad.dtype), None


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is held in about 4.1 bits."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        from bitsandbytes.functional import quantize_4bit

        self.in_features, self.out_features, self.bias = base.in_features, base.out_features, base.bias
        # The layout is bitsandbytes' own, so a PEFT user's 4-bit base computes the same.
        packed, self.state = quantize_4bit(
            base.weight.detach().contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        # A parameter, so that it is moved and sharded with its module; the scales, a sixtieth of its size, stay whole.
        self.packed = nn.Parameter(packed, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weight (outputs, inputs) in the base's dtype, unpacked."""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(whole(self.packed), self.state)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call,no-any-return]


def need_bitsandbytes() -> None:
    """Make sure that weights can be packed. Raises UserError: bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        step = "pip install bitsandbytes, or set train.method=lora"
        raise UserError("QLoRA needs the bitsandbytes package", where="train.method", next_step=step)
    # It warns of a faster kernel that it would fetch from a hub; nothing is fetched while a model trains.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quantise(net: nn.Module) -> None:
    """Bring all linear layers but the vocabulary projection to 4 bits, in place. Raises UserError: no bitsandbytes."""
    need_bitsandbytes()
    for name, module in quantisable(net).items():
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, Nf4Linear(module))


def quantisable(net: nn.Module) -> dict[str, nn.Linear]:
    """The layers that `quantise` replaces, by name."""
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in name and not name.endswith("base_layer")
    }


def through_four_bits(weight: Tensor) -> Tensor:
    """What a weight (outputs, inputs) is after `quantise`: packed and unpacked again, in its own dtype."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return Nf4Linear(layer).weight
