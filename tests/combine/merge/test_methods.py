"""Each way to merge, compared with its formula on full matrices, and with PEFT's functions where they mean the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tuneloop.combine.merge.methods import METHODS, Product, merge_method, svd_of
from tuneloop.core.errors import UserError

OUTPUTS, INPUTS = 14, 10


def updates(ranks: Sequence[int] = (2, 3, 1)) -> list[Product]:
    products = []
    for seed, rank in enumerate(ranks):
        g = torch.Generator().manual_seed(seed)
        b, a = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((OUTPUTS, rank), (rank, INPUTS)))
        products.append(Product(b, a))
    return products


def full(product: Product) -> Tensor:
    return product.b @ product.a


@pytest.mark.parametrize("name", METHODS)
def test_one_adapter_with_weight_1_is_itself(name: str) -> None:
    (item,) = updates((3,))
    assert torch.allclose(full(METHODS[name].merge([item], [1.0])), full(item), atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_the_product_is_summed_without_cross_terms(name: str) -> None:
    weights = [1.0, 0.5, 2.0]
    wanted = sum(w * full(p) for w, p in zip(weights, updates(), strict=True))
    assert torch.allclose(full(METHODS[name].merge(updates(), weights)), wanted, atol=1e-9)  # type: ignore[arg-type]


def test_a_decomposition_has_no_more_values_than_the_rank() -> None:
    assert svd_of(updates()[0]).s.shape == (2,)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="lineal") as caught:
        merge_method("lineal")
    assert "did you mean linear?" in caught.value.next_step
