"""Labels scored by a server that only writes: a few short requests with log probabilities, not one pass over all.

A request continues the prompt by tokens that occur in labels, and its log probabilities are those of the unconstrained
model. A greedy one scores all tokens of the label that wins, and bounds what branches off on the way. Branches are read
only where they could still win, or hold so much probability that the winner's would be wrong without them.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

Path = tuple[int, ...]  # tokens behind the prompt
# Log probabilities of written tokens, one after the other: the token, and those known in its place, its own among them.
Reading = Sequence[tuple[int, Mapping[int, float]]]
# Continues a path by at most so many of the allowed tokens.
Read = Callable[[Path, Sequence[int], int], Awaitable[Reading]]

UNREAD = 0.004  # probability that may stay unread: an error that is below a percentage point
AT_ONCE = 8  # branches that are read together
# Requests after which no further branch is read for its probability alone: of a model that spreads it over many labels
# the best label's is then a lower bound. A tuned model needs one to three.
ENOUGH_READS = 16


class Unconstrained(ValueError):
    """The server writes tokens that are not allowed."""


async def search_labels(labels: Mapping[str, Sequence[int]], read: Read) -> dict[str, float]:
    """Mean log likelihoods of the tokens of each label: exact for the best one, upper bounds for those that can't win.

    Args:
        labels: each label's tokens, the end of the turn included.
        read: asks the model.

    Returns:
        The scores, as `scoring.choose` has them with `prune`.

    Raises:
        Unconstrained: the model does not continue by allowed tokens.
    """
    search = _LabelSearch(tuple(map(tuple, labels.values())), read)
    while places := search.needed():
        await asyncio.gather(*map(search.extend, places))
    return {label: search.total(path) / len(path) for label, path in zip(labels, search.paths, strict=True)}


@dataclass
class _LabelSearch:
    """What is known of the labels' tokens."""

    paths: tuple[Path, ...]
    read: Read
    logs: dict[Path, dict[int, float]] = field(default_factory=dict)  # log probabilities of tokens behind a path
    bounds: dict[Path, float] = field(default_factory=dict)  # of those that are not known there
    reads: int = 0
    following: dict[Path, set[int]] = field(default_factory=lambda: defaultdict(set))  # tokens of labels behind a path

    def __post_init__(self) -> None:
        for path in self.paths:
            for i, token in enumerate(path):
                self.following[path[:i]].add(token)

    def total(self, path: Path) -> float:
        """The log probability of a label, or an upper bound of it."""
        places = [(path[:i], token) for i, token in enumerate(path)]
        return sum(self.logs.get(place, {}).get(token, self.bounds.get(place, 0.0)) for place, token in places)

    def unread(self, path: Path) -> Path | None:
        """The first place on a label's path whose token is not known."""
        return next((path[:i] for i, t in enumerate(path) if t not in self.logs.get(path[:i], {})), None)

    def needed(self) -> list[Path]:
        """Where to read: for the label with the best bound, then for those whose probability matters."""
        sums = {path: self.total(path) for path in self.paths}
        place = self.unread(max(self.paths, key=lambda path: sums[path] / len(path)))
        if place is not None:
            return [place]
        top = max(sums.values())
        shares = {path: math.exp(value - top) for path, value in sums.items()}
        places = {path: place for path in self.paths if (place := self.unread(path)) is not None}
        if self.reads >= ENOUGH_READS or sum(map(shares.__getitem__, places)) <= UNREAD * sum(shares.values()):
            return []
        order = sorted(places, key=lambda path: -shares[path])
        return list(dict.fromkeys(places[path] for path in order))[:AT_ONCE]

    async def extend(self, place: Path) -> None:
        """Read on from a place: its missing tokens, or all that follows where none is known."""
        self.reads += 1
        first = place not in self.logs
        missing = self.following[place] - set(self.logs.get(place, ()))
        rests = [path[len(place) :] for path in self.paths if path[: len(place)] == place]
        allowed = {token for rest in rests for token in rest} if first else missing
        reading = await self.read(place, sorted(allowed), max(map(len, rests)) if first else 1)
        if not reading or reading[0][0] not in allowed:
            raise Unconstrained("the model does not continue by allowed tokens")
        for token, values in reading:
            if place not in self.following:
                return
            logs = {other: value for other, value in values.items() if other in self.following[place]}
            self.logs[place] = self.logs.get(place, {}) | logs
            # What is not among the likeliest is less likely than they; of allowed tokens the written one is likeliest.
            likeliest = [value for other, value in values.items() if other != token] if first else []
            self.bounds[place] = min(self.bounds.get(place, 0.0), values[token], *likeliest)
            place = (*place, token)
