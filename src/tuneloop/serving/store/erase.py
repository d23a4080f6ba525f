"""What leaves a store: a person's requests on demand, texts and users after some days.

An erasure leaves a tombstone among the decisions: how many records went, what they had cost, and digests under a secret that
stands nowhere but in the receipt that is printed once. Who has the receipt can show that these records of this person
were erased; without it the digests say nothing, not even to one who guesses the name.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.text import storable
from tuneloop.records.decision import Decision
from tuneloop.serving.store.database import Database
from tuneloop.serving.store.erase_files import Whose, folded, words_of
from tuneloop.serving.store.store import insert, read_decisions

FORGET = "store.forget"
COLUMNS = ("user", "conversation", "id", "key")
CHUNK = 500  # records that are erased in one transaction, so that the server writes between two


@dataclass(frozen=True)
class Matched:
    """What belongs to a person: ids of requests and of feedback, and how many lines of the server's files."""

    requests: tuple[str, ...]
    feedback: tuple[str, ...]
    lines: int = 0

    @property
    def anything(self) -> bool:
        """Whether anything was found."""
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
        store: open.
        match: `user=anna`, `conversation=c1`, `id=...`, `key=...`, or a text that stands in a prompt, an answer or feedback, in
            any case of its letters.
        also: further texts, as the pseudonyms of that one.

    Raises:
        UserError: nothing is named, or an unknown column.
    """
    column, value = _meant(match)
    if column:
        own = [row[0] for row in store.execute(f'SELECT id FROM requests WHERE "{column}" = ?', [value])]
        given = '"user" = ?' if column == "user" else "conversation = ?" if column == "conversation" else "id = ?"
        said = [row[0] for row in store.execute(f"SELECT id FROM feedback WHERE {given}", [value])]
    else:
        texts = _folded_texts(match, also)
        rows = store.read('SELECT id, prompt, completion, tools, "user", conversation, error FROM requests')
        own = [row[0] for row in rows if _holds(row[1:], texts)]
        said = [
            row[0]
            for row in store.read('SELECT id, value, "user", conversation FROM feedback')
            if _holds(row[1:], texts)
        ]
    mine = set(own)
    copies = store.execute("SELECT id, shadow FROM requests WHERE shadow IS NOT NULL").fetchall()
    own += [id_ for id_, of in copies if of in mine]
    said += _among(store, "SELECT id FROM feedback WHERE request", own)
    said += _among(store, "SELECT id FROM feedback WHERE conversation", _conversations(store, own))
    return Matched(tuple(sorted(set(own))), tuple(sorted(set(said))))


def whose_lines(store: Database, match: str, found: Matched, also: Sequence[str] = ()) -> Whose:
    """Whose lines are to leave the files of the server's folder.

    Args:
        store: open; what was found is still there.
        match, also: as for `find`.
    """
    column, value = _meant(match)
    requests = {*found.requests, *([value] if column == "id" else [])}
    talks = _conversations(store, found.requests) if column != "key" else []
    texts = () if column else _folded_texts(match, also)
    return Whose(column, value, texts, frozenset(requests), frozenset(talks))


def _folded_texts(match: str, also: Sequence[str]) -> tuple[str, ...]:
    return tuple(filter(None, (folded(storable(each)) for each in (match, *also))))


def _holds(values: Sequence[str | None], texts: Sequence[str]) -> bool:
    for value in values:
        if value:
            try:
                words = words_of(json.loads(value)) if value[0] in '[{"' else folded(value)
            except (ValueError, RecursionError):
                words = folded(value)
            if any(text in words for text in texts):
                return True
    return False


def _meant(match: str) -> tuple[str, str]:
    """Column and value of a match; an empty column: it is a text."""
    if not match.strip():
        raise UserError("Nothing is named", where="--match", next_step="as in --match user=anna, or a text")
    column, equals, value = match.partition("=")
    if equals and re.fullmatch(r"[a-z_]+", column) and column not in COLUMNS:
        raise UserError(
            f"A store has no column {column!r}", where="--match", next_step=f"columns: {', '.join(COLUMNS)}; or a text"
        )
    return (column, storable(value)) if equals and column in COLUMNS else ("", "")


def _among(store: Database, query: str, values: Sequence[str]) -> list[str]:
    """The first column of a query whose last column is one of some values; in parts, by an index."""
    return [
        row[0] for some in _chunks(values) for row in store.execute(f"{query} IN ({','.join('?' * len(some))})", some)
    ]


def _conversations(store: Database, own: Sequence[str]) -> list[str]:
    """Conversations all of whose requests go."""
    mine = set(own)
    talks = {talk for talk in _among(store, "SELECT conversation FROM requests WHERE id", own) if talk is not None}
    return [
        talk
        for talk in sorted(talks)
        if all(id_ in mine for id_ in _among(store, "SELECT id FROM requests WHERE conversation", [talk]))
    ]


def erase(
    store: Database, match: str, found: Matched, receipt: str = "", lines: Callable[[], object] = lambda: None
) -> Erased:
    """Erase records, write the tombstone, and clear their bytes from the file.

    Args:
        store: open.
        match: whose they are; its digest stands in the tombstone.
        found: from `find`.
        receipt: of an erasure that was begun before; empty: a new one.
        lines: erases what files hold; it is done while the records are still there, by which a second try finds them.
    """
    if not found.anything:
        return Erased(0, 0, "")
    receipt = receipt or secrets.token_urlsafe(16)
    spent: dict[str, float] = defaultdict(float)
    for ids in _chunks(found.requests):
        marks = ",".join("?" * len(ids))
        for key, usd in store.execute(f"SELECT key, usd FROM requests WHERE id IN ({marks})", ids):
            if key and usd:
                spent[key] += usd
    data: dict[str, Any] = {
        "requests": len(found.requests), "feedback": len(found.feedback), "lines": found.lines, "spent": dict(spent),
        "whose": _digest(receipt, match), "records": sorted(_digest(receipt, id_) for id_ in (*found.requests, *found.feedback)),
    }  # fmt: skip
    # The tombstone first: an erasure that is cut in the middle is one that is done again, not one that no one knows of.
    # Its key is that of the receipt: what is done again counts once.
    key = f"{FORGET}:{_digest(receipt, FORGET)}"
    insert(store, [Decision(id=uuid7(), time=utc_now(), kind=FORGET, data=data, key=key)])
    lines()
    delete(store, found)
    return Erased(len(found.requests), len(found.feedback), receipt)


def delete(store: Database, found: Matched) -> None:
    """Delete records, and clear their bytes from the file."""
    for table, whole in (("requests", found.requests), ("feedback", found.feedback)):
        for ids in _chunks(whole):
            store.execute(f"DELETE FROM {table} WHERE id IN ({','.join('?' * len(ids))})", ids)
    store.forget(whole=True)


def _chunks(ids: Sequence[str]) -> list[list[str]]:
    return [list(ids[i : i + CHUNK]) for i in range(0, len(ids), CHUNK)]


def _digest(receipt: str, value: str) -> str:
    return hmac.new(receipt.encode(), value.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def proved(store: Database, match: str, receipt: str) -> Decision | None:
    """The tombstone that a receipt belongs to; None: it is none of this person's.

    Args:
        match: as it was given when the records were erased.
    """
    wanted = _digest(receipt, match)
    return next(
        (each for each in read_decisions(store, where=f"kind = '{FORGET}'") if each.data["whose"] == wanted), None
    )


def spent_by_erased(store: Database) -> dict[str, float]:
    """Dollars of erased requests by key, which still count against budgets."""
    found: dict[str, float] = defaultdict(float)
    for event in read_decisions(store, where=f"kind = '{FORGET}'"):
        for key, usd in event.data["spent"].items():
            found[key] += usd
    return dict(found)


def expire(store: Database, before: str, keys: Sequence[str] = (), *, others: bool = False) -> int:
    """Take texts, users and conversations from requests before a time, and texts from feedback; numbers stay.

    Args:
        before: ISO time.
        keys: names of API keys, whose requests alone are meant; empty: all requests.
        others: all requests but those of the keys.

    Returns:
        How many requests that were.
    """
    marks, no = ",".join("?" * len(keys)), "NOT " if others else ""
    mine = f"COALESCE(key, '') {no}IN ({marks})" if keys else "TRUE"
    about = " OR ".join(
        f"EXISTS (SELECT 1 FROM requests WHERE requests.{mine_} = feedback.{theirs} AND requests.key IN ({marks}))"
        for mine_, theirs in (("id", "request"), ("conversation", "conversation"))
    )
    heard, values = (f"{no}({about})", [before, *keys, *keys]) if keys else ("TRUE", [before])
    texts = "kind IN ('correction', 'comment', 'choice') OR conversation IS NOT NULL"
    store.execute(f"DELETE FROM feedback WHERE time < ? AND ({texts}) AND {heard}", values)
    store.execute(f'UPDATE feedback SET "user" = NULL WHERE time < ? AND "user" IS NOT NULL AND {heard}', values)
    count = 0
    while True:
        changed = store.execute(
            "UPDATE requests SET prompt = '[]', completion = NULL, tools = '[]', \"user\" = NULL, conversation = NULL, "
            "error = CASE WHEN error IS NULL THEN NULL ELSE 'failed' END WHERE id IN (SELECT id FROM requests WHERE "
            "time < ? AND (prompt != '[]' OR completion IS NOT NULL OR \"user\" IS NOT NULL OR conversation IS NOT NULL) "
            f"AND {mine} LIMIT {CHUNK})",
            [before, *keys],
        ).rowcount
        if not changed:
            break
        count += changed
    if count:
        store.forget(whole=False)
    return count
