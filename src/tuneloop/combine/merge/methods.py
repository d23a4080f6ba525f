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

OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomised decomposition
EXACT_SHARE = 4  # a rank of more than a quarter of the matrix: the exact decomposition is as quick


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


def svd_of_dense(matrix: Tensor, rank: int) -> Svd:
    """The first singular values and vectors of a full matrix: at least `rank`, or as many as it has.

    Where few of many are needed it is the randomised decomposition (Halko et al. 2011, arXiv 0909.4061), from a start
    that is always the same: its error is within a fraction of a per cent of the least possible one.
    """
    least = min(matrix.shape)
    if rank * EXACT_SHARE >= least:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return Svd(u, s, vh.t())
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], min(rank + OVERSAMPLING, least), generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start)[0]
    for _ in range(POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ basis)[0])[0]
    u, s, vh = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    return Svd(basis @ u, s, vh.t())


def cut_to(svd: Svd, rank: int) -> Product:
    """The nearest matrix of a rank (Eckart and Young 1936), its factors of equal length; missing ranks are zeros."""
    root = svd.s[:rank].sqrt()
    b, a = svd.u[:, :rank] * root, (svd.v[:, :rank] * root).t()
    short = rank - root.shape[0]
    if short > 0:
        b, a = torch.nn.functional.pad(b, (0, short)), torch.nn.functional.pad(a, (0, 0, 0, short))
    return Product(b, a)


def squared_length(matrix: Product | Tensor) -> float:
    """Sum of the squared entries; of a product from its factors alone."""
    if isinstance(matrix, Tensor):
        return float(matrix.double().square().sum())
    b, a = matrix.b.double(), matrix.a.double()
    return max(float(((b.t() @ b) * (a @ a.t())).sum()), 0.0)


def lost_share(whole: float, rest: float) -> float:
    """What cutting took, as a share of the length, from squared lengths before and after."""
    return math.sqrt(max(whole - rest, 0.0) / whole) if whole > 0 else 0.0


@dataclass(frozen=True)
class ModuleUpdates:
    """The updates of one module by some adapters."""

    products: Sequence[Product]  # of each adapter, its scale in b; float64
    weights: Sequence[float]  # of each adapter
    density: float  # share of the entries that `ties` keeps

    def dense(self) -> list[Tensor]:
        """The full matrices (outputs, inputs), in fp32."""
        return [product.b.float() @ product.a.float() for product in self.products]


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge."""

    name: str  # on the command line
    about: str  # what it does, in a sentence, with its source
    merge: Callable[[ModuleUpdates], Product | Tensor]  # from the updates of a module to the merged one
    rank: Literal["sum", "largest"] = "sum"  # of the result where none is given: the adapters' together, or the largest
    averages: bool = False  # weights are divided by their sum
    drops: bool = False  # it drops entries, the density says how many stay: even one adapter alone is changed
    exact: bool = False  # the result is the method's matrix as it is: no smaller rank is possible


def weighted_sum(updates: ModuleUpdates) -> Product:
    """Sum of weight * product, exactly."""
    return stacked(updates.products, updates.weights)


def trimmed(matrix: Tensor, density: float) -> Tensor:
    """The entries of greatest magnitude, a share `density` of all; the others are zero."""
    count = int(density * matrix.numel())
    if count >= matrix.numel():
        return matrix
    mask = torch.zeros(matrix.numel(), dtype=torch.bool)
    mask[matrix.abs().flatten().topk(max(count, 1), sorted=False).indices] = True
    return matrix * mask.view_as(matrix)


def elected(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """For each entry the mean of weight * value over the parts whose sign is that of the sum (TIES's disjoint mean)."""
    sign = torch.stack(list(parts)).sum(0).sign()
    sign[sign == 0] = 1
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for part, weight in zip(parts, weights, strict=True):
        agrees = part.sign() == sign
        total.addcmul_(part, agrees.to(part.dtype), value=weight)
        count += agrees
    return total / count.clamp(min=1)


def ties(updates: ModuleUpdates) -> Tensor:
    """Trim, elect a sign, average those that agree (Yadav et al. 2023, arXiv 2306.01708); weights don't vote, as in
    PEFT.
    """
    return elected([trimmed(part, updates.density) for part in updates.dense()], updates.weights)


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", "the weighted mean of the updates", weighted_sum, averages=True),
        MergeMethod("cat", "the weighted sum, exactly; ranks add", weighted_sum, exact=True),
        MergeMethod("svd", "the weighted sum, cut to a rank", weighted_sum, rank="largest"),
        MergeMethod("ties", "trim, elect a sign, average what agrees (arXiv 2306.01708)", ties, drops=True),
    )
}


def merge_method(name: str) -> MergeMethod:
    """The method of that name. Raises UserError: there is none."""
    if name not in METHODS:
        step = f"{did_you_mean(name, METHODS)} choose {', '.join(METHODS)}".lstrip()
        raise UserError(f"No way to merge is called {name!r}", where="--method", next_step=step)
    return METHODS[name]
