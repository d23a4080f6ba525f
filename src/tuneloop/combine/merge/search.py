"""Which ways to merge are tried, in which order, by `--method auto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuneloop.combine.merge.merge import MergeSettings

SCALES = (1.0, 0.6)  # of the weighted sums; a sum of many tasks overshoots
STRONGER, WEAKER = 1.3, 0.85  # factors for the weight of the task that loses most, and of the others


@dataclass(frozen=True)
class Tried:
    """Settings and what came of them.

    Args:
        settings: with a weight for each adapter.
        shares: what each task kept on validation rows.
        seconds: that merging and asking took.
    """

    settings: MergeSettings
    shares: tuple[float, ...]
    seconds: float

    @property
    def worst(self) -> float:
        """The share of the task that kept least."""
        return min(self.shares)


def first_round(adapters: int, rank: int = 0, density: float = 0.5) -> Iterator[MergeSettings]:
    """Settings that need no knowledge, quick ones first.

    Args:
        adapters: how many there are.
        rank: that was asked for; 0: each method's own.
        density: of `ties`; half of it is tried as well.
    """
    for scale in SCALES:
        yield MergeSettings("svd" if rank else "cat", (scale,) * adapters, rank, density)
    for part in (density, density / 2):
        yield MergeSettings("ties", (1.0,) * adapters, rank, part)


def next_settings(tried: Sequence[Tried]) -> MergeSettings | None:
    """A step from the best settings so far: more weight for the task that keeps least; None where that was tried already.

    Args:
        tried: at least one.
    """
    best = max(tried, key=lambda one: one.worst)
    weakest = best.shares.index(best.worst)
    weights = tuple(
        round(weight * (STRONGER if i == weakest else WEAKER), 4) for i, weight in enumerate(best.settings.weights)
    )
    step = MergeSettings(best.settings.method, weights, best.settings.rank, best.settings.density)
    return None if any(one.settings == step for one in tried) else step
