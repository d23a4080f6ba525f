"""A store in Postgres: what is refused in a sentence, what a lost connection and a killed database cost, and no password anywhere."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import live
from postgres import PASSWORD, Postgres
from traffic import request, thumb

from patience import HANG, slowness
from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import write_json
from tuneloop.serving.store import database as databases
from tuneloop.serving.store.database import DatabaseError, insert, keep_password, without_password
from tuneloop.serving.store.migrations import VERSION
from tuneloop.serving.store.store import connect, opened, read_requests, store_folder, store_name
from tuneloop.serving.store.writer import SPILL, StoreWriter

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi you"}]}


def until(true: Callable[[], Any]) -> None:
    """Wait for something."""
    end = time.monotonic() + 30 * slowness()
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def fill(path: str) -> None:
    """Store requests of two users, one of whom is erased later."""
    anna = request(0, 0.0, user="zqxvanna", conversation="t", completion="the unmistakable answer")
    with opened(path, create=True) as store:
        insert(store, [anna, request(1, 0.1, user="ben", completion="Grüße"), request(2, 0.2), thumb(1, 0.3, True)])


def ids_in(path: str) -> set[str]:
    with opened(path) as store:
        return {item.id for item in read_requests(store)}


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgresql://anna@db/x", "postgresql://anna@db/x", ""),
        ("postgresql://anna:s%40cret@db:5433/x?sslmode=require", "postgresql://anna@db:5433/x?sslmode=require", "s@cret"),
        ("postgres:///x?host=/var/run/pg&password=a%26b&user=anna", "postgres:///x?host=/var/run/pg&user=anna", "a&b"),
        ("postgresql://[::1]:5432/x", "postgresql://[::1]:5432/x", ""),
    ],
)  # fmt: skip
def test_a_password_is_taken_out_of_a_url(url: str, shown: str, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "")
    assert without_password(url) == keep_password(url) == store_name(url) == shown
    assert os.environ["PGPASSWORD"] == password


@pytest.mark.parametrize("url", ["postgresql://u:p@ss@h/x", "postgresql://u:p/ss@h/x", "postgresql://u:p?ss@h/x", "postgresql://u:p:ss@h/x"])  # fmt: skip
def test_a_password_that_would_be_read_as_something_else_is_not_repeated(url: str) -> None:
    with pytest.raises(UserError) as told:
        store_name(url)
    assert "ss" not in str(told.value).replace("PGPASSWORD", "").replace("postgresql://USER@HOST:5432", "").replace(
        "password", ""
    )


def test_without_the_driver_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(UserError, match="psycopg") as told:
        connect("postgresql://anna@db/x")
    assert "tuneloop[postgres]" in told.value.next_step


def test_what_stands_beside_a_store_is_in_its_servers_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"version": 1, "config": {"log": {"store": "postgresql://anna@db/x"}}})
    assert store_name(tmp_path) == "postgresql://anna@db/x" and store_folder(tmp_path) == tmp_path
    assert store_folder("postgresql://anna@db/x") == Path("serve")
    assert store_name(tmp_path / "store.db") == str(tmp_path / "store.db")


def test_a_url_that_was_made_a_path_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="as the path of a file"):
        connect(Path("postgresql://anna@db/x"), create=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_can_not_be_opened_is_said_in_one_sentence(postgres: Postgres, tmp_path: Path) -> None:
    there = postgres.url()
    plain = f"postgresql://tuneloop:{PASSWORD}@127.0.0.1:{postgres.port}"
    connect(there, create=True).close()
    later, foreign = postgres.url(), postgres.url()
    connect(later, create=True).close()
    postgres.execute("INSERT INTO store_version VALUES (99)", url=later)
    postgres.execute("CREATE TABLE requests (mine TEXT)", url=foreign)
    for url, message, step in (
        (there.replace(PASSWORD, "wrong"), "password authentication failed", "PGPASSWORD"),
        (f"{plain}/nowhere", 'database "nowhere" does not exist', "createdb"),
        (f"postgresql://nobody:{PASSWORD}@127.0.0.1:{postgres.port}/postgres", "authentication failed", "PGPASSWORD"),
        (f"postgresql://tuneloop:{PASSWORD}@127.0.0.1:1/postgres", "refused", "start the database"),
        (f"postgresql://tuneloop:{PASSWORD}%zz@127.0.0.1:1/postgres", "Not a URL", "write it as"),
        (postgres.url(), "no store here", "log.store"),
        (later, "of version 99, and this one reads 2", "--upgrade"),
    ):
        with pytest.raises(UserError) as told:
            connect(url)
        assert message in told.value.what and step in told.value.next_step, told.value
        assert PASSWORD not in str(told.value) and "\n" not in told.value.what
    with pytest.raises(UserError, match="already exists") as told:
        connect(foreign, create=True)
    assert "another database" in told.value.next_step
    assert postgres.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()", url=foreign) == [(1,)]


@pytest.mark.slow
def test_two_writers_at_once_leave_no_place_twice(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.url()
    writers = [StoreWriter(tmp_path / name, store=url) for name in "ab"]
    for writer in writers:
        writer.folder.mkdir()
    begun = [threading.Thread(target=entry.start) for entry in writers]  # both make the tables
    for thread in begun:
        thread.start()
    for thread in begun:
        thread.join()
    numbers = itertools.count()
    for _ in range(300):
        for writer in writers:
            writer.add(request(next(numbers), 0.0))
    for writer in writers:
        writer.stop()
    places = [row[0] for row in postgres.execute("SELECT place FROM requests ORDER BY place", url=url)]
    assert places == list(range(1, 601)) and [entry.counts.losses for entry in writers] == [0, 0]
    assert postgres.execute("SELECT number FROM store_version", url=url) == [(VERSION,)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_answers_go_on_while_the_database_is_away_and_are_stored_when_it_is_back(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, postgres_of_its_own: Postgres
) -> None:
    monkeypatch.setattr(databases, "HANGS", 1.0)
    server, url = postgres_of_its_own, postgres_of_its_own.url()
    with live(tmp_path, log={"store": url}) as (address, gateway):

        def ask(count: int) -> float:
            began = time.monotonic()
            for _ in range(count):
                assert httpx.post(f"{address}/v1/chat/completions", json=CHAT, timeout=HANG).status_code == 200
            return time.monotonic() - began

        quick = ask(20)
        threading.Timer(0.05, server.kill, [signal.SIGKILL if how == "killed" else signal.SIGSTOP]).start()
        assert ask(20) < quick + 1.0  # it goes in mid-write
        until(lambda: gateway.store.counts.spilled)
        assert "database" in gateway.store.counts.fault or "connection" in gateway.store.counts.fault
        assert ask(5) < quick + 1.0
        if how == "killed":
            server.start()
        else:
            server.kill(signal.SIGCONT)
        until(lambda: gateway.store.counts.stored >= 45 and not gateway.store.counts.fault)
        ask(1)
    assert len(ids_in(url)) == 46 and not (tmp_path / SPILL).exists()
    assert gateway.store.counts.losses == 0


@pytest.mark.slow
def test_a_transaction_whose_connection_is_lost_is_not_half_done(postgres: Postgres) -> None:
    url = postgres.url()
    with opened(url, create=True) as store:
        insert(store, [request(0, 0.0)])
        with pytest.raises(DatabaseError), store.transaction():
            store.execute("UPDATE places SET last = 77")
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tuneloop'"
            )
            time.sleep(0.1)
            store.execute("UPDATE places SET last = 78")
        assert insert(store, [request(1, 0.0)]) == 1, "the next one has a connection again"
        assert store.execute("SELECT last FROM places").fetchone() == (2,)
        assert list(store.read("SELECT id FROM requests ORDER BY id")) == [("r000000",), ("r000001",)]


@pytest.mark.slow
def test_erased_texts_stand_in_no_table_of_the_database(postgres_of_its_own: Postgres, tmp_path: Path) -> None:
    server, url = postgres_of_its_own, postgres_of_its_own.url()
    fill(url)

    def holds(text: bytes) -> bool:
        server.execute("CHECKPOINT")
        files = [file for file in (server.folder / "data" / "base").rglob("*") if file.is_file()]
        return any(text in file.read_bytes() for file in files)

    server.execute("ANALYZE", url=url)
    assert holds(b"unmistakable") and holds(b"zqxvanna")
    assert main(["data", "forget", url, "--match", "user=zqxvanna", "--yes", "--json", "--root", str(tmp_path)]) == 0
    assert not holds(b"unmistakable") and not holds(b"zqxvanna") and holds("Grüße".encode())


@pytest.mark.slow
def test_commands_take_a_url_or_the_folder_of_its_server_and_show_no_password(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGPASSWORD", "")
    url = postgres.url()
    fill(url)
    Path("serve").mkdir()
    write_json(Path("serve/state.json"), {"version": 1, "config": {"log": {"store": keep_password(url)}}})
    told = {}
    for path in (url, "serve"):
        asked = ["--model", "m", "--candidate", "m@2", "--champion", "m@1"]
        for command in (
            ["collect", "add", "r000002", "--kind", "label", "--value", path, "--store", path],
            ["collect", "show", "--store", path],
            ["review", "draw", path, "-o", f"queue-{len(told)}"],
            ["ab", "start", f"e{len(told)}", "--store", path, *asked],
            ["ab", "check", "--store", path],
            ["ab", "stop", f"e{len(told)}", "--store", path],
            ["costs", "-f", path],
            ["collect", "requests", "-f", path, "-o", "requests.jsonl"],
            ["collect", path, "-o", f"collected-{len(told)}"],
            ["improve", "report", path],
            ["data", "forget", path, "--match", "user=carl"],
        ):
            status = main([*command, "--json", "-q"])
            out, err = capsys.readouterr()
            assert status in (0, 1, 3) and PASSWORD not in out + err, (command, status, out, err)
            told[(path, command[0], command[1])] = json.loads(out)
    asked = ["ab", "start", "far", "--store", url, "--model", "m", "--candidate", "m@2", "--champion", "m@1"]
    assert main([*asked, "-q"]) == 0
    Path("elsewhere").mkdir()
    with monkeypatch.context() as there:  # as on another machine
        there.chdir("elsewhere")
        assert main(["ab", "check", "far", "--store", url, "-q"]) == 3
        registration = Path("serve/experiments/far.json")
        registration.write_text(registration.read_text().replace("m@2", "m@3"))
        assert main(["ab", "check", "far", "--store", url, "-q"]) == 2
    assert told["serve", "costs", "-f"]["total"]["requests"] == 3
    assert told["serve", "collect", "show"]["requests"] == 3
    held = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(held) >= 8 and not any(PASSWORD.encode() in file.read_bytes() for file in held)


@pytest.mark.slow
def test_a_column_that_postgres_reads_as_something_else_is_refused_without_its_quotes(postgres: Postgres) -> None:
    with opened(postgres.url(), create=True) as store:
        with pytest.raises(ValueError, match="quotes"):
            list(read_requests(store, where="user = ?", values=["anna"]))
        assert not list(read_requests(store, where="\"user\" = ? AND model != 'user'", values=["anna"]))
