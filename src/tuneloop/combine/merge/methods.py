"""Ways to merge LoRA updates of one module: functions from the adapters' products to one matrix, listed in METHODS.

What is merged is always the product scale * B A. Averaging A and B alone would add cross terms B_i A_j that no adapter
has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tuneloop.core.errors import UserError, did_you_mean


class Product(NamedTuple):
    """The matrix b a, of b (outputs, rank) and a (rank, inputs)."""

    b: Tensor
    a: Tensor


class Svd(NamedTuple):
    """The matrix u diag(s) v', with columns of u (outputs, k) and v (inputs, k) of length one; s falls."""

    u: Tensor
    s: Tensor
    v: Tensor


def stacked(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """The weighted sum of products, exactly: the factors next to each other; ranks add."""
    scaled = [weight * product.b for product, weight in zip(products, weights, strict=True)]
    return Product(torch.cat(scaled, 1), torch.cat([product.a for product in products]))


def svd_of(product: Product) -> Svd:
    """The singular value decomposition of a product, from QR decompositions of its factors: no full matrix is made."""
    q_b, r_b = torch.linalg.qr(product.b)
    q_a, r_a = torch.linalg.qr(product.a.t())
    u, s, vh = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    return Svd(q_b @ u, s, q_a @ vh.t())


def cut_to(svd: Svd, rank: int) -> Product:
    """The nearest matrix of a rank (Eckart and Young 1936), its factors of equal length; missing ranks are zeros."""
    root = svd.s[:rank].sqrt()
    b, a = svd.u[:, :rank] * root, (svd.v[:, :rank] * root).t()
    short = rank - root.shape[0]
    if short > 0:
        b, a = torch.nn.functional.pad(b, (0, short)), torch.nn.functional.pad(a, (0, 0, 0, short))
    return Product(b, a)


def squared_length(matrix: Product) -> float:
    """Sum of the squared entries, from the factors alone."""
    b, a = matrix.b.double(), matrix.a.double()
    return max(float(((b.t() @ b) * (a @ a.t())).sum()), 0.0)


def lost_share(whole: float, rest: float) -> float:
    """What cutting took, as a share of the length, from squared lengths before and after."""
    return math.sqrt(max(whole - rest, 0.0) / whole) if whole > 0 else 0.0


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge."""

    name: str  # on the command line
    about: str  # what it does, in a sentence, with its source
    merge: Callable[
        [Sequence[Product], Sequence[float]], Product
    ]  # from a module's updates and weights to the merged one
    rank: Literal["sum", "largest"] = "sum"  # of the result where none is given
    averages: bool = False  # weights are divided by their sum
    exact: bool = False  # the result is the method's matrix as it is: no smaller rank is possible


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", "the weighted mean of the updates", stacked, averages=True),
        MergeMethod("cat", "the weighted sum, exactly; ranks add", stacked, exact=True),
        MergeMethod("svd", "the weighted sum, cut to a rank", stacked, rank="largest"),
    )
}


def merge_method(name: str) -> MergeMethod:
    """The method of that name. Raises UserError: there is none."""
    if name not in METHODS:
        step = f"{did_you_mean(name, METHODS)} choose {', '.join(METHODS)}".lstrip()
        raise UserError(f"No way to merge is called {name!r}", where="--method", next_step=step)
    return METHODS[name]
