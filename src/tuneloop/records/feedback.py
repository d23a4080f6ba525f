"""What people said of answers, as it is stored."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from tuneloop.records.record import Record

KINDS = ("thumbs", "rating", "label", "correction", "comment", "choice")


class Feedback(Record):
    """Feedback on a request or on a whole conversation.

    Args:
        id: UUIDv7.
        request, conversation: what it is about; exactly one of them.
        kind: one of `KINDS`, or a name of your own.
        value: a bool (thumbs), a number (rating) or a text.
        user: pseudonym of who gave it.
        time: ISO 8601 in UTC.
        key: of idempotency: the same key again is the same feedback.
        source: where it came from: `api`, `page`, `command`, `file`, `review`, `judge`, or a name of one's own.
        weight: how many voices it counts as, where several are averaged; None: one.
    """

    title: ClassVar[str] = "feedback"
    file: ClassVar[str] = "feedback.jsonl"
    again: ClassVar[str] = "read the store with the version that wrote it"

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

    @model_validator(mode="after")
    def _about_one_thing(self) -> Feedback:
        if (self.request is None) == (self.conversation is None):
            raise ValueError("feedback is about a request or a conversation, one of them")
        return self
