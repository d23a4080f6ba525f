"""Each way to merge, compared with its formula on full matrices, and with PEFT's functions where they mean the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tuneloop.combine.merge.methods import METHODS, ModuleUpdates, Product, elected, merge_method, svd_of, trimmed
from tuneloop.core.errors import UserError

OUTPUTS, INPUTS = 14, 10
DENSE = ("ties",)


def updates(
    ranks: Sequence[int] = (2, 3, 1), weights: Sequence[float] = (1.0, 0.5, 2.0), density: float = 0.5
) -> ModuleUpdates:
    products = []
    for seed, rank in enumerate(ranks):
        g = torch.Generator().manual_seed(seed)
        b, a = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((OUTPUTS, rank), (rank, INPUTS)))
        products.append(Product(b, a))
    return ModuleUpdates(products, list(weights[: len(ranks)]), density)


def full(found: Product | Tensor) -> Tensor:
    return found if isinstance(found, Tensor) else found.b @ found.a


def dense(given: ModuleUpdates) -> list[Tensor]:
    return [p.b @ p.a for p in given.products]


def merged(name: str, given: ModuleUpdates) -> Tensor:
    return full(METHODS[name].merge(given)).double()


@pytest.mark.parametrize("name", METHODS)
def test_one_adapter_with_weight_1_is_itself(name: str) -> None:
    given = updates((3,), (1.0,), density=1.0)
    assert torch.allclose(merged(name, given), dense(given)[0], atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_back_the_mean_of_equal_updates(name: str) -> None:
    one = updates((2,), (1.0,), density=1.0)
    twice = ModuleUpdates([*one.products] * 2, [1.0, 1.0], 1.0)
    factor = 1 if name == "ties" else 2  # sums; ties takes the mean
    assert torch.allclose(merged(name, twice), factor * dense(one)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cat", "svd"])
def test_the_product_is_summed_without_cross_terms(name: str) -> None:
    given = updates()
    wanted = sum(w * d for w, d in zip(given.weights, dense(given), strict=True))
    assert torch.allclose(merged(name, given), wanted, atol=1e-9)  # type: ignore[arg-type]


def test_ties_is_pefts() -> None:
    from peft.utils.merge_utils import ties as of_peft

    given = updates()
    parts = [part.float() for part in dense(given)]
    for density in (0.2, 0.5, 1.0):
        wanted = of_peft(parts, torch.tensor(given.weights), density)
        now = ModuleUpdates(given.products, given.weights, density)
        assert torch.allclose(merged("ties", now).float(), wanted, atol=1e-5)


def test_trimming_keeps_the_largest_entries() -> None:
    matrix = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    assert trimmed(matrix, 0.5).tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert torch.equal(trimmed(matrix, 1.0), matrix)


def test_electing_averages_only_what_agrees() -> None:
    parts = [torch.tensor([2.0, 1.0, 0.0]), torch.tensor([-1.0, 3.0, 0.0]), torch.tensor([0.0, -9.0, 0.0])]
    assert elected(parts, [1.0, 1.0, 1.0]).tolist() == [2.0, -9.0, 0.0]
    assert elected(parts, [0.5, 1.0, 1.0]).tolist() == [1.0, -9.0, 0.0]


def test_full_matrices_are_made_only_where_the_method_needs_them() -> None:
    made = {name for name, method in METHODS.items() if isinstance(method.merge(updates()), Tensor)}
    assert made == set(DENSE)
    assert svd_of(updates().products[0]).s.shape == (2,)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="tie") as caught:
        merge_method("tie")
    assert "did you mean ties?" in caught.value.next_step
