"""What feedback says: its current state, and its mean value between 0 (bad) and 1 (good)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuneloop.records.feedback import Feedback, right_answer, value_of
from tuneloop.records.request import StoredRequest


def mean_value(feedback: Iterable[Feedback]) -> float | None:
    """The mean of the values, each counted as often as it weighs; None where nothing has a value."""
    values = [(1.0 if vote.weight is None else vote.weight, value_of(vote.kind, vote.value)) for vote in feedback]
    pairs = [(weight, value) for weight, value in values if value is not None]
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs) if pairs else None


def gives_answer(vote: Feedback) -> bool:
    """Whether feedback says what would be right, and not only how good the given answer is."""
    return vote.kind == "label" or right_answer(vote.kind, vote.value) is not None


def current(feedback: Iterable[Feedback]) -> list[Feedback]:
    """The feedback that holds: of each person, kind and request (or conversation) the last one by time, then by id.

    Feedback is never changed: a person who votes again adds an event. The order of the result is that of its ids.
    """
    last: dict[tuple[str | None, ...], Feedback] = {}
    for vote in sorted(feedback, key=lambda opinion: (opinion.time, opinion.id)):
        who = None if vote.believed else vote.voice
        last[vote.request, vote.conversation, vote.kind, vote.user, who] = vote
    return sorted(last.values(), key=lambda opinion: opinion.id)


# A conversation: its name, with the key that had it, or alone for the key that began the first one of this name.
ConversationKey = str | tuple[str, str]


def conversations_of(requests: Iterable[StoredRequest]) -> dict[ConversationKey, list[str]]:
    """Conversations with the ids of their requests in order. Those of different keys are different ones."""
    conversations: dict[ConversationKey, list[str]] = {}
    began: dict[str, str] = {}
    for request in requests:
        if name := request.conversation:
            conversations.setdefault((request.key, name), []).append(request.id)
            if began.setdefault(name, request.key) == request.key:
                conversations.setdefault(name, []).append(request.id)
    return conversations


def by_request(
    feedback: Iterable[Feedback], conversation_requests: Mapping[ConversationKey, list[str]], *, every: bool = False
) -> dict[str, list[Feedback]]:
    """Current feedback by its request; that on a conversation (see `conversations_of`) counts for the last request.

    `every`: also what its person has replaced since.
    """
    groups: dict[str, list[Feedback]] = {}
    for vote in feedback if every else current(feedback):
        of, name = vote.request, vote.conversation or ""
        requests = conversation_requests.get((vote.sender, name)) if vote.sender else None
        if of is None and (requests := requests or (conversation_requests.get(name) if vote.believed else None)):
            of = requests[-1]
        if of is not None:
            groups.setdefault(of, []).append(vote)
    return groups
