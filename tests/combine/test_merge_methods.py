"""Each way to merge, compared with its formula on full matrices, and with PEFT's functions where they mean the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tuneloop.combine.low_rank import Product, svd_of
from tuneloop.combine.merge_methods import METHODS, ModuleUpdates, elected, merge_method, trimmed
from tuneloop.core.errors import UserError

OUTPUTS, INPUTS = 14, 10
DENSE = ("ties", "dare-ties", "della")


def updates(
    ranks: Sequence[int] = (2, 3, 1), weights: Sequence[float] = (1.0, 0.5, 2.0), density: float = 0.5
) -> ModuleUpdates:
    products = []
    for seed, rank in enumerate(ranks):
        g = torch.Generator().manual_seed(seed)
        b, a = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((OUTPUTS, rank), (rank, INPUTS)))
        products.append(Product(b, a))
    return ModuleUpdates(products, list(weights[: len(ranks)]), density, list(range(len(ranks))))


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


@pytest.mark.parametrize("name", [n for n in METHODS if n != "della"])
def test_a_method_gives_back_the_mean_of_equal_updates(name: str) -> None:
    one = updates((2,), (1.0,), density=1.0)
    twice = ModuleUpdates([*one.products] * 2, [1.0, 1.0], 1.0, [0, 0])
    factor = 2 if name in ("linear", "cat", "svd", "tsv") else 1  # sums; those that elect take the mean
    if name == "tsv":  # two equal subspaces can't be made orthogonal: their common part counts once for each
        return
    assert torch.allclose(merged(name, twice), factor * dense(one)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cat", "svd"])
def test_the_product_is_summed_without_cross_terms(name: str) -> None:
    given = updates()
    wanted = sum(w * d for w, d in zip(given.weights, dense(given), strict=True))
    assert torch.allclose(merged(name, given), wanted, atol=1e-9)  # type: ignore[arg-type]


def test_compress_then_merge_merges_in_the_spaces_that_keep_most() -> None:
    given = updates((4, 4, 4), (1.0, 0.5, 2.0))
    parts = dense(given)
    u = torch.linalg.svd(torch.cat(parts, 1))[0][:, :4]
    v = torch.linalg.svd(torch.cat(parts))[2][:4]
    wanted = u @ elected([trimmed(u.t() @ part @ v.t(), 0.5) for part in parts], given.weights) @ v
    now = ModuleUpdates(given.products, given.weights, 0.5, given.seeds, rank=4)
    found = METHODS["compress-then-merge"].merge(now)
    assert isinstance(found, Product) and found.a.shape[0] == 4
    assert torch.allclose(full(found), wanted), (
        "the vectors' signs are free, and which entries agree does not depend on them"
    )


def test_ties_is_pefts() -> None:
    from peft.utils.merge_utils import ties as of_peft

    given = updates()
    parts = [part.float() for part in dense(given)]
    for density in (0.2, 0.5, 1.0):
        wanted = of_peft(parts, torch.tensor(given.weights), density)
        now = ModuleUpdates(given.products, given.weights, density, given.seeds)
        assert torch.allclose(merged("ties", now).float(), wanted, atol=1e-5)


def test_dare_keeps_a_share_scaled_up_and_draws_the_same_again() -> None:
    given = updates((3,), (1.0,), density=0.25)
    found, whole = merged("dare-ties", given), dense(given)[0]
    kept = found != 0
    assert 0.1 < float(kept.double().mean()) < 0.4
    assert torch.allclose(found[kept], 4 * whole[kept], rtol=1e-4)
    assert torch.equal(merged("dare-ties", given), found)
    other = ModuleUpdates(given.products, given.weights, given.density, [7])
    assert not torch.equal(merged("dare-ties", other), found)


def test_della_drops_small_entries_first_and_keeps_the_mean() -> None:
    one = updates((3,), (1.0,), density=0.5)
    whole = dense(one)[0]
    draws = torch.stack([merged("della", ModuleUpdates(one.products, [1.0], 0.5, [seed])) for seed in range(600)])
    assert torch.allclose(draws.mean(0), whole, atol=float(whole.abs().max()) * 0.25)
    stays = (draws != 0).double().mean(0)
    order = whole.abs().argsort(1)
    assert float(stays.gather(1, order[:, -1:]).mean()) > 0.65 > 0.35 > float(stays.gather(1, order[:, :1]).mean())


def test_task_singular_vectors_become_orthogonal() -> None:
    given = updates((2, 3), (1.0, 0.5))
    parts = [torch.linalg.svd(d, full_matrices=False) for d in dense(given)]
    u = torch.cat([p[0][:, :r] for p, r in zip(parts, (2, 3), strict=True)], 1)
    v = torch.cat([p[2][:r].t() for p, r in zip(parts, (2, 3), strict=True)], 1)
    s = torch.cat([w * p[1][:r] for p, r, w in zip(parts, (2, 3), given.weights, strict=True)])

    def whitened(m: Tensor) -> Tensor:  # M (M'M)^(-1/2), the closed form of the nearest orthonormal matrix
        values, vectors = torch.linalg.eigh(m.t() @ m)
        return m @ vectors @ torch.diag(values.rsqrt()) @ vectors.t()

    wanted = whitened(u) * s @ whitened(v).t()
    assert torch.allclose(merged("tsv", given), wanted, atol=1e-8)


def test_task_singular_vectors_fit_into_small_modules() -> None:
    found = METHODS["tsv"].merge(updates((6, 6, 6), (1.0, 1.0, 1.0)))
    assert isinstance(found, Product) and found.b.shape[1] == 9  # 3 of each: the module has 10 inputs


def test_core_space_is_ties_in_bases_that_lose_nothing() -> None:
    given = updates(density=0.5)
    left = torch.linalg.svd(torch.cat([p.b for p in given.products], 1), full_matrices=False)[0]
    right = torch.linalg.svd(torch.cat([p.a for p in given.products]), full_matrices=False)[2]
    cores = [left.t() @ d @ right.t() for d in dense(given)]
    for core, whole in zip(cores, dense(given), strict=True):
        assert torch.allclose(left @ core @ right, whole, atol=1e-9)
    # The sign of a singular vector is free; trimming and electing do not mind it.
    wanted = left @ elected([trimmed(core, 0.5) for core in cores], given.weights) @ right
    assert torch.allclose(merged("core-space", given), wanted, atol=1e-8)


def test_knots_is_ties_on_the_right_vectors_of_the_updates_side_by_side() -> None:
    given = updates(density=0.5)
    u, s, vh = torch.linalg.svd(torch.cat(dense(given), 1), full_matrices=False)
    rank = 6
    parts = torch.split(vh[:rank], INPUTS, 1)
    wanted = u[:, :rank] * s[:rank] @ elected([trimmed(part, 0.5) for part in parts], given.weights)
    assert torch.allclose(merged("knots", given), wanted, atol=1e-8)


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
