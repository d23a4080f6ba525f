"""A log of decisions that was changed is noticed, also where all of it was rewritten."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.improve.experiment.command import check, start
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import CHAINED, Database, insert, link
from tuneloop.serving.store.erase import erase, find
from tuneloop.serving.store.store import opened, refuse_rewritten, store_name, verify_log

EACH = pytest.mark.usefixtures("each_database")


@pytest.fixture(autouse=True)
def notes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("notes")
    monkeypatch.setenv("TUNELOOP_LOG_HEADS", str(folder))
    return folder


def decision(number: int = 0, **more: Any) -> Decision:
    return Decision(**{"id": uuid7(), "time": utc_now(), "kind": "k", "data": {"n": number, "é": 0.1}, **more})


def free(store: Database) -> None:
    """Take away what keeps decisions from being changed, as somebody with the file can."""
    for statement in ("DROP TRIGGER decisions_stay", "DROP TRIGGER decisions_remain"):
        store.execute(statement)


CHANGES = {
    "changed": "UPDATE decisions SET data = '{\"n\":7}' WHERE number = 3",
    "another time": "UPDATE decisions SET time = '2020-01-01T00:00:00.000Z' WHERE number = 5",
    "removed": "DELETE FROM decisions WHERE number = 2",
    "the last ones removed": "DELETE FROM decisions WHERE number > 3",
    "all removed": "DELETE FROM decisions",
    "exchanged": "UPDATE decisions SET number = CASE number WHEN 1 THEN -2 WHEN 2 THEN -1 END WHERE number < 3",
    "added behind the chain": "INSERT INTO decisions (id, time, kind, subject, data, number, chain) "
    "VALUES ('a', 'b', 'k', '', '{}', 7, 'c')",
}


@EACH
def test_what_is_added_is_a_chain_whoever_adds_it(tmp_path: Path) -> None:
    twice = decision(key="once")
    with opened(tmp_path, create=True) as store:
        assert insert(store, [decision(), twice, twice, decision(key="once")]) == 2
    threads = []
    for _ in range(3):

        def work() -> None:
            with opened(tmp_path) as other:
                for i in range(10):
                    insert(other, [decision(i), decision(i)])

        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    with opened(tmp_path) as store:
        assert insert(store, [twice]) == 0
        log = verify_log(store, store_name(tmp_path))
        assert (log.decisions, log.fault) == (62, "") and len(log.head) == 64


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_noticed(tmp_path: Path, how: str) -> None:
    with opened(tmp_path, create=True) as store:
        insert(store, [decision(i) for i in range(6)])
        refuse_rewritten(store, store_name(tmp_path))
        free(store)
        store.execute(CHANGES[how])
        for _ in range(2):  # and it is not forgotten by the next look
            assert verify_log(store, store_name(tmp_path)).fault
        with pytest.raises(UserError, match="can't be trusted"):
            refuse_rewritten(store, store_name(tmp_path))


def test_a_log_that_was_written_anew_with_right_hashes_is_noticed_and_a_restored_backup_can_be_accepted(
    tmp_path: Path, notes: Path
) -> None:
    name = store_name(tmp_path)
    with opened(tmp_path, create=True) as store:
        insert(store, [decision(i) for i in range(4)])
        assert not verify_log(store, name).fault
        insert(store, [decision(9)])  # not seen yet
        free(store)
        store.execute("UPDATE decisions SET data = '{\"won\":true}' WHERE number = 2")
        head = ""
        for row in store.execute(f"SELECT {', '.join(CHAINED)}, number FROM decisions ORDER BY number").fetchall():
            head = link(head, row[:-1])
            store.execute("UPDATE decisions SET chain = ? WHERE number = ?", [head, row[-1]])
        assert "rewritten" in verify_log(store, name).fault
        (note,) = notes.iterdir()
        note.unlink()
        assert not verify_log(store, name).fault


def test_another_store_in_the_same_place_is_no_rewritten_one(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path, create=True) as store:
            insert(store, [decision(i) for i in range(3)])
            assert not verify_log(store, store_name(tmp_path)).fault
        for path in tmp_path.iterdir():
            path.unlink()


@EACH
def test_an_erasure_leaves_the_chain_whole(tmp_path: Path) -> None:
    from traffic import request

    with opened(tmp_path, create=True) as store:
        insert(store, [decision(), request(1, 0.1, user="anna"), decision()])
        assert erase(store, "user=anna", find(store, "user=anna")).requests == 1
        log = verify_log(store, store_name(tmp_path))
        assert (log.decisions, log.fault) == (3, "")


def test_commands_refuse_to_decide_by_a_log_that_was_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, create=True):
        pass
    start(tmp_path, "one", {"model": "m", "candidate": "@challenger", "champion": "@champion"})
    check(tmp_path, "one")
    capsys.readouterr()
    assert main(["ab", "replay", "one", "--store", str(tmp_path)]) == 0
    assert "unbroken  the log of 2 decisions" in capsys.readouterr().out
    with opened(tmp_path) as store:
        free(store)
        store.execute("UPDATE decisions SET time = '2020-01-01T00:00:00.000Z' WHERE number = 1")
    assert main(["ab", "replay", "one", "--store", str(tmp_path), "--json"]) == 1
    assert "decision 1 " in json.loads(capsys.readouterr().out)["log"]["fault"]
    assert main(["ab", "check", "one", "--store", str(tmp_path)]) == 2
    assert "can't be trusted" in capsys.readouterr().err
