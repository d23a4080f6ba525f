"""What people said of answers: how it is checked and stored, and its value between 0 (bad) and 1 (good)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field, model_validator

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc
from tuneloop.core.text import storable, unstorable
from tuneloop.records.record import Record

KINDS = ("thumbs", "rating", "label", "correction", "comment", "choice")
SHADOW = "shadow"  # 1, 0 or -1, the judged pair of a request that a candidate answered unseen
INTERNAL = (SHADOW,)  # kinds that the program alone writes


class Feedback(Record, noun="feedback", file="feedback.jsonl", again="read the store with the version that wrote it"):
    """Feedback on a request or on a whole conversation.

    Args:
        id: UUIDv7.
        request, conversation: what it is about; exactly one of them.
        kind: one of `KINDS`, or a name of your own; `value`: a bool (thumbs), a number (rating) or a text.
        user: pseudonym of who gave it; `time`: ISO 8601 in UTC.
        key: of idempotency: the same key again is the same feedback.
        source: where it came from: `api`, `page`, `command`, `file`, `review`, `judge`, or a name of one's own.
        weight: how many voices it counts as, where several are averaged; None: one.
        voice: who sent it: `key:NAME`; `trusted:NAME` (with the right `feedback`); `anyone`: no key; None: a command.
    """

    id: str
    request: str | None = None
    conversation: str | None = None
    kind: str
    value: Any
    user: str | None = None
    time: str
    key: str | None = None
    source: str | None = Field(None, max_length=40)
    weight: float | None = Field(None, gt=0, le=1000)
    voice: str | None = None

    @property
    def believed(self) -> bool:
        """Whether a command sent it, or a key with the right to."""
        return self.voice is None or self.voice.startswith("trusted:")

    @property
    def sender(self) -> str:
        """Name of the key that it came with; empty: none."""
        return (self.voice or "").partition(":")[2]

    def may_teach(self, key: str | None = None) -> bool:
        """Whether a right answer in it may be learned from: it is believed, or of its request's key (None: checked)."""
        return self.believed or (bool(self.sender) and key in (None, self.sender))

    @model_validator(mode="after")
    def _about_one_thing(self) -> Feedback:
        if (self.request is None) == (self.conversation is None):
            raise ValueError("feedback is about a request or a conversation, one of them")
        return self


# --- its value ---------------------------------------------------------------------------------

GOOD_WORDS = {"up", "good", "yes", "like", "liked", "positive", "true", "resolved", "kept"}
BAD_WORDS = {"down", "bad", "no", "dislike", "disliked", "negative", "false"}
# Kinds that say something bad by being there.
BAD_BY_THEMSELVES = {"correction", "edited", "retried", "escalated"}
STARS = 5  # of a rating above 1
COMMENTS = {"comment", "choice", "label", SHADOW}  # have no value on this scale


def value_of(kind: str, value: object) -> float | None:
    """How good feedback is: 0 to 1; None where it says nothing on that scale.

    Thumbs are true or false, 1 or -1, or words. Ratings are 1 to 5 stars, or a number from 0 to 1. A correction says
    that the answer was wrong, and so does the text that it was `edited` into. `edited`, `retried` and `escalated` are
    bad where they are true. Other names are read as flags or as numbers from 0 to 1.
    """
    if kind in COMMENTS or value is None:
        return None
    if right_answer(kind, value) is not None:
        return 0.0
    good = _plain_value(kind, value)
    return None if good is None else 1.0 - good if kind in BAD_BY_THEMSELVES else good


def right_answer(kind: str, value: object) -> str | None:
    """The answer that takes the place of the first one: a correction, or what it was edited into; else None."""
    if not isinstance(value, str) or kind not in ("correction", "edited"):
        return None
    return None if kind == "edited" and _plain_value(kind, value) is not None else value


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


# --- feedback that comes in --------------------------------------------------------------------

KIND = re.compile(r"[a-z][a-z0-9_.-]{0,39}")
HEAVIEST = 1000
LONGEST = 20_000  # characters of a text
LARGEST = 1e15  # number of a kind of one's own
TEXTS = ("label", "correction", "comment", "choice")


def feedback_of(record: Mapping[str, Any], *, new_id: str, now: str) -> Feedback:
    """Feedback from what someone sent, checked.

    Args:
        record: `request` or `conversation`, `kind`, `value`, and `user`, `time`, `key`, `source`, `weight` where known.
        new_id: its id.
        now: the time where none is given; one that lies later is set to it, since clocks differ.

    Raises:
        UserError: it is about nothing or about two things, its kind is no name, or its value does not fit the kind.
    """
    names = {name: _name(record.get(name), name) for name in ("request", "conversation", "user", "key")}
    if (names["request"] is None) == (names["conversation"] is None):
        step = 'as in {"request": "ID", "kind": "thumbs", "value": true}'
        message = "Feedback is about a request or about a conversation, one of them"
        raise UserError(message, where="feedback", next_step=step)
    kind, usual = record.get("kind"), ", ".join(KINDS)
    if kind in INTERNAL:
        raise UserError(f"The kind {kind!r} is the program's own", where="kind", next_step=f"{usual}, or another name")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        step = f"{usual}, or a name of your own in small letters, as in resolved"
        raise UserError(f"Not a kind of feedback: {kind!r:.60}", where="kind", next_step=step)
    time = _time(record.get("time"), now)
    source, weight = _name(record.get("source"), "source"), _weight(record.get("weight"))
    if source is not None and not KIND.fullmatch(source):
        raise UserError(f"Not a source: {source!r:.60}", where="source", next_step="a name in small letters, as in app")
    value = _checked(kind, record.get("value"))
    return Feedback(id=new_id, **names, kind=kind, value=value, time=time, source=source, weight=weight)


def _weight(value: Any) -> float | None:
    if value in (None, ""):
        return None
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if isinstance(value, bool) or not 0 < weight <= HEAVIEST:
        step = f"a number above 0, at most {HEAVIEST}"
        raise UserError(f"Not a weight: {value!r:.60}", where="weight", next_step=step)
    return weight


def _name(value: Any, noun: str) -> str | None:
    if value is None or value == "":
        return None
    plain = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64)
    if not plain or len(str(value)) > 256 or storable(str(value)) != str(value):
        raise UserError(f"Not a name: {value!r:.60}", where=noun, next_step="a text of at most 256 characters")
    return str(value)


def _time(value: Any, now: str) -> str:
    if value in (None, ""):
        return now
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        step = "write it as 2026-01-31T12:00:00Z"
        raise UserError(f"Not a time: {value!r:.60}", where="time", next_step=step) from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return min(utc(time.timestamp()), now)


def _checked(kind: str, value: Any) -> Any:
    """A value that fits the kind: thumbs as true or false, ratings as numbers, the others as they are."""

    def refused(message: str, step: str = "tuneloop collect add --help") -> UserError:
        return UserError(message, where="value", next_step=step)

    if unstorable(value) or (isinstance(value, str) and storable(value) != value):
        raise refused(f"Can't be stored: {value!r:.60}", "leave out characters such as \\ud800 or \\u0000")
    if kind in TEXTS or (isinstance(value, str) and kind not in ("thumbs", "rating")):
        if not isinstance(value, str) or not value.strip():
            raise refused(f"A {kind} is a text, got {value!r:.60}")
        if len(value) > LONGEST:
            raise refused(f"A text of {len(value):,} characters; at most {LONGEST:,} are kept", "shorten it")
        return value
    if not isinstance(value, str | int | float) or not (isinstance(value, str) or -LARGEST <= value <= LARGEST):
        raise refused(f"Not a value of {kind}: {value!r:.60}")
    if kind == "rating" and isinstance(value, str):
        try:
            value = int(value) if value.strip().isdecimal() else float(value)  # "1" is a star, as 1 is
        except ValueError:
            raise refused(f"A rating is a number, got {value!r:.60}") from None
    if kind not in ("thumbs", "rating"):
        return value
    good = None if kind == "rating" and isinstance(value, bool) else value_of(kind, value)
    if good is None:
        choices = "up or down" if kind == "thumbs" else f"1 to {STARS}, or from 0 to 1"
        raise refused(f"A {kind} is {choices}, got {value!r:.60}")
    return good == 1.0 if kind == "thumbs" else value
