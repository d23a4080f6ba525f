"""What feedback says: its current state, and its value between 0 (bad) and 1 (good)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuneloop.records.feedback import Feedback

GOOD_WORDS = {"up", "good", "yes", "like", "liked", "positive", "true", "resolved", "kept"}
BAD_WORDS = {"down", "bad", "no", "dislike", "disliked", "negative", "false"}
# Kinds that say something bad by being there.
BAD_BY_THEMSELVES = {"correction", "edited", "retried", "escalated"}
STARS = 5  # of a rating above 1
COMMENTS = {"comment", "choice", "label", "shadow"}  # have no value on this scale


def value_of(kind: str, value: object) -> float | None:
    """How good feedback is: 0 to 1; None where it says nothing on that scale.

    Thumbs are true or false, 1 or -1, or words. Ratings are 1 to 5 stars, or a number from 0 to 1. A correction says
    that the answer was wrong. `edited`, `retried` and `escalated` are bad where they are true. Other names are read as
    flags or as numbers from 0 to 1.

    Args:
        kind: of the feedback.
        value: as it was given.
    """
    if kind in COMMENTS or value is None:
        return None
    if kind == "correction":
        return 0.0
    good = _plain_value(kind, value)
    return None if good is None else 1.0 - good if kind in BAD_BY_THEMSELVES else good


def _plain_value(kind: str, value: object) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        word = value.strip().casefold()
        return 1.0 if word in GOOD_WORDS else 0.0 if word in BAD_WORDS else None
    if not isinstance(value, int | float) or value != value:
        return None
    if kind == "rating" and 1 <= value <= STARS and (value > 1 or isinstance(value, int)):
        return (value - 1) / (STARS - 1)
    if kind == "thumbs" and value == -1:
        return 0.0
    return float(value) if 0 <= value <= 1 else None


def current(feedback: Iterable[Feedback]) -> list[Feedback]:
    """The feedback that holds: of each person, kind and request (or conversation) the last one by time, then by id.

    Feedback is never changed: whoever votes again adds an event. The order of the result is that of its ids.
    """
    last: dict[tuple[str | None, str | None, str, str | None], Feedback] = {}
    for one in sorted(feedback, key=lambda one: (one.time, one.id)):
        last[one.request, one.conversation, one.kind, one.user] = one
    return sorted(last.values(), key=lambda one: one.id)


def orphans(feedback: Iterable[Feedback], requests: Iterable[str], conversations: Iterable[str]) -> list[Feedback]:
    """Feedback on a request or conversation that is not known, or not yet.

    Args:
        requests, conversations: those that are known.
    """
    known, talks = set(requests), set(conversations)
    return [one for one in feedback if one.request not in known and one.conversation not in talks]


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
