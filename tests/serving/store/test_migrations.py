"""A store of an earlier version opens in every later one: whole or as it was, once, and with a way back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from later_stores import COLUMN, LATER, SPLIT, rows
from postgres import Postgres

from patience import HANG
from places import ROOT
from stored import request, unpacked
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ui import reporting
from tuneloop.records.record import MigrationStep
from tuneloop.serving.store import forget, migrations
from tuneloop.serving.store.database import Database, DatabaseError, insert
from tuneloop.serving.store.erase_files import expire_files
from tuneloop.serving.store.migrations import STEPS
from tuneloop.serving.store.store import connect, opened, read_requests
from tuneloop.serving.store.writer import SPILL, StoreWriter

HELPERS = ROOT / "tests" / "helpers"
# A step that was released stays as it is: SHA-256 of its SQL.
RELEASED = {1: "4014bef44c92fe6d", 2: "cf5029ea563d457e"}


@pytest.fixture
def serve(tmp_path: Path) -> Path:
    return unpacked(tmp_path / "kept") / "serve"


def test_released_steps_are_as_they_were() -> None:
    def digest(step: MigrationStep[Database]) -> str:
        return hashlib.sha256(repr(sorted(step.apply.keywords.items())).encode()).hexdigest()[:16]  # type: ignore[attr-defined]

    assert {step.version: digest(step) for step in STEPS} == RELEASED


def test_the_store_of_the_first_version_opens_through_two_later_ones(serve: Path) -> None:
    said: list[str] = []
    with contextlib.closing(connect(serve, steps=STEPS)) as store:
        before = rows(store)
        assert [len(part) for part in before] == [8, 2, 2, 1, 1]
    with reporting(say=said.append):
        with contextlib.closing(connect(serve, steps=(*STEPS, COLUMN))) as store:
            assert store.version() == 3 and store.execute("SELECT DISTINCT region FROM requests").fetchall() == [
                ("eu",)
            ]
        with contextlib.closing(connect(serve, steps=LATER)) as store:
            assert store.version() == 4 and rows(store) == before
        with contextlib.closing(connect(serve, steps=LATER)) as store:
            assert rows(store) == before
    assert ["version 2 is now 3 (the region" in said[0], "version 3 is now 4 (texts in" in said[1], len(said)] == [
        True,
        True,
        2,
    ]
    backups = sorted(serve.glob("*.backup"))
    assert [path.name for path in backups] == ["store.v1.backup", "store.v2.backup", "store.v3.backup"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in backups) and str(backups[1]) in said[0]
    os.replace(backups[1], serve / "store.db")  # the way back
    with contextlib.closing(connect(serve, steps=STEPS)) as store:
        assert rows(store) == before


def test_a_store_of_the_first_version_knows_which_of_its_tokens_had_a_price(serve: Path) -> None:
    with contextlib.closing(sqlite3.connect(serve / "store.db")) as raw:
        raw.execute("DELETE FROM requests WHERE id LIKE '%8'")
        raw.execute("UPDATE requests SET key = NULL, usd = NULL WHERE id LIKE '%7'")
        raw.execute("DELETE FROM costs")
        raw.execute("INSERT INTO costs VALUES ('2026-11-29', 'tickets', 'shop', 'default', 6, 0, 72, 24, 0, 0.006, 0)")
        raw.execute("INSERT INTO costs VALUES ('2026-11-29', 'tickets', '', 'default', 1, 0, 12, 4, 0, 0, 0)")
        raw.commit()
    with opened(serve) as store:
        query = "SELECT key, requests, prompt_tokens, priced_requests, priced_tokens FROM costs ORDER BY key"
        assert store.execute(query).fetchall() == [("", 1, 12, 0, 0), ("shop", 6, 72, 6, 96)]
        insert(store, [replace(request(30), usd=0.0), request(31)])
        store.execute("DELETE FROM requests WHERE id = ?", [request(1).id])
        assert store.execute(query).fetchall() == [("", 1, 12, 0, 0), ("shop", 7, 84, 6, 96)]


@pytest.mark.usefixtures("each_database")
def test_the_step_to_priced_tokens_in_each_database(tmp_path: Path) -> None:
    with contextlib.closing(connect(tmp_path, create=True, steps=STEPS[:1])) as store:
        for number, usd in ((1, 0.5), (2, None), (3, 0.0)):
            values = [f"r{number}", f"2026-11-0{number}T", usd]
            store.execute(
                "INSERT INTO requests (id, time, model, prompt, prompt_tokens, usd) VALUES (?, ?, 'm', '[]', 10, ?)",
                values,
            )
    with opened(tmp_path) as store:
        query = "SELECT requests, prompt_tokens, priced_requests, priced_tokens FROM costs ORDER BY day"
        assert store.execute(query).fetchall() == [(1, 10, 1, 10), (1, 10, 0, 0), (1, 10, 0, 0)]


def test_an_upgraded_store_has_the_tables_of_a_new_one(serve: Path, tmp_path: Path) -> None:
    def tables(path: Path) -> Counter[str]:
        with contextlib.closing(connect(path, create=True, steps=LATER)) as store:
            return Counter(" ".join(str(sql).split()) for (sql,) in store.execute("SELECT sql FROM sqlite_master"))

    assert tables(serve) == tables(tmp_path / "new")


@pytest.mark.usefixtures("each_database")
def test_rows_and_the_rules_of_the_database_outlive_an_upgrade(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as store:
        insert(store, map(request, range(5)))
        before = rows(store)
    with contextlib.closing(connect(tmp_path, steps=LATER)) as store:
        assert rows(store) == before and store.version() == 4
        store.execute("INSERT INTO requests (id, time, model, usd) VALUES ('new', '2026-11-30T', 'tickets', 1.0)")
        days = store.execute("SELECT day, SUM(usd) FROM costs GROUP BY day ORDER BY day").fetchall()
    assert [(day, round(usd, 6)) for day, usd in days] == [("2026-11-29", 0.005), ("2026-11-30", 1.0)]
    with pytest.raises(UserError, match="A newer tuneloop wrote this store: it is of version 4, and this one reads 2"):
        connect(tmp_path)


@pytest.mark.usefixtures("each_database")
def test_a_step_that_fails_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as store:
        insert(store, map(request, range(5)))
        before = rows(store)
    broken = migrations.store_step(4, "a fault", "CREATE TABLE half (x TEXT); CREATE TABLE requests (x TEXT);")
    with pytest.raises(UserError, match="can't be opened"):
        connect(tmp_path, steps=(*STEPS, COLUMN, broken))
    with opened(tmp_path) as store:
        assert rows(store) == before and not store.has_table("half")


def outcomes(path: str) -> list[str]:
    command = [sys.executable, str(HELPERS / "killed_upgrade.py"), path]
    result = subprocess.run(command, cwd=HELPERS, capture_output=True, text=True, timeout=HANG)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_an_upgrade_that_is_killed_at_any_statement_is_finished_by_the_next_command(serve: Path) -> None:
    *killed, ended = outcomes(str(serve))
    assert ended == "ended 4 True ['store.v1.backup']" and len(killed) > 15
    # As it was until the last statement, and never in between.
    assert {line.rsplit(" [")[0] for line in killed} <= {"killed 1 True", "killed 4 True"}
    assert all(line.endswith("['store.v1.backup']") for line in killed)


@pytest.mark.slow
def test_in_postgres_a_killed_upgrade_is_taken_back(postgres: Postgres) -> None:
    url = postgres.url()
    with opened(url, create=True) as store:
        insert(store, map(request, range(5)))
    *killed, ended = outcomes(url)
    assert ended == "ended 4 True []" and len(killed) > 5
    assert set(killed) <= {"killed 2 True []", "killed 4 True []"}


@pytest.mark.usefixtures("each_database")
def test_many_that_open_a_store_at_once_upgrade_it_once(tmp_path: Path) -> None:
    connect(tmp_path, create=True).close()
    calls: list[int] = []
    steps = (*STEPS, MigrationStep(3, "a count", lambda store: (calls.append(1), COLUMN.apply(store))), SPLIT)
    versions: list[int] = []

    def open_it() -> None:
        with contextlib.closing(connect(tmp_path, steps=steps)) as store:
            versions.append(store.version())

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] and versions == [4] * 8


def test_a_store_that_another_process_serves_from_is_left_alone(serve: Path) -> None:
    code = "import sys\nfrom tuneloop.core.files import lock_folder\nwith lock_folder(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(serve)]
    connect(serve).close()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=f"An older tuneloop \\(pid {server.pid}\\) serves from this store"
        ) as refusal:
            connect(serve, steps=LATER)
        assert "stop that server" in refusal.value.next_step
        connect(serve).close()  # of the same version all is well
        server.communicate("")
    with lock_folder(serve):  # this process is the server
        connect(serve, steps=LATER).close()


@pytest.mark.slow
def test_in_postgres_a_server_anywhere_keeps_others_from_an_upgrade(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url()
    server = StoreWriter(tmp_path, store=url)
    server.start()
    with pytest.raises(UserError, match="serves from this store"):
        connect(url, steps=LATER)
    server.add(request(1))
    server.stop()
    with contextlib.closing(connect(url, steps=LATER)) as store:
        assert store.version() == 4


@pytest.mark.usefixtures("each_database")
def test_who_opened_a_store_before_an_upgrade_writes_nothing_after_it(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as old:
        connect(tmp_path, steps=(*STEPS, COLUMN)).close()
        with pytest.raises(DatabaseError, match="a newer tuneloop has changed this store"):
            insert(old, [request(1)])
        assert not list(read_requests(old))


def test_what_an_older_server_was_given_meanwhile_is_not_lost(serve: Path) -> None:
    server = StoreWriter(serve)
    server.start()
    raw = sqlite3.connect(serve / "store.db")  # as a process that knows no lock
    raw.execute("PRAGMA user_version = 3")
    raw.commit()
    server.add(request(20))
    server.stop()
    assert (serve / SPILL).exists() or list(serve.glob("store.ahead-*"))
    raw.execute("PRAGMA user_version = 2")
    raw.close()
    newer = StoreWriter(serve)
    newer.start()
    newer.stop()
    with opened(serve) as store:
        assert request(20).id in [item.id for item in read_requests(store)]


def test_what_is_erased_or_expires_leaves_the_backup_too(serve: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_backup() -> int:
        with contextlib.closing(sqlite3.connect(serve / "store.v1.backup")) as raw:
            return int(raw.execute("SELECT COUNT(*) FROM requests WHERE \"user\" = 'user-1'").fetchone()[0])

    with contextlib.closing(connect(serve, steps=STEPS)) as store, store.transaction():
        store.back_up(1)
    monkeypatch.setattr(forget, "VERSION", 3)
    monkeypatch.setattr(forget, "bring_up_to_date", lambda store, name, back_up: COLUMN.apply(store))
    assert in_backup() == 3
    forget.forget_requests(serve, "user=user-1", dry_run=False)
    assert in_backup() == 0
    later = (serve / "store.v1.backup").stat().st_mtime + 1
    assert expire_files(serve, lambda key: later - 10, "full") == 0
    assert expire_files(serve, lambda key: later, "full") == 1 and not list(serve.glob("*.backup"))
