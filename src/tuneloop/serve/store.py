"""The store of a server: requests, feedback and decisions in one SQLite file.

`connect` opens it and brings its tables up to date; `insert` and the `read_...` functions work on any connection, so that
commands use the file while a server writes. Write-ahead logging lets many read while one writes. Every id is inserted
once: the same record again changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import user_errors_of_the_disk
from tuneloop.records.decision import Decision
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import Record
from tuneloop.records.request import StoredRequest

FILE = "store.db"
PATIENCE = 5.0  # seconds to wait for a lock that another process holds

# Each brings the tables from the version of its place to the next one. What stands here is never changed, only added to.
MIGRATIONS = (
    """
    CREATE TABLE requests (
        id TEXT PRIMARY KEY, time TEXT NOT NULL, key TEXT, model TEXT NOT NULL, adapter TEXT, release TEXT, arm TEXT,
        propensity REAL, user TEXT, conversation TEXT, prompt TEXT NOT NULL, tools TEXT, completion TEXT,
        prompt_tokens INTEGER, completion_tokens INTEGER, ttft_ms REAL, total_ms REAL, finish TEXT, tier TEXT, usd REAL,
        seconds REAL, error TEXT
    );
    CREATE INDEX requests_by_time ON requests (time);
    CREATE INDEX requests_by_user ON requests (user) WHERE user IS NOT NULL;
    CREATE INDEX requests_by_conversation ON requests (conversation) WHERE conversation IS NOT NULL;
    CREATE TABLE feedback (
        id TEXT PRIMARY KEY, request TEXT, conversation TEXT, kind TEXT NOT NULL, value TEXT NOT NULL, user TEXT,
        time TEXT NOT NULL, key TEXT UNIQUE
    );
    CREATE INDEX feedback_by_request ON feedback (request) WHERE request IS NOT NULL;
    CREATE INDEX feedback_by_conversation ON feedback (conversation) WHERE conversation IS NOT NULL;
    CREATE TABLE decisions (
        id TEXT PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, data TEXT NOT NULL,
        key TEXT UNIQUE
    );
    CREATE INDEX decisions_by_subject ON decisions (subject, id);
    CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
    CREATE TRIGGER decisions_remain BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
    """,
    """
    ALTER TABLE requests ADD COLUMN fallback TEXT;
    ALTER TABLE requests ADD COLUMN shadow TEXT;
    CREATE INDEX requests_by_arm ON requests (model, id) WHERE arm IS NOT NULL;
    """,
    "ALTER TABLE requests ADD COLUMN route TEXT;",
    "ALTER TABLE requests ADD COLUMN train TEXT;",
    # The order in which requests and feedback were stored; a request's time is that at which it came.
    """
    ALTER TABLE requests ADD COLUMN place INTEGER;
    ALTER TABLE feedback ADD COLUMN place INTEGER;
    UPDATE requests SET place = 0;
    UPDATE feedback SET place = 0;
    CREATE TABLE places (last INTEGER NOT NULL);
    INSERT INTO places VALUES (0);
    """,
    "CREATE INDEX requests_by_shadow ON requests (model, id) WHERE shadow IS NOT NULL;",
    """
    CREATE INDEX requests_by_route ON requests (id) WHERE route IS NOT NULL;
    CREATE INDEX feedback_by_time ON feedback (time);
    """,
)
TABLES: dict[type[Record], str] = {StoredRequest: "requests", Feedback: "feedback", Decision: "decisions"}
_JSON = {"prompt", "tools", "completion", "value", "data", "route"}  # columns that hold JSON
_COLUMNS = {kind: tuple(name for name in kind.model_fields if name != "version") for kind in TABLES}
_PLACED = (StoredRequest, Feedback)
READS_JSON = sqlite3.sqlite_version_info >= (3, 38)  # whether `insert_lines` works


def _insertion(kind: type[Record]) -> str:
    columns = [*_COLUMNS[kind], *(["place"] if kind in _PLACED else [])]
    return f"INSERT OR IGNORE INTO {TABLES[kind]} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _insertion_of_lines(kind: type[Record]) -> str:
    """As `_insertion`, of the elements of a JSON array."""
    values = [f"NULLIF(value -> '$.{n}', 'null')" if n in _JSON else f"value ->> '$.{n}'" for n in _COLUMNS[kind]]
    if kind in _PLACED:
        values.append("(SELECT last FROM places) + 1 + key")
    return f"{_insertion(kind).partition(' VALUES ')[0]} SELECT {', '.join(values)} FROM json_each(?)"


_INSERT = {kind: _insertion(kind) for kind in TABLES}
_INSERT_LINES = {kind: _insertion_of_lines(kind) for kind in TABLES}


def store_file(place: Path | str) -> Path:
    """The store's file, by its own name or the folder of a server."""
    path = Path(place).expanduser()
    return path if path.suffix == ".db" else path / FILE


def connect(place: Path | str, *, create: bool = False, patience: float = PATIENCE) -> sqlite3.Connection:
    """Open a store and bring its tables up to date.

    Args:
        place: the store's file, or the server's folder.
        create: make it where there is none.
        patience: seconds to wait for another process that writes.

    Raises:
        UserError: there is no store, it is another program's file, or a later version made it.
    """
    path = store_file(place)
    if not create and not path.is_file():
        raise UserError("There is no store here", where=str(path), next_step="name the folder of `tuneloop serve`")
    with user_errors_of_the_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise _as_user_error(error, path) from None
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise _as_user_error(error, path) from None
    except UserError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def opened(place: Path | str, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """`connect` for a block; the store is closed at its end."""
    connection = connect(place, create=create)
    try:
        yield connection
    finally:
        connection.close()


def _as_user_error(error: sqlite3.Error, path: Path) -> UserError:
    busy = "locked" in str(error) or "busy" in str(error)
    step = "another process writes to it; try again" if busy else "name another folder, or move this file away"
    return UserError(f"The store can't be opened: {error}", where=str(path), next_step=step)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    def version() -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    if version() > len(MIGRATIONS):
        raise UserError(
            f"A later tuneloop made this store (version {version()}; this one reads {len(MIGRATIONS)})",
            where=str(path), next_step="install the later tuneloop",
        )  # fmt: skip
    while version() < len(MIGRATIONS):
        with _transaction(connection):  # two processes that open a new store: the second one finds it made
            at = version()
            if at < len(MIGRATIONS):
                for statement in _statements(MIGRATIONS[at]):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {at + 1}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; those with semicolons inside stay whole."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


# --- writing -----------------------------------------------------------------------------------


def insert(connection: sqlite3.Connection, records: Iterable[Record]) -> int:
    """Add records in one transaction; those whose id or key is there already change nothing.

    Returns:
        How many were new.

    Raises:
        sqlite3.Error: the disk is full, or another process holds the file; nothing was added then.
    """
    with _transaction(connection):
        place = before_place = last_place(connection)
        before = connection.total_changes
        for record in records:
            kind = type(record)
            values = (getattr(record, name) for name in _COLUMNS[kind])
            held = [_text(v) if n in _JSON else v for n, v in zip(_COLUMNS[kind], values, strict=True)]
            if kind in _PLACED:
                place += 1
                held.append(place)
            connection.execute(_INSERT[kind], held)
        new = connection.total_changes - before
        if place != before_place:
            connection.execute("UPDATE places SET last = ?", [place])
    return new


def insert_lines(connection: sqlite3.Connection, kind: type[Record], lines: Sequence[bytes]) -> int:
    """`insert` of records that are JSON objects already, in one statement.

    SQLite reads the JSON itself and holds no lock of the interpreter meanwhile, so that a server answers at the same time.

    Raises:
        sqlite3.Error: as `insert`; or this SQLite is older than 3.38; or a line is not JSON as it reads it.
    """
    with _transaction(connection):
        before = connection.total_changes
        connection.execute(_INSERT_LINES[kind], [(b"[" + b",".join(lines) + b"]").decode()])
        new = connection.total_changes - before
        if kind in _PLACED:
            connection.execute("UPDATE places SET last = last + ?", [len(lines)])
    return new


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of a block is stored, or nothing; nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def last_place(connection: sqlite3.Connection) -> int:
    """The place of the last request or feedback that was stored; all later ones have higher places."""
    return int(connection.execute("SELECT last FROM places").fetchone()[0])


def _text(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a surrogate pair in a text, or a number of more than 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()


# --- reading -----------------------------------------------------------------------------------

R = TypeVar("R", bound=Record)


def read_requests(
    connection: sqlite3.Connection, *, since: str = "", until: str = "", where: str = "", values: Iterable[Any] = (),
    shadow: bool | None = False,
) -> Iterator[StoredRequest]:  # fmt: skip
    """Stored requests in the order of their ids, which is that of their arrival.

    Args:
        since, until: ISO times; the second one is not included. Empty: no bound.
        where: a further SQL condition with `?` for `values`.
        shadow: False: without copies that candidates answered unseen; True: these alone; None: all of both.
    """
    copies = "" if shadow is None else f"shadow IS {'NOT ' if shadow else ''}NULL"
    conditions = " AND ".join(f"({each})" for each in (copies, where) if each)
    return _read(connection, StoredRequest, since, until, conditions, values)


def first_arms(connection: sqlite3.Connection, model: str, since: str) -> dict[str, tuple[str, float]]:
    """The arm and propensity of the first request of each user, or conversation without a user, in an experiment.

    Args:
        model: as it was asked for.
        since: ISO time of the experiment's start.
    """
    rows = connection.execute(
        "SELECT COALESCE(user, conversation), arm, propensity FROM requests WHERE model = ? AND time >= ? AND "
        "arm IS NOT NULL AND propensity IS NOT NULL AND shadow IS NULL AND COALESCE(user, conversation) IS NOT NULL "
        "ORDER BY id DESC",
        [model, since],
    )
    return {unit: (arm, propensity) for unit, arm, propensity in rows}  # the first one comes last and stays


def read_feedback(
    connection: sqlite3.Connection, *, since: str = "", until: str = "", where: str = "", values: Iterable[Any] = ()
) -> Iterator[Feedback]:
    """Stored feedback in the order of its ids; see `read_requests`."""
    return _read(connection, Feedback, since, until, where, values)


def read_decisions(
    connection: sqlite3.Connection, *, since: str = "", until: str = "", where: str = "", values: Iterable[Any] = ()
) -> Iterator[Decision]:
    """Decisions in the order of their ids; see `read_requests`."""
    return _read(connection, Decision, since, until, where, values)


def _read(
    connection: sqlite3.Connection, kind: type[R], since: str, until: str, where: str, values: Iterable[Any]
) -> Iterator[R]:
    bounds = [("time >= ?", since), ("time < ?", until)]
    conditions = [text for text, value in bounds if value] + ([f"({where})"] if where else [])
    query = f"SELECT {', '.join(_COLUMNS[kind])} FROM {TABLES[kind]}"
    query += f" WHERE {' AND '.join(conditions)}" if conditions else ""
    # A bound of time is looked up in its index: with a plain `ORDER BY id` SQLite reads the whole table in the order of the ids.
    order = "+id" if since or until else "id"
    cursor = connection.execute(f"{query} ORDER BY {order}", [*(v for _, v in bounds if v), *values])
    for row in cursor:
        found = dict(zip(_COLUMNS[kind], row, strict=True))
        yield kind.model_validate({n: json.loads(v) if n in _JSON and v is not None else v for n, v in found.items()})


def last_routes(connection: sqlite3.Connection, most: int = 10_000) -> dict[str, str]:
    """Conversation -> the model that a router sent its last request to, of the conversations with the last requests."""
    rows = connection.execute(
        "SELECT conversation, model FROM requests WHERE route IS NOT NULL AND conversation IS NOT NULL AND shadow IS NULL "
        "ORDER BY id DESC LIMIT ?",
        [most],
    ).fetchall()
    return dict(reversed(rows))


def exported(request: StoredRequest) -> dict[str, Any] | None:
    """A request in the form of a log of a chat API, which `tuneloop prepare` reads; None where it must not be trained on or
    its texts were not kept.

    `meta` columns stand next to request and response: ids, time, user, release, finish.
    """
    if not request.prompt or request.completion is None or request.error is not None or request.train == "no":
        return None
    message = request.completion
    if isinstance(message, str):
        message = {"role": "assistant", "content": message}
    asked: dict[str, Any] = {"model": request.model, "messages": request.prompt}
    if request.tools:
        asked["tools"] = request.tools
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": request.finish}]}
    kept = ("time", "user", "conversation", "release", "adapter", "arm")
    return {
        "request_id": request.id,
        "request": asked,
        "response": answer,
        **{name: value for name in kept if (value := getattr(request, name)) is not None},
    }
