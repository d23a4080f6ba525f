"""Ways to merge LoRA updates of one module. Each is a function from the adapters' products to one matrix, and a line of METHODS.

What is merged is always the product scale * B A. Averaging A and B by themselves would add cross terms B_i A_j that no adapter has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tuneloop.combine.merge.low_rank import Product, stacked
from tuneloop.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class ModuleUpdates:
    """What some adapters do to one module.

    Args:
        products: of each adapter, its scale in b; float64.
        weights: of each adapter.
        density: share of the entries that `ties` keeps.
    """

    products: Sequence[Product]
    weights: Sequence[float]
    density: float

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


METHODS: dict[str, MergeMethod] = {
    method.name: method
    for method in (
        MergeMethod("linear", "the weighted mean of the updates", weighted_sum, averages=True),
        MergeMethod("cat", "the weighted sum, exactly; ranks add", weighted_sum, exact=True),
        MergeMethod("svd", "the weighted sum, cut to a rank", weighted_sum, rank="largest"),
        MergeMethod("ties", "trim, elect a sign, average what agrees (arXiv 2306.01708)", ties, drops=True),
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
