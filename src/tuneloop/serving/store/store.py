"""The store of a server: requests, feedback and decisions in one SQLite file, or in a Postgres database.

Commands use it while a server writes. Every id is inserted once: the same record again changes nothing. A store's place
is its file, the URL of a database, or the folder of its server, which says where its store is.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import cache_folder, make_private, read_json, user_errors_of_the_disk, write_json
from tuneloop.core.foreign import parse_json
from tuneloop.core.ids import utc_now
from tuneloop.data.pii import DEFAULT_SECRET
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import latest, read_record
from tuneloop.records.request import StoredRequest
from tuneloop.records.server import Decision, ServerState
from tuneloop.serving.store import database
from tuneloop.serving.store.database import (
    CHAINED,
    COLUMNS,
    FILE,
    TABLES,
    Database,
    DatabaseError,
    Stored,
    is_database_url,
    link,
    named,
    without_password,
)
from tuneloop.serving.store.migrations import STEPS, StoreSteps, bring_up_to_date

# What a server has in its folder; with a slash: and all that is below.
OWN = ("store.*", "*.log*", "*.db", "*.db-*", "keys.json", "state.json", ".lock", ".keys/", "batch/", "experiments/",
       "improve")  # fmt: skip
FOLDER = "serve"  # that a server works in where nothing else is said
PATIENCE = 5.0  # seconds to wait for a lock that another process holds
PSEUDONYM = "u-"  # before the pseudonym of a user


_Where = tuple[str, str, str, Iterable[Any]]  # since, until, and a condition with its values; see `read_requests`
_TEXTS = ("prompt", "tools", "completion")


def store_url(location: Path | str) -> str:
    """The URL of a store's database: its place, or from the state of the folder's server; empty: it is a file."""
    if is_database_url(location):
        return str(location)
    state, url = Path(location).expanduser() / ServerState.file, ""
    if state.is_file():
        with contextlib.suppress(UserError):  # a damaged file says nothing
            url = read_record(ServerState, state).store_url
    return url if is_database_url(url) else ""


def store_name(location: Path | str) -> str:
    """A store's place as it is shown: its file, or its URL without the password."""
    url = store_url(location)
    return without_password(url) if url else str(store_file(location))


def store_folder(location: Path | str) -> Path:
    """The folder of the files next to a store: that of its server; `serve`, where it is named by a URL."""
    return Path(FOLDER) if is_database_url(location) else store_file(location).parent


def store_file(location: Path | str) -> Path:
    """The store's file, by its name or its server's folder; UserError: a URL that was made a path and lost a slash."""
    path = Path(location).expanduser()
    if path.parts and path.parts[0] in ("postgresql:", "postgres:"):
        raise UserError("This is the URL of a database, as the path of a file", next_step="give it as a text")
    return path if path.suffix == ".db" else path / FILE


def is_store(location: Path | str) -> bool:
    """Whether a place names a store: a database, or a file that is there."""
    return bool(store_url(location)) or store_file(location).is_file()


def connect(
    location: Path | str, *, create: bool = False, patience: float = PATIENCE, steps: StoreSteps = STEPS
) -> Database:
    """Open a store, and bring one of an earlier version up to date; `create`: make it where there is none.

    Args:
        patience: seconds to wait for another process that writes.
        steps: that lead to the form in which it is opened.

    Raises:
        UserError: there is no store, it can't be reached, it is another program's or of a newer version, or a server
            of an older version is at work.
    """
    url, name = store_url(location), store_name(location)
    if not create and not is_store(location):
        raise UserError("There is no store here", where=name, next_step="name the folder of `tuneloop serve`")
    if not url:
        with user_errors_of_the_disk(store_file(location)):
            if not store_file(location).parent.is_dir():
                make_private(store_file(location).parent, ())
    try:
        if url:
            connection: Database = database.open_postgres(url, patience)
        else:
            connection = database.open_sqlite(store_file(location), patience)
        try:
            bring_up_to_date(connection, name, steps, create=create or not url)
            connection.expected = latest(steps)
        except BaseException:
            connection.close()
            raise
    except DatabaseError as error:
        raise _as_user_error(error, name) from None
    return connection


@contextlib.contextmanager
def opened(location: Path | str, *, create: bool = False) -> Iterator[Database]:
    """`connect` for a block; the store is closed at its end. UserError: also where the database fails within."""
    connection = connect(location, create=create)
    try:
        yield connection
    except DatabaseError as error:
        raise _as_user_error(error, store_name(location), "used") from error
    finally:
        connection.close()


_STEPS = {  # what a database says -> what to do
    "locked": "another process writes to it; try again",
    "busy": "another process writes to it; try again",
    "lock timeout": "another process writes to it; try again",
    "password": "put the right password into PGPASSWORD or ~/.pgpass",
    "role": "name another user: postgresql://USER@HOST/DATABASE",
    "database": "make it: createdb NAME; or name another one",
    "permission": "this user needs the right to make tables in the database",
    "already exists": "another program's tables are there; name another database",
    "refused": "start the database, or correct host and port",
    "host": "correct the host",
    "connect": "start the database, or correct host and port",
    "timeout": "start the database, or correct host and port",
}
_FILE_STEPS = {  # of these, and what a file's disk says: the disk is at fault, and the file is to stay
    **{word: _STEPS[word] for word in ("locked", "busy")},
    "disk is full": "free space; the same command then continues",
    "disk I/O error": "free space, or look after the disk; the same command then continues",
    "readonly": "let this user write to the file and its folder",
    "read-only": "let this user write to the file and its folder",
}


def _as_user_error(error: DatabaseError, name: str, use: str = "opened") -> UserError:
    steps, otherwise = _FILE_STEPS, "name another folder, or move this file away"
    if is_database_url(name):
        steps, otherwise = _STEPS, "look into the log of the database"
    step = next((step for word, step in steps.items() if word in str(error)), otherwise)
    return UserError(f"The store can't be {use}: {error}", where=name, next_step=step)


def read_requests(
    connection: Database,
    *,
    since: str = "",
    until: str = "",
    where: str = "",
    values: Iterable[Any] = (),
    shadow: bool | None = False,
    texts: bool = True,
) -> Iterator[StoredRequest]:
    """Stored requests in the order of their ids, which is that of their arrival.

    Args:
        since, until: ISO times; the second one is not included. Empty: no bound.
        where: a further SQL condition with `?` for `values`, as SQLite and Postgres both read it: `"user"` has quotes.
        shadow: False: without copies that candidates answered unseen; True: these alone; None: all of both.
        texts: False: without prompts, tools and completions, which takes half the time.
    """
    copies = "" if shadow is None else f"shadow IS {'NOT ' if shadow else ''}NULL"
    conditions = " AND ".join(f"({condition})" for condition in (copies, where) if condition)
    rows = _read(connection, StoredRequest, (since, until, conditions, values), () if texts else _TEXTS)
    return (StoredRequest(**{"prompt": [], **row}) for row in rows)


def experiment_unit(voice: str | None, user: str | None, conversation: str | None) -> str:
    """By whom an arm is drawn: the user, else the conversation, else no one (empty); of each voice apart."""
    name = user or conversation or ""
    return f"{voice}\x1f{name}" if voice and name else name


def drawn_arms(connection: Database, model: str, since: str) -> dict[str, tuple[str, float, str]]:
    """Arm, propensity and time of the last draw of each user, else conversation, since an ISO time, of one model.

    The propensity rises from draw to draw, so the first request with the highest one is that of the last draw.
    """
    query = """SELECT voice, "user", conversation, arm, propensity, time FROM requests WHERE model = ? AND time >= ?
        AND arm IS NOT NULL AND propensity IS NOT NULL AND shadow IS NULL
        AND COALESCE("user", conversation) IS NOT NULL ORDER BY id"""
    draws: dict[str, tuple[str, float, str]] = {}
    for *who, arm, propensity, time in connection.execute(query, [model, since]):
        if propensity > draws.get(unit := experiment_unit(*who), ("", 0.0, ""))[1]:
            draws[unit] = arm, propensity, time
    return draws


def read_feedback(
    connection: Database,
    *,
    since: str = "",
    until: str = "",
    where: str = "",
    values: Iterable[Any] = (),
    origin: bool = True,
) -> Iterator[Feedback]:
    """Stored feedback by id; see `read_requests`. `origin`: False saves a sixth of the time, without key and source."""
    rows = _read(connection, Feedback, (since, until, where, values), () if origin else ("key", "source"))
    return map(Feedback.model_validate, rows)


def read_decisions(
    connection: Database, *, since: str = "", until: str = "", where: str = "", values: Iterable[Any] = ()
) -> Iterator[Decision]:
    """Decisions in the order of the log, which is right also where their clocks differed; see `read_requests`."""
    return map(Decision.model_validate, _read(connection, Decision, (since, until, where, values)))


def _read(
    connection: Database, kind: type[Stored], where: _Where, without: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The columns of each record by their names."""
    since, until, condition, values = where
    bounds = [("time >= ?", since), ("time < ?", until)]
    conditions = [text for text, value in bounds if value] + ([f"({condition})"] if condition else [])
    columns = {name: type_ for name, type_ in COLUMNS[kind].items() if name not in without}
    query = f"SELECT {named(columns)} FROM {TABLES[kind]}"
    query += f" WHERE {' AND '.join(conditions)}" if conditions else ""
    # A bound of time is looked up in its index: with a plain `ORDER BY id` SQLite reads the whole table by ids.
    order = "number" if kind is Decision else "CAST(id AS TEXT)" if since or until else "id"
    for row in connection.read(f"{query} ORDER BY {order}", [*(v for _, v in bounds if v), *values]):
        pairs = zip(columns.items(), row, strict=True)
        yield {name: parse_json(v) if type_ == "JSON" and v is not None else v for (name, type_), v in pairs}


def last_routes(connection: Database, most: int = 10_000) -> dict[tuple[str, str], str]:
    """Key and conversation -> the model that a router sent its last request to, of those with the last requests."""
    query = """SELECT COALESCE(key, ''), conversation, model FROM requests WHERE route IS NOT NULL
        AND conversation IS NOT NULL AND shadow IS NULL ORDER BY id DESC LIMIT ?"""
    rows = connection.execute(query, [most]).fetchall()
    return {(key, conversation): model for key, conversation, model in reversed(rows)}


@dataclass(frozen=True)
class AnsweredRequest:
    """A request of which feedback may speak: the key that it came with, and whose word its user is."""

    key: str
    user: str | None
    conversation: str | None
    voice: str | None


def find_answered(connection: Database, id_: str) -> AnsweredRequest | None:
    """A request that a client got an answer to, or a part of one; None: there is none of this id."""
    query = """SELECT COALESCE(key, ''), "user", conversation, voice FROM requests WHERE id = ? AND shadow IS NULL
        AND (error IS NULL OR COALESCE(completion_tokens, 0) > 0)"""
    row = connection.execute(query, [id_]).fetchone()
    return AnsweredRequest(*row) if row else None


def had_conversation(connection: Database, key: str, conversation: str) -> bool:
    """Whether a key has sent a request in a conversation."""
    query = "SELECT 1 FROM requests WHERE conversation = ? AND key = ? AND shadow IS NULL LIMIT 1"
    return connection.execute(query, [conversation, key]).fetchone() is not None


def decision_log(location: Path | str) -> DecisionLog:
    """The log of decisions of a store, verified; UserError: there is no store."""
    with opened(location) as store:
        return verify_log(store, store_name(location))


@dataclass(frozen=True)
class DecisionLog:
    """The log of decisions, as far as it was verified.

    It is a chain: each decision has the hash of the one before it in its own, so that no change is unseen. A log that
    is rewritten as a whole ends in another hash than this user has seen: it is noted outside of the store each time
    that the log was verified, and `tuneloop ab replay` prints it.
    """

    decisions: int  # how many there are
    head: str  # hash of the last one; empty: there is none
    fault: str = ""  # what is wrong, in a sentence; empty: nothing is

    @property
    def line(self) -> str:
        """It in a line."""
        if self.fault:
            return f"CHANGED  the log of decisions: {self.fault}"
        return f"unbroken  the log of {self.decisions:,} decisions, which ends in {self.head}"


def verify_log(store: Database, name: str) -> DecisionLog:
    """Whether the log is as it was written, and holds what it did when last verified; `name`: from `store_name`."""
    try:
        noted = read_json(_head_file(name))
    except (UserError, OSError):
        noted = None
    if not isinstance(noted, dict) or not {"store", "decisions", "head", "time"} <= noted.keys():
        noted = {}
    (id_,) = store.execute("SELECT store FROM places").fetchone()
    same = noted.get("store") == id_  # not an earlier one in the same place
    head, count, fault, seen = "", 0, "", not same or not noted.get("decisions")
    for row in store.read(f"SELECT {', '.join(CHAINED)}, number, chain FROM decisions ORDER BY number"):
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
            write_json(_head_file(name), {"store": id_, "decisions": count, "head": head, "time": utc_now()})
    return DecisionLog(count, head, fault)


def refuse_rewritten(store: Database, name: str) -> None:
    """Refuse to decide anything by a log that was changed, with a UserError."""
    if fault := verify_log(store, name).fault:
        step = f"restore the store from a backup; if that is what you have done, delete {_head_file(name)}"
        raise UserError(f"The log of decisions can't be trusted: {fault}", where=name, next_step=step)


def _head_file(name: str) -> Path:
    location = without_password(name) if "://" in name else str(Path(name).resolve())
    digest = hashlib.sha256(location.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(os.environ.get("TUNELOOP_LOG_HEADS") or cache_folder() / "decision-logs") / f"{digest[:24]}.json"


def users_key(store: Database) -> bytes:
    """The key of a store's pseudonyms: that of TUNELOOP_SECRET, else a random name that this store alone has."""
    name = store.execute("SELECT store FROM places").fetchone()[0]
    return os.environ.get(DEFAULT_SECRET, "").encode("utf-8", "surrogateescape") or str(name).encode()


def pseudonym_of_user(name: str, key: bytes) -> str:
    """A user's pseudonym (HMAC-SHA256, RFC 2104, 80 bits of it), from which the key alone leads back."""
    return PSEUDONYM + hmac.new(key, name.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:20]


def known_user(store: Database, match: str) -> str:
    """A match `user=NAME` with the pseudonym, where the store knows the user by that alone; any other as it is."""
    column, _, name = match.partition("=")
    query = 'SELECT 1 FROM requests WHERE "user" = ? LIMIT 1'
    if column != "user" or store.execute(query, [name]).fetchone() is not None:
        return match
    pseudonym = pseudonym_of_user(name, users_key(store))
    return match if store.execute(query, [pseudonym]).fetchone() is None else f"user={pseudonym}"
