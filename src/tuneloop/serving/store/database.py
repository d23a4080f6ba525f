"""The database that a store is in, a SQLite file or Postgres by its URL, and how records become its rows.

The store's SQL is written so that both read it: standard upserts, a quoted "user", no function of one of them alone.
What differs is in this file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.files import folder_holder, sync_folder, user_errors_of_the_disk
from tuneloop.core.text import storable
from tuneloop.records.feedback import Feedback
from tuneloop.records.record import latest
from tuneloop.records.request import StoredRequest
from tuneloop.records.server import Decision

FILE = "store.db"
SCHEMES = ("postgresql://", "postgres://")
PATIENCE = 10.0  # seconds to wait for readers of what was erased
CHUNK = 2000  # rows that Postgres sends at a time
HANGS = 20.0  # seconds beyond the patience after which a statement of a transaction that gets no answer is given up
# Numbers of Postgres that it calls the same, and text that is compared byte by byte as in SQLite, whatever the locale.
_TYPES = {"TEXT": 'TEXT COLLATE "C"', "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}
_LOCK = 7_461_200  # of writers of a store, among a database's advisory locks
_SERVED = "hashtext(current_schema() || ' tuneloop serves')"  # of those that serve from it, who share the lock


class DatabaseError(Exception):
    """The database is away, locked or full, or does not do what it should."""


class DataRefusedError(DatabaseError):
    """The database refuses a record for what is in it, and would do so again."""


Translated = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class QueryRows:
    """What a statement gave; errors of the driver come as `DatabaseError`."""

    cursor: Any
    translated: Translated

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        with self.translated():
            # Not `yield from`, which closes a cursor that is left, also when its database was lost.
            for row in self.cursor:  # noqa: UP028
                yield row

    def fetchone(self) -> Any:
        """The next row; None: there is none."""
        with self.translated():
            return self.cursor.fetchone()

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        with self.translated():
            return list(self.cursor.fetchall())

    @property
    def rowcount(self) -> int:
        """How many rows were changed."""
        return int(self.cursor.rowcount)


def named(columns: Iterable[str]) -> str:
    """Columns in SQL; one of them is a word of Postgres' own."""
    return ", ".join('"user"' if name == "user" else name for name in columns)


@contextlib.contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError, UnicodeError, OverflowError) as error:
        raise DataRefusedError(str(error)) from error
    except sqlite3.Error as error:
        # as of JSON that is nested too deeply, or a list where a text belongs
        refused = any(word in str(error) for word in ("JSON", "binding parameter"))
        raise (DataRefusedError if refused else DatabaseError)(str(error)) from error


def _refuse_changed(database: Database) -> None:
    """Refuse to write where a newer version has changed the tables since they were opened, with a DatabaseError."""
    if database.expected and database.version() != database.expected:
        raise DatabaseError("a newer tuneloop has changed this store: start this one again with that version")


ROWS = 100  # in a statement that inserts; SQLite takes 32,766 values in one


@dataclass
class SqliteDatabase:
    """A store in a file. Write-ahead logging lets many read while one writes.

    Types of columns are TEXT, INTEGER, REAL, or JSON, which is a text.
    """

    like: ClassVar[str] = "LIKE"  # compares without regard to case
    _raw: sqlite3.Connection
    path: Path
    expected: int = 0  # version of the tables that this process writes to; 0: any

    def execute(self, sql: str, values: Sequence[Any] = ()) -> QueryRows:
        """Run a statement with `?` for its values; DatabaseError: see there."""
        with _sqlite_errors():
            return QueryRows(self._raw.execute(sql, values), _sqlite_errors)

    def insert(self, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> int:
        """Add rows, but for those whose id or key is there; returns how many were added."""
        # Many rows in a statement: the lock of the interpreter changes hands with each statement.
        into, row = f"INSERT INTO {table} ({named(columns)}) VALUES ", f"({', '.join('?' * len(columns))})"
        new = 0
        for i in range(0, len(rows), ROWS):
            some = rows[i : i + ROWS]
            sql = f"{into}{', '.join([row] * len(some))} ON CONFLICT DO NOTHING"
            new += self.execute(sql, list(chain.from_iterable(some))).rowcount
        return new

    def read(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a large answer, a part of them in memory at a time."""
        return iter(self.execute(sql, values))

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of a block is stored, or nothing; no one else writes meanwhile."""
        self.execute("BEGIN IMMEDIATE")
        try:
            _refuse_changed(self)
            yield
            self.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(DatabaseError):
                self.execute("ROLLBACK")
            raise

    def version(self) -> int:
        """The version of the tables; 0: there are none yet."""
        return int(self.execute("PRAGMA user_version").fetchone()[0])

    def has_table(self, name: str = "") -> bool:
        """Whether a table is there; without a name, anything of any program's."""
        query = "SELECT 1 FROM sqlite_master WHERE ? IN ('', name)"
        return self.execute(query, [name]).fetchone() is not None

    def run_script(self, script: str, *, sqlite: str = "", postgres: str = "") -> None:
        """Run a script, then what one kind of database needs more; within a transaction."""
        statement = ""
        for part in re.split("(?<=;)", script + sqlite):
            statement += part
            if sqlite3.complete_statement(statement):  # those with semicolons inside stay whole
                self.execute(statement)
                statement = ""

    def note_version(self, version: int) -> None:
        """Note the version of the tables; within the transaction that has changed them."""
        self.execute(f"PRAGMA user_version = {version}")

    def back_up(self, version: int) -> Path | None:
        """Copy the store as it was before the transaction, in whose block this is; returns the file.

        Postgres has no such copy: `pg_dump` makes one.
        """
        copy = self.path.with_name(f"{self.path.stem}.v{version}.backup")
        half = copy.with_name(f"{copy.name}.tmp")
        with user_errors_of_the_disk(copy), _sqlite_errors():
            half.unlink(missing_ok=True)  # of a process that was killed
            os.close(os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with (
                contextlib.closing(sqlite3.connect(self.path)) as before,  # does not see this transaction
                contextlib.closing(sqlite3.connect(half)) as after,
            ):
                before.backup(after)
                after.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, without companions
            os.replace(half, copy)
            sync_folder(copy.parent)
        return copy

    def served_by(self) -> str:
        """Another process that serves from this store, as `pid 123`; empty: there is none, or it is this one."""
        holder = folder_holder(self.path.parent)
        return "" if holder == f"pid {os.getpid()}" else holder

    def announce(self) -> None:
        """Let `served_by` of others see this process while the store is open; of a file the folder's lock does so."""

    def forget(self, *, whole: bool) -> None:
        """Clear the bytes of what was erased from the disk; `whole`: write tables again where that is needed for it.

        Here `secure_delete` overwrites pages, and the log of changes is emptied; DatabaseError: a reader holds it.
        """
        if whole:
            self.execute("VACUUM")  # pages that other programs have freed
        until = time.monotonic() + PATIENCE
        while self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if time.monotonic() > until:
                raise DatabaseError("database is busy: another process reads what was there before")
            time.sleep(0.1)

    def alone(self, work: str) -> bool:
        """Whether no one else who reaches this database does this work, for as long as this connection is open.

        A file's users share a disk, where a lock of the server's folder says it: here the answer is always yes.
        """
        return True

    def close(self) -> None:
        """Close it."""
        self._raw.close()


def open_sqlite(path: Path, patience: float) -> SqliteDatabase:
    """Open a file, made where there is none; `patience`: seconds to wait for writers. DatabaseError: it is locked."""
    # Its further files get the same rights. One that is there must not be opened here: to close it would give up the
    # locks that other connections of this process hold.
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    with _sqlite_errors():
        raw = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    opened = SqliteDatabase(raw, path)
    try:
        for setting in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            opened.execute(f"PRAGMA {setting}").fetchall()
    except DatabaseError:
        opened.close()
        raise
    return opened


def is_database_url(location: object) -> bool:
    """Whether a store's place is the URL of a Postgres database."""
    return str(location).startswith(SCHEMES)


def without_password(url: str) -> str:
    """A URL as it may be shown and stored; the UserError on what is none does not repeat it."""
    return _parts(url)[0]


def keep_password(url: str) -> str:
    """A URL without its password, which goes into PGPASSWORD of this process and its children."""
    plain_url, password = _parts(url)
    if password:
        os.environ["PGPASSWORD"] = password
    return plain_url


def _parts(url: str) -> tuple[str, str]:
    """A URL without its password, and the password."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, slash, name = rest.partition("/")
    user, at, host = authority.rpartition("@")
    user, _, password = user.partition(":")
    if "@" in user + password or ":" in password or "@" in name or ("@" in query and not at):
        raise _not_a_url()
    settings = [part for part in query.split("&") if part]
    password = next((setting.partition("=")[2] for setting in settings if setting.startswith("password=")), password)
    others = "&".join(setting for setting in settings if not setting.startswith("password="))
    return f"{scheme}://{user}{at}{host}{slash}{name}{'?' * bool(others)}{others}", unquote(password)


def _not_a_url() -> UserError:
    step = "write it as postgresql://USER@HOST:5432/DATABASE, and the password into PGPASSWORD"
    return UserError("Not a URL of a Postgres database", next_step=step)


@cache
def _as_postgres(sql: str) -> str:
    """Placeholders as the driver has them; ValueError: `user` has no quotes and would be the database's user."""
    if re.search(r'(?<!")\buser\b', re.sub("'[^']*'", "", sql)):
        raise ValueError(f'write "user" in quotes: {sql}')
    return sql.replace("%", "%%").replace("?", "%s")


@dataclass
class PostgresDatabase:
    """A store in a Postgres database. A connection that was lost is made again by the next statement."""

    like: ClassVar[str] = "ILIKE"
    url: str = field(repr=False)  # perhaps with a password, so it is never shown
    patience: float  # seconds to wait for a lock, and for a connection
    _raw: Any = None
    expected: int = 0
    _announced: bool = False
    _inside: bool = False
    _over: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> QueryRows:
        with self._lock, self._bounded(), _postgres_errors():
            return QueryRows(self._live().execute(_as_postgres(sql), _texts(values)), _postgres_errors)

    def insert(self, table: str, columns: Mapping[str, str], rows: Sequence[Sequence[Any]]) -> int:
        """In one statement, whose triggers then run once."""
        types = list(columns.values())
        lists = [
            [None if value is None else _PYTHON[type_](value) for value in column]
            for type_, column in zip(types, zip(*rows, strict=True), strict=True)
        ]
        arrays = ", ".join(f"CAST(? AS {_COLUMNS[type_]}[])" for type_ in types)
        sql = f"INSERT INTO {table} ({named(columns)}) SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"
        return self.execute(sql, lists).rowcount if rows else 0

    def read(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The answer waits in the server, since this connection may write meanwhile."""
        with _postgres_errors(), self._live().cursor(f"read_{os.urandom(8).hex()}", withhold=True) as cursor:
            cursor.itersize = CHUNK
            cursor.execute(_as_postgres(sql), _texts(values))
            yield from cursor

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                with self._bounded(True):
                    self.script(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK})")
                self._inside = True
                _refuse_changed(self)
                yield
                self.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(DatabaseError):
                    self.execute("ROLLBACK")
                raise
            finally:
                self._inside = False

    @contextlib.contextmanager
    def _bounded(self, always: bool = False) -> Iterator[None]:
        """Cut the connection where a statement of a transaction gets no answer: a database may be there and silent."""
        if not (always or self._inside):
            yield
            return
        connection = self._live()

        def cut() -> None:
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.patience + HANGS, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def script(self, sql: str) -> None:
        """Run several statements without values, however long they take."""
        with self._lock, _postgres_errors():
            self._live().execute(sql)

    def version(self) -> int:
        # Not by `to_regclass`: within a transaction it may not know of a table that another one has made meanwhile.
        if not self.has_table("store_version"):
            return 0
        return int(self.execute("SELECT MAX(number) FROM store_version").fetchone()[0])

    def has_table(self, name: str = "") -> bool:
        query = "SELECT 1 FROM pg_class WHERE relname = ? AND pg_table_is_visible(oid)"
        # Several programs may share a database: where a table of ours has the name of another's, the script fails.
        return bool(name) and self.execute(query, [name]).fetchone() is not None

    def run_script(self, script: str, *, sqlite: str = "", postgres: str = "") -> None:
        self.script(re.sub(r"\b(TEXT|INTEGER|REAL)\b", lambda match: _TYPES[match[1]], script) + postgres)

    def note_version(self, version: int) -> None:
        self.script("CREATE TABLE IF NOT EXISTS store_version (number BIGINT NOT NULL)")
        self.script(f"DELETE FROM store_version; INSERT INTO store_version VALUES ({version})")

    def back_up(self, version: int) -> Path | None:
        return None

    def served_by(self) -> str:
        free = self.execute(f"SELECT pg_try_advisory_xact_lock({_SERVED})").fetchone()[0]
        return "" if free else "on this or another machine"

    def announce(self) -> None:
        self._announced = True
        self.script(f"SELECT pg_advisory_lock_shared({_SERVED})")

    def forget(self, *, whole: bool) -> None:
        """Rows that were erased stay in a table's file until it is vacuumed, and some of their bytes beyond."""
        self.script(f"VACUUM {'(FULL) ' if whole else ''}requests, feedback")

    def alone(self, work: str) -> bool:
        """Postgres gives the lock back when the connection ends, however it does."""
        query = "SELECT pg_try_advisory_lock(hashtext(current_schema() || ?))"
        return bool(self.execute(query, [f" tuneloop {work}"]).fetchone()[0])

    def close(self) -> None:
        self._over = True
        if self._raw is not None:
            self._raw.close()

    def _live(self) -> Any:
        """The connection; another one where it was lost."""
        if self._raw is not None and not self._raw.closed:
            return self._raw
        if self._over or self._inside:
            raise DatabaseError("the connection to the database was lost")
        self._raw = _connected(self.url, self.patience)
        if self._announced:
            self._raw.execute(f"SELECT pg_advisory_lock_shared({_SERVED})")
        return self._raw


Database = SqliteDatabase | PostgresDatabase

# What Postgres and Python call the types of columns.
_COLUMNS = {"TEXT": "TEXT", "JSON": "TEXT", "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION"}
_PYTHON: dict[str, Callable[[Any], Any]] = {"TEXT": storable, "JSON": storable, "INTEGER": int, "REAL": float}


def _texts(values: Sequence[Any]) -> list[Any]:
    return [storable(value) if isinstance(value, str) else value for value in values]


def open_postgres(url: str, patience: float) -> PostgresDatabase:
    """Connect to a database by any URL that libpq reads; `patience`: seconds to wait for it and for other writers.

    Raises:
        DatabaseError, UserError: it can't be reached; the driver is missing, or the URL is none.
    """
    without_password(url)
    try:
        import psycopg  # noqa: F401
    except ImportError:
        message = "A store in Postgres needs psycopg, which is not installed"
        raise UserError(message, next_step="pip install 'tuneloop[postgres]'") from None
    return PostgresDatabase(url, patience, _connected(url, patience))


def _connected(url: str, patience: float) -> Any:
    import psycopg
    from psycopg.adapt import Loader

    class Numbers(Loader):
        """Reads sums, which Postgres gives with as many digits as they have."""

        def load(self, data: Any) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdigit() else float(text)

    settings: dict[str, Any] = {
        "connect_timeout": max(2, round(patience)), "application_name": "tuneloop", "keepalives_idle": 10,
        "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 15_000,
    }  # fmt: skip
    try:
        raw = psycopg.connect(url, autocommit=True, **settings)
        raw.adapters.register_loader("numeric", Numbers)
        raw.execute(f"SET lock_timeout = {max(1, round(1000 * patience))}")
    except psycopg.ProgrammingError:  # its text may hold the password
        raise _not_a_url() from None
    except psycopg.Error as error:
        raise DatabaseError(_line(error)) from None
    return raw


@contextlib.contextmanager
def _postgres_errors() -> Iterator[None]:
    import psycopg

    try:
        yield
    except (psycopg.IntegrityError, psycopg.DataError, UnicodeError) as error:
        raise DataRefusedError(_line(error)) from error
    except psycopg.Error as error:
        raise DatabaseError(_line(error)) from error


def _line(error: Exception) -> str:
    """The server's message, of all that the driver has of the ways in which it tried to reach it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = next((line for line in lines if "FATAL:" in line), lines[0] if lines else type(error).__name__)
    plain = re.sub(r"\s+", " ", message.rpartition("FATAL:")[2].strip())
    return re.sub(r"^(connection|consuming input|sending \w[\w ]*) failed: ", "", plain)


# --- records as rows ----------------------------------------------------------------------------

Stored = StoredRequest | Feedback | Decision
TABLES: dict[type[Stored], str] = {StoredRequest: "requests", Feedback: "feedback", Decision: "decisions"}
VERSIONS = {kind: latest(kind.migrations) for kind in TABLES}  # of records in files
_JSON = {"prompt", "tools", "completion", "value", "data", "route"}  # columns that hold JSON


def _type(name: str, annotation: str) -> str:
    if name in _JSON:
        return "JSON"
    return "REAL" if "float" in annotation else "INTEGER" if "int" in annotation else "TEXT"


COLUMNS: dict[type[Stored], dict[str, str]] = {
    kind: {name: _type(name, text) for name, text in kind.__annotations__.items() if "ClassVar" not in text}
    for kind in TABLES
}
_VALUES = {kind: attrgetter(*columns) for kind, columns in COLUMNS.items()}


def values_of(record: Stored) -> dict[str, Any]:
    """A record's values by their columns."""
    kind = type(record)
    return dict(zip(COLUMNS[kind], _VALUES[kind](record), strict=True))


def insert(connection: Database, records: Iterable[Stored]) -> int:
    """Add records in one transaction; those whose id or key is there already change nothing.

    Returns:
        How many were new.

    Raises:
        DatabaseError: the disk is full, another process holds the store, or it is away; nothing was added then.
        DataRefusedError: a record can't be stored for what is in it; none was.
    """
    with connection.transaction():
        position = before = last_place(connection)
        new = 0
        for kind, group in groupby(records, type):
            types = COLUMNS[kind].values()
            rows = [list(map(_stored, _VALUES[kind](record), types)) for record in group]
            if kind is Decision:
                rows, placed = _chained(connection, rows), {"number": "INTEGER", "chain": "TEXT"}
            else:
                rows, placed = [[*row, position + i] for i, row in enumerate(rows, 1)], {"place": "INTEGER"}
                position += len(rows)
            new += connection.insert(TABLES[kind], COLUMNS[kind] | placed, rows) if rows else 0
        if position != before:
            connection.execute("UPDATE places SET last = ?", [position])
    return new


def _chained(connection: Database, rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Rows of decisions that are new, with their numbers and hashes. No one else writes meanwhile."""
    number, chain = last_link(connection)
    fresh: list[list[Any]] = []
    names: set[tuple[str, Any]] = set()
    for row in rows:
        id_, key = row[0], row[-1]
        there = connection.execute("SELECT 1 FROM decisions WHERE id = ? OR key = ?", [id_, key]).fetchone()
        if there is None and ("id", id_) not in names and (key is None or ("key", key) not in names):
            names |= {("id", id_), ("key", key)}
            number, chain = number + 1, link(chain, row)
            fresh.append([*row, number, chain])
    return fresh


def last_place(connection: Database) -> int:
    """The place of the last request or feedback that was stored; all later ones have higher places."""
    return int(connection.execute("SELECT last FROM places").fetchone()[0])


def _stored(value: Any, type_: str) -> Any:
    """A value as a column of a type holds it: no lone surrogates, nor numbers that are none."""
    if value is None:
        return None
    if type_ == "JSON":
        try:
            return orjson.dumps(value).decode()
        except TypeError:  # half a surrogate pair in a text, or a number of more than 64 bits
            return storable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if isinstance(value, str):
        return storable(value)
    return None if type_ == "REAL" and value - value != 0.0 else value


CHAINED = ("id", "time", "kind", "subject", "data", "key")  # of a decision, of which its hash is made


def link(previous: str, values: Sequence[Any]) -> str:
    """The hash of a decision, by that of the one before it and the values of `CHAINED` as the database holds them."""
    return hashlib.sha256(json.dumps([previous, *values], ensure_ascii=True).encode()).hexdigest()


def last_link(store: Database) -> tuple[int, str]:
    """Number and hash of the last decision; 0 and an empty text where there is none."""
    row = store.execute("SELECT number, chain FROM decisions ORDER BY number DESC LIMIT 1").fetchone()
    return (int(row[0]), str(row[1])) if row else (0, "")
