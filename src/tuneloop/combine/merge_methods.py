"""Ways to merge LoRA updates of one module. Each is a function from the adapters' products to one matrix, and a line of METHODS.

What is merged is always the product scale * B A. Averaging A and B by themselves would add cross terms B_i A_j that no adapter has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tuneloop.combine.low_rank import Product, orthogonal, stacked, svd_of
from tuneloop.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ModuleUpdates:
    """What some adapters do to one module.

    Args:
        products: of each adapter, its scale in b; float64.
        weights: of each adapter.
        density: share of the entries that a method keeps which drops some.
        seeds: of the random choices for each adapter; they depend on adapter and module alone.
        rank: that the result will have; 0: the sum of the ranks.
    """

    products: Sequence[Product]
    weights: Sequence[float]
    density: float
    seeds: Sequence[int]
    rank: int = 0

    def dense(self) -> list[Tensor]:
        """The full matrices (outputs, inputs), in fp32."""
        return [product.b.float() @ product.a.float() for product in self.products]


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge.

    Args:
        name: on the command line.
        about: what it does, in a sentence, with its source.
        merge: from the updates of a module to the merged one.
        rank: of the result where none is asked for: the `sum` of the adapters' ranks, or the `largest` of them.
        averages: weights are divided by their sum.
        drops: it drops entries; the density says how many stay. Then even one adapter alone is changed.
        exact: the result is the method's matrix as it is: no smaller rank can be asked for.
    """

    name: str
    about: str
    merge: Callable[[ModuleUpdates], Product | Tensor]
    rank: Literal["sum", "largest"] = "sum"
    averages: bool = False
    drops: bool = False
    exact: bool = False


def weighted_sum(updates: ModuleUpdates) -> Product:
    """Sum of weight * product, exactly."""
    return stacked(updates.products, updates.weights)


def trimmed(matrix: Tensor, density: float) -> Tensor:
    """The entries of greatest magnitude, a share `density` of all; the others are zero."""
    count = int(density * matrix.numel())
    if count >= matrix.numel():
        return matrix
    kept = torch.zeros(matrix.numel(), dtype=torch.bool)
    kept[matrix.abs().flatten().topk(max(count, 1), sorted=False).indices] = True
    return matrix * kept.view_as(matrix)


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
    """Trim, elect a sign, average those that agree (Yadav et al. 2023, arXiv 2306.01708); weights don't vote, as in PEFT."""
    return elected([trimmed(part, updates.density) for part in updates.dense()], updates.weights)


def dare_ties(updates: ModuleUpdates) -> Tensor:
    """Drop entries at random and scale up the rest (Yu et al. 2023, arXiv 2311.03099), then elect as TIES does."""
    parts = []
    for part, seed in zip(updates.dense(), updates.seeds, strict=True):
        drawn = torch.rand(part.shape, generator=torch.Generator().manual_seed(seed))
        parts.append(part * (drawn < updates.density) / updates.density)
    return elected(parts, updates.weights)


def della(updates: ModuleUpdates) -> Tensor:
    """As `dare_ties`, but small entries of a row are likelier to go (MagPrune of Deep et al. 2024, arXiv 2406.11617).

    The chance to stay rises in equal steps with the rank of an entry's magnitude in its row, from density - window to
    density + window; what stays is divided by its own chance, so that the expected matrix is the whole one.
    """
    window = min(updates.density, 1 - updates.density) / 2
    parts = []
    for part, seed in zip(updates.dense(), updates.seeds, strict=True):
        order = part.abs().argsort(1).argsort(1).to(part.dtype)
        chance = updates.density + window * (2 * order / max(part.shape[1] - 1, 1) - 1)
        drawn = torch.rand(part.shape, generator=torch.Generator().manual_seed(seed))
        parts.append(part * (drawn < chance) / chance)
    return elected(parts, updates.weights)


def task_singular_vectors(updates: ModuleUpdates) -> Product:
    """Singular vectors of all adapters, made orthogonal to each other, so that tasks disturb each other less.

    TSV-Merge of Gargiulo et al. 2024 (arXiv 2412.00081), section 4: [U_1 .. U_n] and [V_1 .. V_n] are replaced by their
    nearest orthonormal matrices. Of each adapter as many vectors stay as fit into the module's dimensions.
    """
    found = [svd_of(product) for product in updates.products]
    outputs, inputs = found[0].u.shape[0], found[0].v.shape[0]
    room = min(outputs, inputs) // len(found)
    u = orthogonal(torch.cat([one.u[:, :room] for one in found], 1))
    v = orthogonal(torch.cat([one.v[:, :room] for one in found], 1))
    s = torch.cat([weight * one.s[:room] for one, weight in zip(found, updates.weights, strict=True)])
    return Product(u * s, v.t())


def core_space(updates: ModuleUpdates) -> Product:
    """TIES on small cores: in bases that hold all adapters' rows and columns, each update is a matrix of (sum of ranks) squared.

    The bases of Panariello et al. 2025 (arXiv 2509.17786) lose nothing: they are the singular vectors of the stacked A and B.
    """
    together = stacked(updates.products, [1.0] * len(updates.products))
    left, right = _left_vectors(together.b), _left_vectors(together.a.t()).t()  # (outputs, R), (R, inputs)
    cores = [(left.t() @ product.b) @ (product.a @ right.t()) for product in updates.products]
    merged = elected([trimmed(core, updates.density) for core in cores], updates.weights)
    return Product(left @ merged, right)


def _left_vectors(matrix: Tensor) -> Tensor:
    """The left singular vectors of a matrix, by way of its QR decomposition."""
    q, r = torch.linalg.qr(matrix)
    found: Tensor = q @ torch.linalg.svd(r, full_matrices=False)[0]
    return found


def knots(updates: ModuleUpdates) -> Product:
    """TIES on the right singular vectors of the updates side by side (KnOTS, Stoica et al. 2024, arXiv 2410.19735).

    [D_1 .. D_n] = U S [V_1' .. V_n'] by QR decompositions of the factors; the V_i' are merged, U S is shared.
    """
    q_b, r_b = torch.linalg.qr(torch.cat([product.b for product in updates.products], 1))
    rights = [torch.linalg.qr(product.a.t()) for product in updates.products]
    u, s, wh = torch.linalg.svd(r_b @ torch.block_diag(*(r.t() for _, r in rights)), full_matrices=False)  # type: ignore[no-untyped-call]
    blocks = torch.split(wh, [r.shape[0] for _, r in rights], 1)
    parts = [block @ q.t() for block, (q, _) in zip(blocks, rights, strict=True)]
    return Product(q_b @ (u * s), elected([trimmed(part, updates.density) for part in parts], updates.weights))


def compress_then_merge(updates: ModuleUpdates) -> Product:
    """TIES on cores of the size of the result's rank, so that nothing is cut off after merging.

    Compress-then-Merge of He et al. 2026 (arXiv 2606.03723). The shared spaces are the first left singular vectors of the updates
    side by side, and the first right ones of the updates one above the other: they keep the most of all updates' squared length.
    """
    products = updates.products
    rank = updates.rank or sum(product.a.shape[0] for product in products)
    side = torch.cat([product.b @ torch.linalg.qr(product.a.t())[1].t() for product in products], 1)
    above = torch.cat([torch.linalg.qr(product.b)[1] @ product.a for product in products])
    left, right = _left_vectors(side)[:, :rank], _left_vectors(above.t())[:, :rank].t()
    cores = [(left.t() @ product.b) @ (product.a @ right.t()) for product in products]
    return Product(left @ elected([trimmed(core, updates.density) for core in cores], updates.weights), right)


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", "the weighted mean of the updates", weighted_sum, averages=True),
        MergeMethod("cat", "the weighted sum, exactly; ranks add", weighted_sum, exact=True),
        MergeMethod("svd", "the weighted sum, cut to a rank", weighted_sum, rank="largest"),
        MergeMethod("ties", "trim, elect a sign, average what agrees (arXiv 2306.01708)", ties, drops=True),
        MergeMethod("dare-ties", "drop at random, scale up, then as ties (arXiv 2311.03099)", dare_ties, drops=True),
        MergeMethod("della", "drop small entries rather than large ones, then as ties (arXiv 2406.11617)", della, drops=True),
        MergeMethod("tsv", "singular vectors of all tasks, made orthogonal (arXiv 2412.00081)", task_singular_vectors),
        MergeMethod("core-space", "ties in the space that the adapters share (arXiv 2509.17786)", core_space, drops=True),
        MergeMethod("knots", "ties on singular vectors of the updates side by side (arXiv 2410.19735)", knots, drops=True),
        MergeMethod("compress-then-merge", "ties in a shared space of the result's rank (arXiv 2606.03723)",
                    compress_then_merge, rank="largest", drops=True),
    )
}  # fmt: skip


def merge_method(name: str) -> MergeMethod:
    """The method of that name.

    Raises:
        UserError: there is none.
    """
    if name not in METHODS:
        step = f"{did_you_mean(name, METHODS)} choose {', '.join(METHODS)}".lstrip()
        raise UserError(f"No way to merge is called {name!r}", where="--method", next_step=step)
    return METHODS[name]
