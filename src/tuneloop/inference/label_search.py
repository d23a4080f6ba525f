"""Labels scored by a server that only writes: a few short requests with log probabilities.

A request continues the prompt by tokens that occur in labels, and its log probabilities are those of the unconstrained
model. A greedy one scores all tokens of the label that wins, and bounds what branches off on the way. Branches are read
only where they could still win, or hold so much probability that the winner's would be wrong without them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

Path = tuple[int, ...]  # tokens behind the prompt
# Log probabilities of written tokens, one after the other: the token, and those known in its place, its own among them.
Reading = Sequence[tuple[int, Mapping[int, float]]]
# Continues a path by at most so many of the allowed tokens.
Read = Callable[[Path, Sequence[int], int], Awaitable[Reading]]

UNREAD = 0.004  # probability that may stay unread: an error that is below a percentage point
AT_ONCE = 8  # branches that are read together


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
    known: dict[Path, dict[int, float]] = {}
    paths = [tuple(tokens) for tokens in labels.values()]
    following: dict[Path, set[int]] = {}
    for path in paths:
        for i, token in enumerate(path):
            following.setdefault(path[:i], set()).add(token)
    bounds: dict[Path, float] = {}  # of tokens that are not known at a place

    def step(path: Path, i: int) -> tuple[float, bool]:
        """The log probability of a path's token, and whether it is exact."""
        place, token = path[:i], path[i]
        value = known.get(place, {}).get(token)
        return (bounds.get(place, 0.0), False) if value is None else (value, True)

    def unread(path: Path) -> Path | None:
        """The first place on a path whose token is not known."""
        return next((path[:i] for i in range(len(path)) if not step(path, i)[1]), None)

    def total(path: Path) -> float:
        return sum(step(path, i)[0] for i in range(len(path)))

    async def extend(place: Path) -> None:
        """Read on from a place: its missing tokens, or all that follows where none is known."""
        begun = known.get(place)
        missing = following[place] - set(begun or ())
        allowed = set(missing)
        if begun is None:
            allowed |= {token for path in paths if path[: len(place)] == place for token in path[len(place) :]}
        length = 1 if begun is not None else max(len(p) for p in paths if p[: len(place)] == place) - len(place)
        reading = await read(place, sorted(allowed), length)
        if not reading or (begun is not None and reading[0][0] not in missing):
            raise Unconstrained("the model does not continue by allowed tokens")
        for token, values in reading:
            wanted = following.get(place)
            if wanted is None:
                return
            here = known.setdefault(place, {})
            here |= {other: value for other, value in values.items() if other in wanted}
            # What is not among the likeliest is less likely than they; of allowed tokens the written one is the likeliest.
            likely = [value for other, value in values.items() if other != token]
            least = min(likely, default=0.0) if begun is None else values[token]
            bounds[place] = min(bounds.get(place, 0.0), least)
            place = (*place, token)

    while True:
        sums = {path: total(path) for path in paths}
        best = max(paths, key=lambda path: sums[path] / len(path))
        place = unread(best)
        if place is not None:
            await extend(place)
            continue
        top = max(sums.values())
        shares = {path: math.exp(value - top) for path, value in sums.items()}
        limit = UNREAD * sum(shares.values())
        open_paths = sorted((path for path in paths if unread(path) is not None), key=lambda path: -shares[path])
        if sum(shares[path] for path in open_paths) <= limit:
            return {label: sums[path] / len(path) for label, path in zip(labels, paths, strict=True)}
        places = dict.fromkeys(place for path in open_paths if (place := unread(path)) is not None)
        await asyncio.gather(*(extend(place) for place in list(places)[:AT_ONCE]))
