"""What feedback says: its current state, and its mean value between 0 (bad) and 1 (good)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuneloop.records.feedback import Feedback, value_of
from tuneloop.records.request import StoredRequest


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
    last: dict[tuple[str | None, ...], Feedback] = {}
    for one in sorted(feedback, key=lambda one: (one.time, one.id)):
        who = None if one.believed else one.voice
        last[one.request, one.conversation, one.kind, one.user, who] = one
    return sorted(last.values(), key=lambda one: one.id)


# A conversation: its name, with the key that had it, or alone for the key that began the first one of this name.
Talk = str | tuple[str, str]


def talks_of(requests: Iterable[StoredRequest]) -> dict[Talk, list[str]]:
    """Conversations with the ids of their requests in order. Those of different keys are different, whatever their names."""
    found: dict[Talk, list[str]] = {}
    began: dict[str, str] = {}
    for request in requests:
        if name := request.conversation:
            found.setdefault((request.key, name), []).append(request.id)
            if began.setdefault(name, request.key) == request.key:
                found.setdefault(name, []).append(request.id)
    return found


def by_request(
    feedback: Iterable[Feedback], conversation_requests: Mapping[Talk, list[str]]
) -> dict[str, list[Feedback]]:
    """Current feedback by the request that it is about; that on a conversation counts for its last request.

    Args:
        conversation_requests: from `talks_of`.
    """
    found: dict[str, list[Feedback]] = {}
    for one in current(feedback):
        of, name = one.request, one.conversation or ""
        talk = conversation_requests.get((one.sender, name)) if one.sender else None
        if of is None and (talk := talk or (conversation_requests.get(name) if one.believed else None)):
            of = talk[-1]
        if of is not None:
            found.setdefault(of, []).append(one)
    return found
