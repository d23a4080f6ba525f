"""Matrices of low rank held as two narrow factors, and what can be done with them without the full product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

OVERSAMPLING, POWER_STEPS = 16, 4  # of the randomised decomposition
EXACT_SHARE = 4  # a wanted rank of more than a quarter of the matrix: the exact decomposition is as quick


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
    """The weighted sum of products, exactly: the factors side by side; ranks add."""
    scaled = [weight * product.b for product, weight in zip(products, weights, strict=True)]
    return Product(torch.cat(scaled, 1), torch.cat([product.a for product in products]))


def svd_of(product: Product) -> Svd:
    """The singular value decomposition of a product, by way of the QR decompositions of its factors.

    Costs what narrow matrices cost: the full matrix is never made.
    """
    q_b, r_b = torch.linalg.qr(product.b)
    q_a, r_a = torch.linalg.qr(product.a.t())
    u, s, vh = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    return Svd(q_b @ u, s, q_a @ vh.t())


def svd_of_dense(matrix: Tensor, rank: int) -> Svd:
    """The first singular values and vectors of a full matrix: at least `rank`, or as many as it has.

    Where few are wanted of many it is the randomised decomposition (Halko et al. 2011, arXiv 0909.4061), from a start that is
    always the same: its error is within a fraction of a per cent of the least possible one.
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


def lost_share(whole: float, kept: float) -> float:
    """What cutting took, as a share of the length, from squared lengths."""
    return math.sqrt(max(whole - kept, 0.0) / whole) if whole > 0 else 0.0
