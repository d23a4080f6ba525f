"""Requests of a store, searched newest first: no index of their texts, so an erased one is found no more.

A look reads back from the newest request in parts of time, and ends with a page of matches or when its time is up; it
says how far it came, and the next one continues there. So each is quick on a store of any size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ids import since_time
from tuneloop.improve.feedback import current, mean_value
from tuneloop.records.feedback import KINDS, Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store import Database, read_feedback, read_requests

PAGE = 50  # requests of a page
SECONDS = 0.25  # of a look
PART = 4000  # requests of the first part of time; each is at most twice the one before
MOST_PART = 40_000
LAST = "~"  # sorts behind every time
FEEDBACK = ("any", "none", "good", "bad", *KINDS)
ERRORS = ("failed", "refused", "answered", "cut off")
_STATES = {
    "failed": "error IS NOT NULL AND COALESCE(finish, '') != 'refused'",
    "refused": "finish = 'refused'",
    "answered": "error IS NULL",
    "cut off": "finish = 'length'",
}
# Of a request, or of the conversation that it belongs to.
_SAID = """(EXISTS (SELECT 1 FROM feedback WHERE feedback.request = requests.id{kind}) OR (conversation IS NOT NULL AND
    EXISTS (SELECT 1 FROM feedback WHERE feedback.conversation = requests.conversation{kind})))"""


@dataclass(frozen=True)
class TrafficFilter:
    """What is searched for; empty: anything.

    Args:
        text: in a prompt or an answer; ASCII letters in either case.
        since, until: times, as in `24h` or `2026-01-31`.
        key, model, arm, tier, user, conversation, release: as stored.
        state: one of `ERRORS`; `slower`: milliseconds that an answer took at least.
        feedback: one of `FEEDBACK`.
    """

    text: str = ""
    since: str = ""
    until: str = ""
    key: str = ""
    model: str = ""
    arm: str = ""
    tier: str = ""
    user: str = ""
    conversation: str = ""
    release: str = ""
    state: str = ""
    slower: str = ""
    feedback: str = ""

    @property
    def values(self) -> dict[str, str]:
        """What is not empty, by name."""
        return {name: value for name, value in vars(self).items() if value}


def filter_of(query: Mapping[str, str]) -> TrafficFilter:
    """The filter of a query string; UserError: a time or number that is none, or an unknown choice."""
    values = {
        filter_field.name: str(query.get(filter_field.name, "")).strip()[:500] for filter_field in fields(TrafficFilter)
    }
    for name in ("since", "until"):
        values[name] = since_time(values[name])
    for name, choices in (("state", ERRORS), ("feedback", FEEDBACK)):
        if values[name] and values[name] not in choices:
            step = f"one of {', '.join(choices)}"
            raise UserError(f"No such choice: {values[name]!r:.40}", where=name, next_step=step)
    try:
        float(values["slower"] or 0)
    except ValueError:
        raise UserError(f"Not a number of milliseconds: {values['slower']!r:.40}", where="slower") from None
    return TrafficFilter(**values)


@dataclass(frozen=True)
class FoundRequest:
    """A request of a page, with what was said of it or of its conversation."""

    request: StoredRequest
    feedback: list[Feedback]

    @property
    def liked(self) -> float | None:
        """Mean of the judgements, 0 bad to 1 good."""
        return mean_value(self.feedback)


@dataclass(frozen=True)
class TrafficPage:
    """What a look gave: rows, newest first; `cursor`: where the next look continues, empty where all was searched;
    `back_to`: time to which this one came."""

    rows: list[FoundRequest] = field(default_factory=list)
    cursor: str = ""
    back_to: str = ""


def search(store: Database, wanted: TrafficFilter, cursor: str = "", *, seconds: float = SECONDS) -> TrafficPage:
    """Look for requests that match, newest first; `cursor`: of the look before; `seconds`: that it may take."""
    condition, values = _conditions(store, wanted)
    query = f"SELECT time, id FROM requests WHERE time >= ? AND (time, id) < (?, ?) AND {condition}"  # noqa: S608
    query += " ORDER BY time DESC, id DESC LIMIT ?"
    edge, id_ = cursor.partition(" ")[::2] if cursor else (wanted.until or LAST, "")
    rows: list[FoundRequest] = []
    part, low, over = PART, None, False
    until = time.monotonic() + seconds
    while True:
        begin = time.monotonic()
        if low is None or not id_:  # the part before was searched whole
            low = _part_start(store, wanted, edge, part)
        places = store.execute(query, [low, edge, id_, *values, PAGE]).fetchall()
        rows += _checked(store, wanted, [str(hit[1]) for hit in places])
        edge, id_ = places[-1] if len(places) == PAGE else (low, "")
        over = not id_ and (not low or low <= wanted.since)
        now = time.monotonic()
        if over or len(rows) >= PAGE or now > until:
            break
        part = max(500, min(2 * part, MOST_PART, int(part * (until - now) / (now - begin + 1e-6))))
    if len(rows) > PAGE:
        rows = rows[:PAGE]
        edge, id_, over = rows[-1].request.time, rows[-1].request.id, False
    return TrafficPage(rows, "" if over else f"{edge} {id_}", "" if over else edge)


def _part_start(store: Database, wanted: TrafficFilter, edge: str, part: int) -> str:
    """The time from which on about `part` requests came before `edge`, by the index alone; empty: the beginning."""
    if wanted.user or wanted.conversation:  # few requests, in an index of their own
        return wanted.since
    first = "SELECT time FROM requests WHERE time < ? ORDER BY time DESC LIMIT 1 OFFSET ?"
    row = store.execute(first, [edge, part]).fetchone()
    return max(row[0] if row else "", wanted.since)


def _conditions(store: Database, wanted: TrafficFilter) -> tuple[str, list[Any]]:
    """The SQL condition of a filter and its values."""
    parts: list[tuple[str, list[Any]]] = [("shadow IS NULL", [])]
    for name in ("user", "conversation"):
        if value := getattr(wanted, name):
            parts.append((f'"{name}" = ?', [value]))
    # COALESCE keeps SQLite on the index of times.
    for name in ("key", "model", "arm", "tier", "release"):
        if value := getattr(wanted, name):
            parts.append((f"COALESCE({name}, '') = ?", ["" if value == "(none)" else value]))
    if wanted.state:
        parts.append((_STATES[wanted.state], []))
    if wanted.slower:
        parts.append(("total_ms >= ?", [float(wanted.slower)]))
    if wanted.feedback:
        kind = " AND feedback.kind = ?" if wanted.feedback in KINDS else ""
        said = _SAID.format(kind=kind)
        parts.append((f"NOT {said}" if wanted.feedback == "none" else said, [wanted.feedback] * 2 if kind else []))
    if wanted.text:
        inner = json.dumps(wanted.text, ensure_ascii=False)[1:-1]
        for sign in "!%_":
            inner = inner.replace(sign, f"!{sign}")
        like = f"{{}} {store.like} ? ESCAPE '!'"
        parts.append((f"({like.format('prompt')} OR {like.format('completion')})", [f"%{inner}%"] * 2))
    return " AND ".join(text for text, _ in parts), [value for _, values in parts for value in values]


def _checked(store: Database, wanted: TrafficFilter, ids: Sequence[str]) -> Iterator[FoundRequest]:
    """Requests of these ids, newest first, without those whose judgement is another one."""
    if not ids:
        return
    marks = ", ".join("?" * len(ids))
    requests = {request.id: request for request in read_requests(store, where=f"id IN ({marks})", values=ids)}
    said = said_of(store, list(requests.values()))
    for id_ in ids:
        if id_ not in requests:  # erased meanwhile
            continue
        joined = FoundRequest(requests[id_], said.get(id_, []))
        liked = joined.liked
        if wanted.feedback not in ("good", "bad") or (
            liked is not None and (liked >= 0.5) == (wanted.feedback == "good")
        ):
            yield joined


def said_of(store: Database, requests: Sequence[StoredRequest]) -> dict[str, list[Feedback]]:
    """Request -> what holds of all that was said of it or of its conversation."""
    by_id: dict[str, list[Feedback]] = {}
    names = {request.conversation for request in requests if request.conversation}
    for column, values in (("request", [request.id for request in requests]), ("conversation", sorted(names))):
        if values:
            marks = ", ".join("?" * len(values))
            for vote in read_feedback(store, where=f"{column} IN ({marks})", values=values):
                by_id.setdefault(str(getattr(vote, column)), []).append(vote)
    of = {
        request.id: current(by_id.get(request.id, []) + by_id.get(request.conversation or "", []))
        for request in requests
    }
    return {id_: said for id_, said in of.items() if said}


def choices(store: Database) -> dict[str, list[str]]:
    """What keys, models and tiers a store has, from its sums by day."""
    rows = store.execute("SELECT DISTINCT model, key, tier FROM costs").fetchall()
    return {name: sorted({row[at] or "(none)" for row in rows}) for at, name in enumerate(("model", "key", "tier"))}
