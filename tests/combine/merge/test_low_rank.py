"""Decompositions of products by their factors, compared with those of the full matrix."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tuneloop.combine.merge.methods import Product, cut_to, lost_share, squared_length, stacked, svd_of

SIZES = st.integers(1, 12)


def product(outputs: int, inputs: int, rank: int, seed: int = 0) -> Product:
    g = torch.Generator().manual_seed(seed)
    return Product(
        torch.randn(outputs, rank, generator=g, dtype=torch.float64),
        torch.randn(rank, inputs, generator=g, dtype=torch.float64),
    )


@given(SIZES, SIZES, SIZES, st.integers(0, 99))
def test_singular_values_are_those_of_the_full_matrix(outputs: int, inputs: int, rank: int, seed: int) -> None:
    p = product(outputs, inputs, rank, seed)
    found, full = svd_of(p), torch.linalg.svdvals(p.b @ p.a)
    width = min(len(found.s), len(full))
    assert torch.allclose(found.s[:width], full[:width], atol=1e-9)
    assert torch.allclose(found.u * found.s @ found.v.t(), p.b @ p.a, atol=1e-9)


@given(SIZES, SIZES, SIZES, st.integers(1, 14))
def test_the_cut_is_the_nearest_matrix_of_its_rank(outputs: int, inputs: int, rank: int, wanted: int) -> None:
    p = product(outputs, inputs, rank)
    b, a = cut_to(svd_of(p), wanted)
    assert b.shape == (outputs, wanted) and a.shape == (wanted, inputs)
    u, s, vh = torch.linalg.svd(p.b @ p.a, full_matrices=False)
    best = u[:, :wanted] * s[:wanted] @ vh[:wanted]
    assert torch.allclose(b @ a, best, atol=1e-8)
    assert abs(squared_length(Product(b, a)) - float(s[:wanted].square().sum())) < 1e-7


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), SIZES, SIZES)
def test_stacked_factors_are_the_weighted_sum(weights: list[float], outputs: int, inputs: int) -> None:
    parts = [product(outputs, inputs, 1 + i, i) for i in range(len(weights))]
    b, a = stacked(parts, weights)
    dense = sum(w * (p.b @ p.a) for w, p in zip(weights, parts, strict=True))
    assert torch.allclose(b @ a, dense, atol=1e-9)  # type: ignore[arg-type]


def test_a_lost_share_is_a_share_of_the_length() -> None:
    assert lost_share(25.0, 16.0) == 0.6
    assert lost_share(1.0, 1.0 + 1e-12) == 0.0 and lost_share(0.0, 0.0) == 0.0
