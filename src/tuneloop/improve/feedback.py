"""What feedback says: its current state, and its mean value between 0 (bad) and 1 (good)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuneloop.records.feedback import Feedback, value_of


def mean_value(feedback: Iterable[Feedback]) -> float | None:
    """The mean of the values, each counted as often as it weighs; None where nothing has a value."""
    held = [
        (1.0 if one.weight is None else one.weight, value)
        for one in feedback
        if (value := value_of(one.kind, one.value)) is not None
    ]
    return sum(weight * value for weight, value in held) / sum(weight for weight, _ in held) if held else None


def current(feedback: Iterable[Feedback]) -> list[Feedback]:
    """The feedback that holds: of each person, kind and request (or conversation) the last one by time, then by id.

    Feedback is never changed: whoever votes again adds an event. The order of the result is that of its ids.
    """
    last: dict[tuple[str | None, str | None, str, str | None], Feedback] = {}
    for one in sorted(feedback, key=lambda one: (one.time, one.id)):
        last[one.request, one.conversation, one.kind, one.user] = one
    return sorted(last.values(), key=lambda one: one.id)


def by_request(
    feedback: Iterable[Feedback], conversation_requests: Mapping[str, list[str]]
) -> dict[str, list[Feedback]]:
    """Current feedback by the request that it is about; that on a conversation counts for its last request.

    Args:
        conversation_requests: ids of the requests of each conversation, in order.
    """
    found: dict[str, list[Feedback]] = {}
    for one in current(feedback):
        of = one.request
        if of is None and (talk := conversation_requests.get(one.conversation or "")):
            of = talk[-1]
        if of is not None:
            found.setdefault(of, []).append(one)
    return found
