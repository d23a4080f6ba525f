"""Labels scored by a server that only writes: a few short requests with log probabilities, not one pass over all.

A request continues the prompt by tokens that occur in labels, and its log probabilities are those of the unconstrained
model. A greedy one scores all tokens of the label that wins, and bounds what branches off on the way. The branches that
could still win, or whose probability matters, are read next, all in one request.
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
# Continues each of some paths by at most so many of the allowed tokens.
Read = Callable[[Sequence[Path], Sequence[int], int], Awaitable[Sequence[Reading]]]

# What may stay unread, as a share of the labels' probability that is read. Half of it is counted as theirs, so that the
# winner's is wrong by half of this at most: below a percentage point, with room for rounding in 16 bits.
UNREAD = 0.012
AT_ONCE = 256  # places that one request reads
MOST_BRANCHES = 128  # log probabilities that are read of the first token, where many labels part, if a server allows it
TINY = 1e-12  # probability that rounding leaves where all of it is known


class Unconstrained(ValueError):
    """The server writes tokens that are not allowed."""


async def search_labels(labels: Mapping[str, Sequence[int]], read: Read) -> dict[str, float]:
    """Mean log likelihoods of the tokens of each label: exact for the best one and for those that hold probability.

    What may be unread is shared out: of an upper bound of their sum unread labels have half, in equal parts.

    Args:
        labels: each label's tokens, the end of the turn included.
        read: asks the model.

    Returns:
        The scores. The best label's probability that follows from them is that of scoring all labels to within half
        of `UNREAD`.

    Raises:
        Unconstrained: the model does not continue by allowed tokens.
    """
    search = _LabelSearch(tuple(map(tuple, labels.values())), read)
    while places := search.needed():
        await search.extend(places)
    totals = search.totals()
    return {label: totals[path] / len(path) for label, path in zip(labels, search.paths, strict=True)}


@dataclass(frozen=True)
class _Open:
    """Labels whose next token behind a place is not known: they, and bounds of logarithms of their probabilities."""

    place: Path
    paths: Sequence[Path]
    each: float  # of one of them
    all: float  # of their sum

    @property
    def hope(self) -> float:
        """The highest score that one of them may still have."""
        return self.each / max(map(len, self.paths))


@dataclass
class _LabelSearch:
    """What is known of the labels' tokens."""

    paths: tuple[Path, ...]
    read: Read
    logs: dict[Path, dict[int, float]] = field(default_factory=dict)  # log probabilities of tokens behind a path
    bounds: dict[Path, float] = field(default_factory=dict)  # of each of those that are not known there
    rests: dict[Path, float] = field(default_factory=dict)  # of all of those together
    following: dict[Path, set[int]] = field(default_factory=lambda: defaultdict(set))  # tokens of labels behind a path

    def __post_init__(self) -> None:
        for path in self.paths:
            for i, token in enumerate(path):
                self.following[path[:i]].add(token)

    def known(self, path: Path) -> float:
        """The log probability of a path whose tokens are all known."""
        return sum(self.logs[path[:i]][token] for i, token in enumerate(path))

    def opens(self) -> list[_Open]:
        """Where reading can continue, the most probable place first."""
        behind: dict[Path, list[Path]] = defaultdict(list)
        for path in self.paths:
            prefix = next((path[:i] for i, t in enumerate(path) if t not in self.logs.get(path[:i], {})), None)
            if prefix is not None:
                behind[prefix].append(path)
        opens = []
        for prefix, paths in behind.items():
            log = self.known(prefix)
            opens.append(_Open(prefix, paths, log + self.bounds.get(prefix, 0.0), log + self.rests.get(prefix, 0.0)))
        return sorted(opens, key=lambda branch: -branch.all)

    def totals(self) -> dict[Path, float]:
        """Log probabilities of the labels."""
        parts = {path: branch.all - math.log(2 * len(branch.paths)) for branch in self.opens() for path in branch.paths}
        return {path: parts[path] if path in parts else self.known(path) for path in self.paths}

    def needed(self) -> list[Path]:
        """Where to read: for labels that could still be the best, and for those whose probability matters."""
        opens = self.opens()
        unread = {path for entry in opens for path in entry.paths}
        logs = {path: self.known(path) for path in self.paths if path not in unread}
        if not logs:
            return [max(opens, key=lambda entry: entry.hope).place]
        best = max(log / len(path) for path, log in logs.items())
        places = [entry.place for entry in opens if entry.hope > best]
        left = sum(math.exp(entry.all) for entry in opens)
        read = sum(map(math.exp, logs.values()))
        most = UNREAD * read if left <= UNREAD * read else UNREAD / 2 * read  # what is read leaves a little, too
        for branch in opens:
            if left <= most:
                break
            places.append(branch.place)
            left -= math.exp(branch.all)
        return list(dict.fromkeys(places))[:AT_ONCE]

    async def extend(self, places: Sequence[Path]) -> None:
        """Read on from places: all that follows, or where a part is known the likeliest of the rest."""
        new = [prefix for prefix in places if prefix not in self.logs]
        reads = [self.learn([prefix], self.missing(prefix), 1) for prefix in places if prefix in self.logs]
        if new:
            rests = [path[len(prefix) :] for prefix in new for path in self.paths if path[: len(prefix)] == prefix]
            reads.append(self.learn(new, {token for rest in rests for token in rest}, max(map(len, rests))))
        await asyncio.gather(*reads)

    def missing(self, position: Path) -> set[int]:
        """Tokens of labels behind a place that are not known."""
        return self.following[position] - set(self.logs.get(position, ()))

    async def learn(self, places: Sequence[Path], allowed: set[int], length: int) -> None:
        """Read from each place, and keep what it says of labels."""
        for prefix, reading in zip(places, await self.read(places, sorted(allowed), length), strict=True):
            if not reading or reading[0][0] not in allowed:
                raise Unconstrained("the model does not continue by allowed tokens")
            for token, values in reading:
                if prefix not in self.following:
                    break
                self.keep(prefix, token, values)
                prefix = (*prefix, token)

    def keep(self, prefix: Path, token: int, values: Mapping[int, float]) -> None:
        """Keep log probabilities behind a place, where `token` is the likeliest of those that were not known."""
        # What is not among the likeliest is less likely than they; of allowed tokens the written one is likeliest.
        likeliest = values.values() if prefix not in self.logs else (values[token],)
        whole = 1 - sum(map(math.exp, values.values()))
        if prefix in self.logs:
            whole = math.exp(self.rests[prefix]) - math.exp(values[token])
        logs = self.logs.setdefault(prefix, {})
        logs |= {other: value for other, value in values.items() if other in self.following[prefix]}
        self.bounds[prefix] = min(self.bounds.get(prefix, 0.0), *likeliest)
        rest = math.log(max(whole, TINY))
        self.rests[prefix] = min(rest, self.bounds[prefix] + math.log(max(len(self.missing(prefix)), 1)))
