"""What was decided, and on what: events that are only ever added."""

from __future__ import annotations

from typing import Any

from tuneloop.records.record import Record


class Decision(
    Record, what="a decision", file="decisions.jsonl", again="read the store with the version that wrote it"
):
    """An event in the log of decisions. The state of anything follows from its events in the order of their ids.

    Args:
        id: UUIDv7; events sort by it.
        time: ISO 8601 in UTC.
        kind: what happened, in words with dots: `experiment.start`, `deployment.swap`, ...
        subject: what it is about: an experiment's, a model's or a monitor's name.
        data: all that the decision was made from, so that it can be made again.
        key: of idempotency: the same key again is the same event.
    """

    id: str
    time: str
    kind: str
    subject: str = ""
    data: dict[str, Any] = {}
    key: str | None = None
