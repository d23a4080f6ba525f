"""What feedback says: its current state, and its value between 0 (bad) and 1 (good)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc
from tuneloop.records.feedback import KINDS, Feedback

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


def mean_value(feedback: Iterable[Feedback]) -> float | None:
    """The mean of the values, each counted as often as it weighs; None where nothing has a value."""
    held = [
        (1.0 if one.weight is None else one.weight, value)
        for one in feedback
        if (value := value_of(one.kind, one.value)) is not None
    ]
    return sum(weight * value for weight, value in held) / sum(weight for weight, _ in held) if held else None


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


# --- feedback that comes in --------------------------------------------------------------------

KIND = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
HEAVIEST = 1000
LONGEST = 20_000  # characters of a text
TEXTS = ("label", "correction", "comment", "choice")


def feedback_of(given: Mapping[str, Any], *, new_id: str, now: str) -> Feedback:
    """Feedback from what somebody sent, checked.

    Args:
        given: `request` or `conversation`, `kind`, `value`, and `user`, `time`, `key`, `source`, `weight` where they are
            known.
        new_id: its id.
        now: the time where none is given; one that lies later is set to it, since clocks differ.

    Raises:
        UserError: it is about nothing or about two things, its kind is no name, or its value does not fit the kind.
    """
    named = {name: _name(given.get(name), name) for name in ("request", "conversation", "user", "key")}
    if (named["request"] is None) == (named["conversation"] is None):
        raise UserError(
            "Feedback is about a request or about a conversation, one of them", where="feedback",
            next_step='as in {"request": "ID", "kind": "thumbs", "value": true}',
        )  # fmt: skip
    kind = given.get("kind")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise UserError(
            f"Not a kind of feedback: {kind!r:.60}", where="kind",
            next_step=f"{', '.join(KINDS)}, or a name of your own in small letters, as in resolved",
        )  # fmt: skip
    time = _time(given.get("time"), now)
    source, weight = _name(given.get("source"), "source"), _weight(given.get("weight"))
    if source is not None and not KIND.fullmatch(source):
        raise UserError(f"Not a source: {source!r:.60}", where="source", next_step="a name in small letters, as in app")
    value = _checked(kind, given.get("value"))
    return Feedback(id=new_id, **named, kind=kind, value=value, time=time, source=source, weight=weight)


def _weight(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 < found <= HEAVIEST:
        raise UserError(
            f"Not a weight: {value!r:.60}", where="weight", next_step=f"a number above 0, at most {HEAVIEST}"
        )
    return found


def _name(value: Any, what: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool) or len(str(value)) > 256:
        raise UserError(f"Not a name: {value!r:.60}", where=what, next_step="a text of at most 256 characters")
    return str(value)


def _time(value: Any, now: str) -> str:
    if value in (None, ""):
        return now
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise UserError(
            f"Not a time: {value!r:.60}", where="time", next_step="write it as 2026-01-31T12:00:00Z"
        ) from None
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return min(utc(found.timestamp()), now)


def _checked(kind: str, value: Any) -> Any:
    """A value that fits the kind: thumbs as true or false, ratings as numbers, the others as they are."""
    step = "tuneloop feedback add --help"
    if kind in TEXTS or (isinstance(value, str) and kind not in ("thumbs", "rating")):
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"A {kind} is a text, got {value!r:.60}", where="value", next_step=step)
        if len(value) > LONGEST:
            raise UserError(
                f"A text of {len(value):,} characters; at most {LONGEST:,} are kept", where="value", next_step="shorten it"
            )  # fmt: skip
        return value
    if not isinstance(value, str | int | float | bool) or value != value:
        raise UserError(f"Not a value of {kind}: {value!r:.60}", where="value", next_step=step)
    if kind == "rating" and isinstance(value, str):
        try:
            value = int(value) if value.strip().isdecimal() else float(value)  # "1" is a star, as 1 is
        except ValueError:
            raise UserError(f"A rating is a number, got {value!r:.60}", where="value", next_step=step) from None
    if kind in ("thumbs", "rating"):
        good = value_of(kind, value)
        if good is None:
            meant = "up or down" if kind == "thumbs" else f"1 to {STARS}, or from 0 to 1"
            raise UserError(f"A {kind} is {meant}, got {value!r:.60}", where="value", next_step=step)
        return good == 1.0 if kind == "thumbs" else value
    return value
