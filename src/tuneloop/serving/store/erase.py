"""What leaves a store: a person's requests on demand, texts and users after some days.

An erasure leaves a tombstone among the decisions, with digests under a secret that is in the receipt alone, printed
once: who has it can show what was erased; without it the digests say nothing, not even to one who guesses the name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.text import storable
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import Database, insert
from tuneloop.serving.store.erase_files import Whose, folded, words_of
from tuneloop.serving.store.store import read_decisions

FORGET = "store.forget"
COLUMNS = ("user", "conversation", "id", "key")
CHUNK = 500  # records that are erased in one transaction, so that the server writes between two


@dataclass(frozen=True)
class Matched:
    """What belongs to a person: ids of requests and of feedback, and how many lines of the server's files."""

    requests: tuple[str, ...]
    feedback: tuple[str, ...]
    lines: int = 0
    begun: bool = False  # an erasure in the server's folder is not done yet

    @property
    def anything(self) -> bool:
        """Whether there is anything."""
        return bool(self.requests or self.feedback or self.lines)


@dataclass(frozen=True)
class Erased:
    """What was erased; the receipt is empty where nothing was."""

    requests: int
    feedback: int
    receipt: str


def find(store: Database, match: str, also: Sequence[str] = ()) -> Matched:
    """The requests and feedback that a match names, with the copies that a candidate answered.

    Args:
        match: `user=anna`, `conversation=c1`, `id=...`, `key=...`, or a text in a prompt, answer or feedback.
        also: further texts, as the pseudonyms of that one.

    Raises:
        UserError: nothing is named, or an unknown column.
    """
    column, value = _meant(match)
    if column:
        requests = [row[0] for row in store.execute(f'SELECT id FROM requests WHERE "{column}" = ?', [value])]
        column = column if column in ("user", "conversation") else "id"
        feedback = [row[0] for row in store.execute(f'SELECT id FROM feedback WHERE "{column}" = ?', [value])]
    else:
        texts = _folded_texts(match, also)
        rows = store.read('SELECT id, prompt, completion, tools, "user", conversation, error FROM requests')
        requests = [id_ for id_, *values in rows if _holds(values, texts)]
        rows = store.read('SELECT id, value, "user", conversation FROM feedback')
        feedback = [id_ for id_, *values in rows if _holds(values, texts)]
    ids = set(requests)
    copies = store.execute("SELECT id, shadow FROM requests WHERE shadow IS NOT NULL").fetchall()
    requests += [id_ for id_, of in copies if of in ids]
    feedback += _among(store, "SELECT id FROM feedback WHERE request", requests)
    feedback += _among(store, "SELECT id FROM feedback WHERE conversation", _conversations(store, requests))
    return Matched(tuple(sorted(set(requests))), tuple(sorted(set(feedback))))


def whose_lines(store: Database, match: str, matched: Matched, also: Sequence[str] = ()) -> Whose:
    """Whose lines are to leave the files of the server's folder, while what was matched is still in the store."""
    column, value = _meant(match)
    requests = {*matched.requests, *([value] if column == "id" else [])}
    conversations = _conversations(store, matched.requests) if column != "key" else []
    texts = () if column else _folded_texts(match, also)
    return Whose(column, value, texts, frozenset(requests), frozenset(conversations))


def _folded_texts(match: str, also: Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, (folded(storable(letter)) for letter in (match, *also))))


def _holds(values: Sequence[str | None], texts: Sequence[str]) -> bool:
    for value in filter(None, values):
        try:
            texts_here = words_of(parse_json(value)) if value[0] in '[{"' else folded(value)
        except (ValueError, RecursionError):
            texts_here = folded(value)
        if any(text in texts_here for text in texts):
            return True
    return False


def _meant(match: str) -> tuple[str, str]:
    """Column and value of a match; an empty column: it is a text."""
    if not match.strip():
        raise UserError("Nothing is named", where="--match", next_step="as in --match user=anna, or a text")
    column, equals, value = match.partition("=")
    if equals and re.fullmatch(r"[a-z_]+", column) and column not in COLUMNS:
        step = f"columns: {', '.join(COLUMNS)}; or a text"
        raise UserError(f"A store has no column {column!r}", where="--match", next_step=step)
    return (column, storable(value)) if equals and column in COLUMNS else ("", "")


def _among(store: Database, query: str, values: Sequence[str]) -> list[str]:
    """The first column of a query whose last column is one of some values; in parts, by an index."""
    parts = [(f"{query} IN ({','.join('?' * len(some))})", some) for some in _chunks(values)]
    return [row[0] for sql, some in parts for row in store.execute(sql, some)]


def _conversations(store: Database, requests: Sequence[str]) -> list[str]:
    """Conversations all of whose requests go."""
    ids, query = set(requests), "SELECT id FROM requests WHERE conversation"
    names = set(_among(store, "SELECT conversation FROM requests WHERE id", requests)) - {None}
    return [name for name in sorted(names) if ids.issuperset(_among(store, query, [name]))]


def erase(
    store: Database, match: str, matched: Matched, receipt: str = "", lines: Callable[[], object] = lambda: None
) -> Erased:
    """Erase records, write the tombstone, and clear their bytes from the file.

    Args:
        match: whose they are; its digest is in the tombstone.
        receipt: of an erasure that was begun before; empty: a new one.
        lines: erases what files hold; it runs while the records are still there, by which a second try finds them.
    """
    if not matched.anything:
        return Erased(0, 0, "")
    receipt = receipt or secrets.token_urlsafe(16)
    spent: dict[str, float] = defaultdict(float)
    for ids in _chunks(matched.requests):
        marks = ",".join("?" * len(ids))
        for key, usd in store.execute(f"SELECT key, usd FROM requests WHERE id IN ({marks})", ids):
            if key and usd:
                spent[key] += usd
    data: dict[str, Any] = {
        "requests": len(matched.requests), "feedback": len(matched.feedback), "lines": matched.lines,
        "spent": dict(spent), "whose": _digest(receipt, match),
        "records": sorted(_digest(receipt, id_) for id_ in (*matched.requests, *matched.feedback)),
    }  # fmt: skip
    # The tombstone first: an erasure that is cut is repeated, not unknown. By the receipt's key it then counts once.
    key = f"{FORGET}:{_digest(receipt, FORGET)}"
    insert(store, [Decision(id=uuid7(), time=utc_now(), kind=FORGET, data=data, key=key)])
    lines()
    delete(store, matched)
    return Erased(len(matched.requests), len(matched.feedback), receipt)


def delete(store: Database, matched: Matched) -> None:
    """Delete records, and clear their bytes from the file."""
    for table, whole in (("requests", matched.requests), ("feedback", matched.feedback)):
        for ids in _chunks(whole):
            store.execute(f"DELETE FROM {table} WHERE id IN ({','.join('?' * len(ids))})", ids)
    store.forget(whole=True)


def _chunks(ids: Sequence[str]) -> list[list[str]]:
    return [list(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]


def _digest(receipt: str, value: str) -> str:
    return hmac.new(receipt.encode(), value.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def proved(store: Database, match: str, receipt: str) -> Decision | None:
    """The tombstone that a receipt belongs to, with the match of that erasure; None: it is none of this person's."""
    digest, tombstones = _digest(receipt, match), read_decisions(store, where=f"kind = '{FORGET}'")
    return next((tombstone for tombstone in tombstones if tombstone.data["whose"] == digest), None)


def spent_by_erased(store: Database, since: str = "") -> dict[str, float]:
    """Dollars of erased requests by the names of keys, which still count against budgets; `since`: ISO time."""
    spent: dict[str, float] = defaultdict(float)
    for event in read_decisions(store, since=since, where=f"kind = '{FORGET}'"):
        for key, usd in event.data["spent"].items():
            spent[key] += usd
    return dict(spent)


def expire(store: Database, before: str, keys: Sequence[str] = (), *, others: bool = False) -> int:
    """Take texts, users and conversations from requests before an ISO time, and texts from feedback; numbers stay.

    Returns how many requests that were: those of the keys, by names (empty: all), or all `others` but those.
    """
    marks, no = ",".join("?" * len(keys)), "NOT " if others else ""
    mine = f"COALESCE(key, '') {no}IN ({marks})" if keys else "TRUE"
    about = " OR ".join(
        f"EXISTS (SELECT 1 FROM requests WHERE requests.{ours} = feedback.{name} AND requests.key IN ({marks}))"
        for ours, name in (("id", "request"), ("conversation", "conversation"))
    )
    theirs, values = (f"{no}({about})", [before, *keys, *keys]) if keys else ("TRUE", [before])
    texts = "kind IN ('correction', 'comment', 'choice') OR conversation IS NOT NULL"
    store.execute(f"DELETE FROM feedback WHERE time < ? AND ({texts}) AND {theirs}", values)
    store.execute(f'UPDATE feedback SET "user" = NULL WHERE time < ? AND "user" IS NOT NULL AND {theirs}', values)
    personal = "prompt != '[]' OR completion IS NOT NULL OR \"user\" IS NOT NULL OR conversation IS NOT NULL"
    clear = f"""UPDATE requests SET prompt = '[]', completion = NULL, tools = '[]', "user" = NULL, conversation = NULL,
        error = CASE WHEN error IS NULL THEN NULL ELSE 'failed' END
        WHERE id IN (SELECT id FROM requests WHERE time < ? AND ({personal}) AND {mine} LIMIT {CHUNK})"""
    count = 0
    while changed := store.execute(clear, [before, *keys]).rowcount:
        count += changed
    if count:
        store.forget(whole=False)
    return count
