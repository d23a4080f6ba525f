"""Answers whose numbers don't depend on what is computed with them, bit for bit.

In 16 bits a sum's rounding depends on the order of its terms, and a token that is as likely as another one wins or
loses by that. On processors oneDNN's products give a row the same sums whatever rows are next to it; what depends on
the company is where a row's keys are. Within `batch_invariant`

- the keys of a row have their places from the first one on, and padding comes behind them, so that no sum is shifted;
- attention reads whole blocks of keys, of which those behind the row's end add exact zeros: a softmax sums what is
  left over behind its last whole vector in another order;
- products are large enough: of one row, and of the smallest numbers, other kernels sum in another order.

So neither the rows of a batch nor the pieces in which a prompt is read matter, nor what is read already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tuneloop.core.device import backend
from tuneloop.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tuneloop.models.load import Model

LEAST_ROWS = 2  # of a product: with one row oneDNN takes another kernel, whose sums differ where they are long
SMALL = 16**3  # multiplications of a product that torch does not give to oneDNN (`checksize` in its mkldnn/Matmul.cpp)
BLOCK = 64  # keys: a whole number of vectors

_ON: ContextVar[bool] = ContextVar("batch_invariant", default=False)


def is_batch_invariant() -> bool:
    """Whether it holds in this thread now."""
    return _ON.get()


@contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """Passes within compute each row as they compute it alone."""
    token = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(token)


def least_size(others: int) -> int:
    """The least length of a product's side at which oneDNN computes it; `others`: the product of the other sides."""
    return SMALL // others + 1


def repeated(indices: Tensor, least: int = LEAST_ROWS) -> Tensor:
    """Indices of rows (N), at least so many: some again where there are fewer."""
    return indices.repeat(-(-least // len(indices)))[:least] if len(indices) < least else indices


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C) times weight (V, C), of at least `LEAST_ROWS` rows where it has to be."""
    if is_batch_invariant() and len(x) < LEAST_ROWS:
        return (x.repeat(LEAST_ROWS, 1) @ weight.t())[: len(x)]
    return x @ weight.t()


def need_batch_invariance(model: Model) -> None:
    """Make sure that a model can be computed so. Raises UserError: other code computes it, a GPU, or in 32 bits; or
    products of this processor depend on the number of rows."""
    step = "leave out deterministic=true"
    if not model.is_own:
        message = f"Answers of {model.name} can't be deterministic: it is not computed by our own Llama"
        raise UserError(message, where="deterministic", next_step=step)
    if not backend(model.device).is_cpu:
        message = "Deterministic answers are for processors: here a GPU computes"
        raise UserError(message, where="deterministic", next_step=f"{step}, or set TUNELOOP_DEVICE=cpu")
    if str(model.head.dtype) != "torch.bfloat16":
        message = (
            f"Deterministic answers are for bfloat16: here {str(model.head.dtype).removeprefix('torch.')} computes"
        )
        more = ": in float32 company changes some millionths of a log probability"
        raise UserError(message, where="deterministic", next_step=step + more)
    if shape := _dependent_shape(model):
        message = f"This processor rounds products of {shape[1]} numbers by how many rows are computed together"
        raise UserError(message, where="deterministic", next_step=step)


def _dependent_shape(model: Model) -> tuple[int, ...]:
    """The shape of a weight whose product with a few rows is another one than among many; empty: there is none."""
    import torch

    matrices = (weight for weight in model.net.parameters() if weight.dim() == 2 and weight.dtype == model.head.dtype)
    for shape, weight in {tuple(weight.shape): weight for weight in matrices}.items():
        x = torch.randn(37, shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
        with torch.inference_mode():
            whole = x @ weight.t()
            parts = (slice(0, LEAST_ROWS), slice(5, 12), slice(20, 37))
            if any(not torch.equal(x[part] @ weight.t(), whole[part]) for part in parts):
                return shape
    return ()
