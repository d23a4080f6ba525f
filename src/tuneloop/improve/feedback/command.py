"""`tuneloop feedback`: what people said of answers comes into the store, and out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import content_hash, write_jsonl
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.data.pii import PersonalConfig, Redactor
from tuneloop.data.sources import SourceRecord, read_records
from tuneloop.improve.feedback.value import current, mean_value
from tuneloop.records.feedback import Feedback, feedback_of
from tuneloop.serving.store import insert, opened, read_feedback

Place = Path | str  # a store's
BATCH = 5000
# Names that other tools give to the columns.
COLUMNS = {
    "request": ("request", "request_id", "completion_id"),
    "conversation": ("conversation", "conversation_id", "session", "session_id"), "kind": ("kind", "type", "name"),
    "value": ("value", "score", "feedback", "rating", "thumbs"), "user": ("user", "user_id"),
    "time": ("time", "created", "created_at", "timestamp"), "key": ("key", "idempotency_key"), "source": ("source",),
    "weight": ("weight",),
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What became of a file."""

    added: int  # new events
    known: int  # events that were there already
    refused: list[dict[str, Any]]  # lines, each with the reason


@dataclass(frozen=True)
class FeedbackKind:
    """What the store holds of one kind: events, current ones, and the mean of their values (0 bad, 1 good)."""

    kind: str
    events: int
    current: int
    mean: float | None


@dataclass(frozen=True)
class FeedbackSummary:
    """Feedback of a store: by kind, of how many requests, and that on requests or conversations that are not known."""

    kinds: list[FeedbackKind]
    requests: int
    rated: int
    orphans: list[Feedback]


def add(location: Place, values: Mapping[str, Any], *, personal: PersonalConfig | None = None) -> tuple[Feedback, bool]:
    """Store one piece of feedback. The request need not be known yet.

    `values`: see `records.feedback.feedback_of`. `personal`: what happens to personal data in texts; replaced by
    default. Returns the feedback, and whether it is new: one with a known key is not. Raises UserError: there is no
    store, or a value does not fit.
    """
    values = {**values, "source": values.get("source") or "command"}
    vote = _clean(feedback_of(values, new_id=uuid7(), now=utc_now()), Redactor(personal or PersonalConfig()))
    with opened(location) as store:
        return vote, bool(insert(store, [vote]))


def _clean(vote: Feedback, redactor: Redactor) -> Feedback:
    return vote.model_copy(update={"value": redactor(vote.value)}) if isinstance(vote.value, str) else vote


def import_files(
    location: Place, sources: Sequence[str], *, kind: str = "", personal: PersonalConfig | None = None
) -> Imported:
    """Store the feedback of files; the same file again adds nothing.

    Columns may have the names of `COLUMNS`. A record without a key gets one from its content.

    `sources`: files, globs or folders of any format that `prepare` reads as records; `kind`: of records that name none.
    Raises UserError: a file can't be read, or there is no store.
    """
    redactor = Redactor(personal or PersonalConfig())
    refused: list[dict[str, Any]] = []
    added = seen = 0
    now = utc_now()
    with opened(location) as store:
        batch: list[Feedback] = []
        for item in read_records(sources):
            try:
                if not isinstance(item, SourceRecord) or not isinstance(item.value, Mapping):
                    raise UserError("it is not a record with named values")
                values = _columns(item.value, kind)
                values.setdefault("key", "import:" + content_hash(values)[:32])
                values.setdefault("source", "file")
                batch.append(_clean(feedback_of(values, new_id=uuid7(), now=now), redactor))
            except UserError as error:
                refused.append({"source": item.source, "line": item.line, "reason": error.what})
                continue
            seen += 1
            if len(batch) >= BATCH:
                added += insert(store, batch)
                batch = []
        added += insert(store, batch)
    return Imported(added, seen - added, refused)


def _columns(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The values of a record by our names; a column `thumbs` or `rating` also names the kind."""
    values: dict[str, Any] = {}
    for name, columns in COLUMNS.items():
        for column in columns:
            if record.get(column) not in (None, ""):
                values[name] = record[column]
                if column in ("rating", "thumbs"):
                    values.setdefault("kind", column)
                break
    if kind:
        values.setdefault("kind", kind)
    if "request" in values:
        values.pop("conversation", None)  # what is said of an answer is about that answer
    return values


def export(
    location: Place, out: Path | str, *, since: str = "", until: str = "", personal: PersonalConfig | None = None
) -> int:
    """Write feedback as JSON Lines, oldest first, and give the number of lines.

    `since`, `until`: ISO times; empty: no bound. `personal`: what happens to personal data in texts; replaced by
    default, also where the server kept them. Raises UserError: there is no store, or the file can't be written.
    """
    with opened(location) as store:
        redactor = Redactor(personal or PersonalConfig())
        lines = [_clean(vote, redactor).to_json() for vote in read_feedback(store, since=since, until=until)]
    write_jsonl(out, lines)
    return len(lines)


def show(location: Place, *, since: str = "", until: str = "", most_orphans: int = 100) -> FeedbackSummary:
    """What the store holds. `since`, `until`: ISO times; empty: no bound. Raises UserError: there is no store."""
    unknown = (
        "(request IS NOT NULL AND NOT EXISTS (SELECT 1 FROM requests WHERE requests.id = feedback.request)) OR"
        " (conversation IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM requests WHERE requests.conversation = feedback.conversation))"
    )
    rated = (
        "SELECT COUNT(*) FROM requests WHERE id IN (SELECT request FROM feedback WHERE request IS NOT NULL)"
        " OR conversation IN (SELECT conversation FROM feedback WHERE conversation IS NOT NULL)"
    )
    with opened(location) as store:
        events = list(read_feedback(store, since=since, until=until))
        orphans = list(islice(read_feedback(store, since=since, until=until, where=unknown), most_orphans))
        served = "SELECT SUM(requests) FROM costs"
        requests, answers = (int(store.execute(query).fetchone()[0] or 0) for query in (served, rated))
    valid = current(events)
    kinds = []
    for kind, number in Counter(signal.kind for signal in events).most_common():
        of = [vote for vote in valid if vote.kind == kind]
        kinds.append(FeedbackKind(kind, number, len(of), mean_value(of)))
    return FeedbackSummary(kinds, requests, answers, orphans)
