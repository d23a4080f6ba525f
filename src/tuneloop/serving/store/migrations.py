"""The tables of a store, version by version. The last step leads to the form that this tuneloop reads and writes.

A new store takes all steps, an older one those that it lacks, so both have the same tables. A released step is a fixed
text: it is repeated here in full, and follows no later change of the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tuneloop.core.errors import UserError
from tuneloop.core.ui import say
from tuneloop.records.record import MigrationStep, latest, missing
from tuneloop.records.request import REFUSED
from tuneloop.serving.store.database import Database

StoreSteps = tuple[MigrationStep[Database], ...]

# Sums of requests, for `tuneloop costs`: those that never ran are `refused`, and the others with an error `failed`.
REFUSALS = f"COALESCE(SUM(CASE WHEN finish = '{REFUSED}' THEN 1 ELSE 0 END), 0)"
_SUMS_1 = {
    "requests": "COUNT(*)",
    "failed": f"(COUNT(error) - {REFUSALS})",
    **{column: f"COALESCE(SUM({column}), 0)" for column in ("prompt_tokens", "completion_tokens", "seconds", "usd")},
    "refused": REFUSALS,
}
_TOKENS = "COALESCE(prompt_tokens, 0) + COALESCE(completion_tokens, 0)"
_PRICED = {  # only those that had a price say what a token or a request costs
    "priced_requests": "COALESCE(SUM(CASE WHEN usd > 0 THEN 1 ELSE 0 END), 0)",
    "priced_tokens": f"COALESCE(SUM(CASE WHEN usd > 0 THEN {_TOKENS} ELSE 0 END), 0)",
}
SUMS = {**_SUMS_1, **_PRICED}
# Sums by day, which the database keeps itself, so that they hold for all who write or erase.
_GROUP = "substr(time, 1, 10), model, COALESCE(key, ''), COALESCE(tier, '')"


def _changes(sums: Mapping[str, str]) -> tuple[str, str, str]:
    """What requests add to the sums, what they take away, and how either changes the row of their group."""
    more, less = (f"{_GROUP}, {', '.join(f'{sign}{column}' for column in sums.values())}" for sign in ("", "-"))
    sets = ", ".join(f"{column} = costs.{column} + excluded.{column}" for column in sums)
    return more, less, f"(day, model, key, tier) DO UPDATE SET {sets}"


def _sqlite_sums(sums: Mapping[str, str]) -> str:
    more, less, add = _changes(sums)
    return f"""
CREATE TRIGGER costs_more AFTER INSERT ON requests BEGIN
    INSERT INTO costs SELECT {more} FROM requests WHERE id = NEW.id GROUP BY 1, 2, 3, 4 ON CONFLICT {add};
END;
CREATE TRIGGER costs_less BEFORE DELETE ON requests BEGIN
    INSERT INTO costs SELECT {less} FROM requests WHERE id = OLD.id GROUP BY 1, 2, 3, 4 ON CONFLICT {add};
    DELETE FROM costs WHERE day = substr(OLD.time, 1, 10) AND requests = 0;
END;
"""


def _postgres_sums(sums: Mapping[str, str], create: str) -> str:
    more, less, add = _changes(sums)
    return f"""
{create} FUNCTION costs_more() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO costs SELECT {more} FROM changed GROUP BY 1, 2, 3, 4 ON CONFLICT {add}; RETURN NULL;
END $$;
{create} FUNCTION costs_less() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO costs SELECT {less} FROM changed GROUP BY 1, 2, 3, 4 ON CONFLICT {add};
    DELETE FROM costs WHERE requests = 0; RETURN NULL;
END $$;
"""


_SUM_COLUMNS = ", ".join(
    f"{column} {'REAL' if column in ('seconds', 'usd') else 'INTEGER'} NOT NULL" for column in _SUMS_1
)

# `place` is the order in which requests and feedback were stored: a request's time is that at which it came. `number`
# and `chain` are of `serving/store/store.py`; `store` is a name that this store alone has.
_TABLES_1 = f"""
CREATE TABLE requests (
    id TEXT PRIMARY KEY, time TEXT NOT NULL, key TEXT, model TEXT NOT NULL, adapter TEXT, release TEXT, arm TEXT,
    propensity REAL, fallback TEXT, shadow TEXT, route TEXT, train TEXT, voice TEXT, "user" TEXT, conversation TEXT,
    prompt TEXT NOT NULL, tools TEXT, completion TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, ttft_ms REAL,
    total_ms REAL, finish TEXT, tier TEXT, usd REAL, seconds REAL, error TEXT, place INTEGER
);
CREATE INDEX requests_by_time ON requests (time);
CREATE INDEX requests_by_user ON requests ("user") WHERE "user" IS NOT NULL;
CREATE INDEX requests_by_conversation ON requests (conversation) WHERE conversation IS NOT NULL;
CREATE INDEX requests_by_arm ON requests (model, id) WHERE arm IS NOT NULL;
CREATE INDEX requests_by_shadow ON requests (model, id) WHERE shadow IS NOT NULL;
CREATE INDEX requests_by_route ON requests (id) WHERE route IS NOT NULL;
CREATE TABLE feedback (
    id TEXT PRIMARY KEY, request TEXT, conversation TEXT, kind TEXT NOT NULL, value TEXT NOT NULL, "user" TEXT,
    time TEXT NOT NULL, key TEXT UNIQUE, source TEXT, weight REAL, voice TEXT, place INTEGER
);
CREATE INDEX feedback_by_time ON feedback (time);
CREATE INDEX feedback_by_request ON feedback (request) WHERE request IS NOT NULL;
CREATE INDEX feedback_by_conversation ON feedback (conversation) WHERE conversation IS NOT NULL;
CREATE TABLE decisions (
    id TEXT PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, data TEXT NOT NULL,
    key TEXT UNIQUE, number INTEGER NOT NULL UNIQUE, chain TEXT NOT NULL
);
CREATE INDEX decisions_by_subject ON decisions (subject, id);
CREATE TABLE places (last INTEGER NOT NULL, store TEXT NOT NULL);
CREATE TABLE costs (
    day TEXT NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL, tier TEXT NOT NULL, {_SUM_COLUMNS},
    PRIMARY KEY (day, model, key, tier)
);
"""
_SQLITE_1 = f"""
CREATE TRIGGER decisions_stay BEFORE UPDATE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
CREATE TRIGGER decisions_remain BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'decisions are only added'); END;
{_sqlite_sums(_SUMS_1).strip()}
INSERT INTO places VALUES (0, lower(hex(randomblob(16))));
"""
_POSTGRES_1 = f"""
CREATE FUNCTION decisions_stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'decisions are only added' USING ERRCODE = 'integrity_constraint_violation';
END $$;
{_postgres_sums(_SUMS_1, "CREATE").strip()}
CREATE TRIGGER decisions_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions EXECUTE FUNCTION decisions_stay();
CREATE TRIGGER costs_more AFTER INSERT ON requests REFERENCING NEW TABLE AS changed EXECUTE FUNCTION costs_more();
CREATE TRIGGER costs_less AFTER DELETE ON requests REFERENCING OLD TABLE AS changed EXECUTE FUNCTION costs_less();
-- What a person wrote must not be in the planner's statistics too, from which no one could erase it.
ALTER TABLE requests ALTER "user" SET STATISTICS 0, ALTER conversation SET STATISTICS 0, ALTER prompt SET STATISTICS 0,
    ALTER tools SET STATISTICS 0, ALTER completion SET STATISTICS 0, ALTER error SET STATISTICS 0;
ALTER TABLE feedback ALTER "user" SET STATISTICS 0, ALTER conversation SET STATISTICS 0, ALTER value SET STATISTICS 0;
INSERT INTO places VALUES (0, md5(random()::text || clock_timestamp()::text));
"""

_PRICED_2 = f"""
ALTER TABLE costs ADD COLUMN priced_requests INTEGER NOT NULL DEFAULT 0;
ALTER TABLE costs ADD COLUMN priced_tokens INTEGER NOT NULL DEFAULT 0;
UPDATE costs SET priced_requests = sums.requests, priced_tokens = sums.tokens FROM (
    SELECT substr(time, 1, 10) AS day, model, COALESCE(key, '') AS key, COALESCE(tier, '') AS tier,
        {_PRICED["priced_requests"]} AS requests, {_PRICED["priced_tokens"]} AS tokens
    FROM requests GROUP BY 1, 2, 3, 4
) AS sums WHERE costs.day = sums.day AND costs.model = sums.model AND costs.key = sums.key AND costs.tier = sums.tier;
"""
_SQLITE_2 = f"DROP TRIGGER costs_more; DROP TRIGGER costs_less; {_sqlite_sums(SUMS)}"
_POSTGRES_2 = _postgres_sums(SUMS, "CREATE OR REPLACE")


def store_step(
    version: int, title: str, script: str, *, sqlite: str = "", postgres: str = ""
) -> MigrationStep[Database]:
    """A step in SQL that SQLite and Postgres both read, then what one of them alone needs."""
    return MigrationStep(version, title, partial(_run, script=script, sqlite=sqlite, postgres=postgres))


def _run(connection: Database, script: str, sqlite: str, postgres: str) -> None:
    connection.run_script(script, sqlite=sqlite, postgres=postgres)


STEPS: StoreSteps = (
    store_step(1, "requests, feedback, decisions and costs", _TABLES_1, sqlite=_SQLITE_1, postgres=_POSTGRES_1),
    store_step(2, "tokens that had a price", _PRICED_2, sqlite=_SQLITE_2, postgres=_POSTGRES_2),
)
VERSION = latest(STEPS)  # of the tables


def bring_up_to_date(
    connection: Database, name: str, steps: StoreSteps = STEPS, *, create: bool = True, back_up: bool = True
) -> None:
    """Take the steps that a store lacks, all or none; of several processes one does so, and the others find it done.

    Args:
        name: of the store, for messages.
        create: make the tables of one that has none.
        back_up: keep a copy of a file in its earlier form next to it.

    Raises:
        UserError: there is no store, it is another program's or of a newer version, or a server of an older version
            is at work.
        DatabaseError: it can't be written; it is as it was then.
    """
    if not missing(steps, before := connection.version(), "this store", name):
        return
    if not before and not create:
        raise UserError("There is no store here", where=name, next_step="`tuneloop serve log.store=URL` makes one")
    copy = None
    with connection.transaction():
        before = connection.version()
        left = missing(steps, before, "this store", name)
        if left and before:
            if server := connection.served_by():
                message = f"An older tuneloop ({server}) serves from this store, which this one would change"
                raise UserError(message, where=name, next_step="stop that server, or start it again with this version")
            copy = connection.back_up(before) if back_up else None
        elif left and connection.has_table():
            step = "name another folder, or move this file away"
            raise UserError("This file is another program's database", where=name, next_step=step)
        for migration in left:
            migration.apply(connection)
            connection.note_version(migration.version)
    if left and before:
        kept = f"; as it was: {copy}" if copy else ""
        say(f"store     version {before} is now {latest(steps)} ({', '.join(entry.title for entry in left)}){kept}")
