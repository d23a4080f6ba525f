"""How a model's layers are run: computed again in the backward pass, compiled."""

from __future__ import annotations

import functools
from typing import Any

from tuneloop.models.load import layers_of


def recompute_layers(net: Any, on: bool, kept: int = 0) -> None:
    """Keep only each layer's input and compute the layer again in the backward pass (Chen et al. 2016, arXiv 1604.06174), or no more.

    The gradient stays the same; dropout draws the same numbers again.

    Args:
        kept: so many of the last layers keep what they computed. Their memory is free again when the first ones are computed again.
    """
    from torch.utils.checkpoint import checkpoint

    layers = layers_of(net)
    for place, layer in enumerate(layers):
        layer.__dict__.pop("forward", None)
        if on and place < len(layers) - kept:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(net: Any, **options: Any) -> None:
    """torch.compile each layer in place, once for all lengths of rows: the part before attention, and the part behind it.

    Attention of rows that lie one behind the other is left out: it is one kernel, and the rows' lengths change with each batch.

    Args:
        options: of `torch.compile`.
    """
    import torch

    from tuneloop.models.llama import Documents

    if not getattr(Documents.attend, "_torchdynamo_disable", False):
        Documents.attend = torch.compiler.disable(Documents.attend)  # type: ignore[method-assign,no-untyped-call]
    for layer in layers_of(net):
        layer.compile(dynamic=True, **options)
