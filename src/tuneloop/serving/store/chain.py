"""The log of decisions as a chain: each has the hash of the one before it in its own, so that no change is unseen.

A log that is rewritten as a whole ends in another hash than this user has seen: it is noted outside of the store each
time that the log was verified, and `tuneloop ab replay` prints it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, read_json, write_json
from tuneloop.core.ids import utc_now
from tuneloop.serving.store.database import Database, without_password

COLUMNS = ("id", "time", "kind", "subject", "data", "key")


@dataclass(frozen=True)
class DecisionLog:
    """A log, as far as it was verified."""

    decisions: int  # how many there are
    head: str  # hash of the last one; empty: there is none
    fault: str = ""  # what is wrong, in a sentence; empty: nothing is


def link(previous: str, values: Sequence[Any]) -> str:
    """The hash of a decision, by that of the one before it and the values of `COLUMNS` as the database holds them."""
    return hashlib.sha256(json.dumps([previous, *values], ensure_ascii=True).encode()).hexdigest()


def last_link(store: Database) -> tuple[int, str]:
    """Number and hash of the last decision; 0 and an empty text where there is none."""
    row = store.execute("SELECT number, chain FROM decisions ORDER BY number DESC LIMIT 1").fetchone()
    return (int(row[0]), str(row[1])) if row else (0, "")


def verify(store: Database, name: str) -> DecisionLog:
    """Whether the log is as it was written, and holds what it did when last verified; `name`: from `store_name`."""
    try:
        noted = read_json(_file(name))
    except (UserError, OSError):
        noted = None
    if not isinstance(noted, dict) or not {"store", "decisions", "head", "time"} <= noted.keys():
        noted = {}
    (id_,) = store.execute("SELECT store FROM places").fetchone()
    same = noted.get("store") == id_  # not an earlier one in the same place
    head, count, fault, seen = "", 0, "", not same or not noted.get("decisions")
    for row in store.read(f"SELECT {', '.join(COLUMNS)}, number, chain FROM decisions ORDER BY number"):
        count += 1
        head = link(head, row[:-2])
        if not fault and (row[-2] != count or row[-1] != head):
            fault = f"decision {count:,} ({row[2]}, {row[1]}) or one before it was changed, added or removed"
        seen = seen or (count == noted["decisions"] and head == noted["head"])
    if not fault and not seen:
        before = f"{noted['decisions']:,} decisions and ended in {noted['head'][:16]}"
        fault = f"it was rewritten: on {noted['time']} it had {before}"
    if not fault:
        with contextlib.suppress(UserError):  # a user without a home, as in some containers: then the chain alone holds
            write_json(_file(name), {"store": id_, "decisions": count, "head": head, "time": utc_now()})
    return DecisionLog(count, head, fault)


def refuse_rewritten(store: Database, name: str) -> None:
    """Refuse to decide anything by a log that was changed, with a UserError."""
    if fault := verify(store, name).fault:
        step = f"restore the store from a backup; if that is what you have done, delete {_file(name)}"
        raise UserError(f"The log of decisions can't be trusted: {fault}", where=name, next_step=step)


def _file(name: str) -> Path:
    place = without_password(name) if "://" in name else str(Path(name).resolve())
    digest = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(os.environ.get("TUNELOOP_LOG_HEADS") or cache_folder() / "decision-logs") / f"{digest[:24]}.json"
