"""Which answers deserve a person's minutes: a random part of all for unbiased rates, then those from which most is learned."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tuneloop.improve.experiment.statistics import person_of
from tuneloop.improve.feedback.value import mean_value
from tuneloop.improve.monitor.detectors import answered, asked, probability_of
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest

RANDOM_PART = 0.4
UNSURE = 0.5  # probability of a label below which it is uncertain
# Groups in the order in which a request falls into one of them.
GROUPS = {
    "disliked": "people say that the answer is bad, and nobody has said what is right",
    "disagreement": "a candidate that answered a copy unseen says something else",
    "drifting": "an alarm of the monitor names the request",
    "uncertain": f"its label has a probability below {UNSURE:g}, or the answer was cut off",
    "rest": "all else",
}


@dataclass(frozen=True)
class Queued:
    """A request to look at: its group, and its stratum, `random` or the group for whose sake it was taken."""

    request: StoredRequest
    group: str
    stratum: str


def groups_of(
    requests: Sequence[StoredRequest],
    said: Mapping[str, Sequence[Feedback]],
    copies: Mapping[str, str],
    named: Collection[str],
) -> dict[str, str]:
    """Request -> group of those that can be looked at: with a question and an answer, and no right answer known.

    Args:
        requests: that were answered.
        said: request -> feedback that holds.
        copies: request -> what a candidate answered to its copy.
        named: requests that alarms name.
    """
    found = {}
    for request in requests:
        heard = said.get(request.id, ())
        text = answered(request).strip()
        if request.error is not None or not text or not asked(request):
            continue
        if any(one.kind in ("label", "correction") and one.may_teach(request.key) for one in heard):
            continue
        mean = mean_value(heard)
        chance = probability_of(request)
        if mean is not None and mean < 0.5:
            group = "disliked"
        elif request.id in copies and copies[request.id].strip() != text:
            group = "disagreement"
        elif request.id in named:
            group = "drifting"
        elif (chance is not None and chance < UNSURE) or request.finish == "length":
            group = "uncertain"
        else:
            group = "rest"
        found[request.id] = group
    return found


def queue(
    requests: Sequence[StoredRequest], groups: Mapping[str, str], rows: int, *, per_user: int = 3, seed: int = 0
) -> list[Queued]:
    """Draw what is looked at: 40 % at random from all, the rest in equal parts from the groups but `rest`.

    Args:
        requests: of which some are drawn.
        groups: from `groups_of`.
        rows: how many, at most.
        per_user: that one user may take of the informative part.
        seed: of the draw and the order.
    """
    rng = random.Random(seed)
    pool = [request for request in requests if request.id in groups]
    rng.shuffle(pool)
    n_random = min(len(pool), round(RANDOM_PART * rows))
    chosen = [Queued(request, groups[request.id], "random") for request in pool[:n_random]]
    waiting = {name: [r for r in pool[n_random:] if groups[r.id] == name] for name in GROUPS}
    rest = waiting.pop("rest")
    taken: Counter[str] = Counter()
    while len(chosen) < rows and any(waiting.values()):
        for name, left in waiting.items():
            while left and len(chosen) < rows:
                request = left.pop()
                if taken[person_of(request)] < per_user:
                    taken[person_of(request)] += 1
                    chosen.append(Queued(request, name, name))
                    break
    chosen += [Queued(request, "rest", "rest") for request in rest[: rows - len(chosen)]]
    rng.shuffle(chosen)  # whoever stops early has seen a fair part of each
    return chosen
