"""Losses. Each takes hidden states and gives one number whose gradient flows back into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _HeadCrossEntropy(torch.autograd.Function):
    """Vocabulary projection, log-softmax and their gradients in chunks of rows.

    The logits of a chunk exist once, and are turned into their own gradient in place; with a frozen head
    the gradient with respect to the hidden states is ready when the forward pass ends. The idea is
    Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024, arXiv 2410.10989).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, chunk: int) -> Tensor:
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ weight.t()
            rows = torch.arange(logits.shape[0], device=hidden.device)
            picked = logits[rows, targets[part]].float()
            top = logits.amax(-1).float()
            # softmax in one pass is far faster on CPUs than logsumexp; the log of the normaliser follows from
            # the greatest probability: log p_max = max - logsumexp.
            probabilities = torch.softmax(logits, -1, dtype=torch.float32)
            losses[part] = top - probabilities.amax(-1).log_() - picked
            if grad_hidden is None and grad_weight is None:
                continue
            probabilities[rows, targets[part]] -= 1.0
            grad = probabilities.mul_(weights[part, None]).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.add_(grad.t() @ hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return (losses * weights).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return None if grad_hidden is None else grad_hidden * grad, grad_weight, None, None, None


def head_cross_entropy(
    hidden_NC: Tensor, head_VC: Tensor, targets_N: Tensor, weights_N: Tensor, chunk: int = 256
) -> Tensor:
    """Sum over positions of weight * -log p(target), with the vocabulary projection inside.

    Args:
        hidden_NC: hidden states of the supervised positions only.
        head_VC: the projection's weight.
        targets_N: the next token at each position.
        weights_N: weight of each position (fp32); 1 / supervised tokens of the whole step gives their mean.
        chunk: positions projected at a time; bounds memory to chunk * V * 6 bytes.
    """
    loss: Tensor = _HeadCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NC, head_VC, targets_N, weights_N, chunk
    )
    return loss
