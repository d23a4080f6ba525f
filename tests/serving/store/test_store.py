"""The store: what is written is read again, once, by any version and next to other processes."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from places import ROOT
from tuneloop.core import ids
from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.ui import reporting
from tuneloop.improve.collect.command import exported
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.records.server import Decision
from tuneloop.serving.store.database import DatabaseError, DataRefusedError, insert
from tuneloop.serving.store.store import connect, decision_log, opened, read_decisions, read_feedback, read_requests
from tuneloop.serving.store.writer import SPILL, StoreWriter


def request(**fields: Any) -> StoredRequest:
    usual: dict[str, Any] = {
        "id": uuid7(),
        "time": utc_now(),
        "model": "tickets",
        "prompt": [{"role": "user", "content": "Where is my parcel?"}],
        "completion": "In Berlin.",
        "finish": "stop",
    }
    return StoredRequest(**{**usual, **fields})


def writer(tmp_path: Path, **options: Any) -> StoreWriter:
    made = StoreWriter(tmp_path, **options)
    made.start()
    return made


EACH = pytest.mark.usefixtures("each_database")
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "words": {"prompt": [{"role": "user", "content": 'é "quoted" \\ 漢字 😀\n\t'}], "completion": "null"},
    "empty": {"completion": None, "prompt": [], "error": "it failed"},
    "call": {"completion": {"role": "assistant", "tool_calls": [{"id": "c"}]}, "tools": [{"type": "function"}]},
    "numbers": {"usd": 1.7e-05, "seconds": 0.123457, "ttft_ms": 12.345, "total_ms": 1e9, "prompt_tokens": 2**40},
    "all": {
        "adapter": "a" * 64, "release": "tickets/3", "arm": "b", "propensity": 0.1, "route": {"model": "m", "scores": {"m": 0.5}},
        "user": "u", "conversation": "c", "train": "no", "tier": "flex", "fallback": "why", "shadow": "r",
    },
    "nul": {"completion": "a\0b", "user": "x\0y"},
    "surrogate": {"completion": "half \ud83d"},
    "deep": {"tools": [json.loads('{"a":' * 300 + "1" + "}" * 300)]},
}  # fmt: skip


@EACH
@pytest.mark.parametrize("name", list(ODD))
def test_what_a_server_writes_is_what_any_other_writes(name: str, tmp_path: Path) -> None:
    asked = [request(**ODD[name]) for _ in range(3)]
    store = writer(tmp_path)
    for item in asked:
        store.begin(item)
        store.add(item)
    store.stop()
    with opened(tmp_path / "other", create=True) as other:
        insert(other, asked)
        wanted = other.execute("SELECT * FROM requests ORDER BY id").fetchall()
    with opened(tmp_path) as found:
        assert found.execute("SELECT * FROM requests ORDER BY id").fetchall() == wanted
        assert found.execute("SELECT last FROM places").fetchone() == (3,)
    assert len(wanted) == 3 and store.counts.stored == 3 and not store.counts.fault


@EACH
def test_a_record_that_can_not_be_written_costs_itself_alone(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    told: list[str] = []
    with reporting(say=told.append):
        store = StoreWriter(tmp_path)
        store.start()
        bad = Feedback(id=uuid7(), request="r", kind="k", value="x", time=utc_now()).model_copy(update={"value": value})
        futures = [store.add_durably(item) for item in (request(), bad, request())]
        assert isinstance(futures[1].exception(20), OSError)
        for future in (futures[0], futures[2], store.add_durably(request())):
            future.result(20)
        store.stop()
        with opened(tmp_path) as found:
            assert len(list(read_requests(found))) == 3 and not list(read_feedback(found))
        assert store.counts.dead == 1 and len(told) == 1 and "store.dead.jsonl" in told[0]


def test_ids_grow_and_carry_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [uuid7() for _ in range(10_000)]
    assert found == sorted(set(found))
    assert all(match[14] == "7" and match[19] in "89ab" for match in found)
    monkeypatch.setattr("tuneloop.core.ids.time.time_ns", lambda: 10**18)  # the clock jumps back
    assert uuid7() > found[-1]


@EACH
def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    asked = request(
        user="u1", arm="b", propensity=0.1, tools=[{"type": "function"}], usd=0.25, completion={"role": "assistant"}
    )
    said = Feedback(id=uuid7(), request=asked.id, kind="thumbs", value=True, time=utc_now())
    decided = Decision(id=uuid7(), time=utc_now(), kind="experiment.start", subject="e1", data={"share": 0.1})
    with opened(tmp_path, create=True) as store:
        assert insert(store, [asked, said, decided]) == 3
        assert insert(store, [asked, said, decided]) == 0, "the same ids again change nothing"
        assert list(read_requests(store)) == [asked]
        assert list(read_feedback(store)) == [said]
        assert list(read_decisions(store, where="subject = ?", values=["e1"])) == [decided]
        assert list(read_requests(store, since="9999")) == []


@EACH
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_reader_that_stops_early_may_outlive_its_store(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as store:
        insert(store, [request() for _ in range(3)])
        reading = read_requests(store)
        rows = iter(store.execute("SELECT id FROM requests"))
        assert next(reading) and next(rows)
    del reading, rows
    gc.collect()


@EACH
def test_feedback_with_the_same_key_is_kept_once(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as store:
        for value in (True, False):
            insert(store, [Feedback(id=uuid7(), request="r", kind="thumbs", value=value, time=utc_now(), key="k")])
        assert [item.value for item in read_feedback(store)] == [True]


@EACH
def test_decisions_can_only_be_added(tmp_path: Path) -> None:
    with opened(tmp_path, create=True) as store:
        insert(store, [Decision(id=uuid7(), time=utc_now(), kind="x")])
        for statement in ("DELETE FROM decisions", "UPDATE decisions SET kind = 'y'"):
            with pytest.raises(DataRefusedError, match="only added"):
                store.execute(statement)


def test_a_store_of_a_newer_version_and_another_programs_file_are_refused(tmp_path: Path) -> None:
    connect(tmp_path, create=True).close()
    for version in (3, 99):
        raw = sqlite3.connect(tmp_path / "store.db")
        raw.execute(f"PRAGMA user_version = {version}")
        raw.close()
        for create in (False, True):
            with pytest.raises(
                UserError, match=f"A newer tuneloop wrote this store: it is of version {version}, and this one reads 2"
            ):
                connect(tmp_path, create=create)
    other = tmp_path / "other.db"
    other.write_text("this is no database, " * 100)
    with pytest.raises(UserError, match="can't be opened"):
        connect(other)
    with pytest.raises(UserError, match="no store"):
        connect(tmp_path / "nowhere")


@EACH
def test_many_threads_write_and_all_of_it_is_there(tmp_path: Path) -> None:
    store = writer(tmp_path)

    def work() -> None:
        for _ in range(200):
            store.add(request())

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.stop()
    with opened(tmp_path) as connection:
        assert len(list(read_requests(connection))) == 1000 == store.counts.stored


@EACH
def test_a_locked_store_spills_and_comes_back(tmp_path: Path) -> None:
    said: list[str] = []
    with reporting(say=said.append):
        store = StoreWriter(tmp_path, patience=0.05)
        store.start()
        asked = [request() for _ in range(3)]
        with opened(tmp_path) as holder, holder.transaction():
            for item in asked:
                store.add_durably(item).result(HANG)
            assert (tmp_path / SPILL).exists() and store.counts.spilled == 3
        later = request()
        store.add(later)
        store.stop()
        assert (tmp_path / SPILL).exists() or store.counts.stored == 4
        with reporting(say=said.append):
            again = StoreWriter(tmp_path)  # a new server brings in what the last one left
            again.start()
            again.add_durably(request(id="last")).result(HANG)
            again.stop()
            with opened(tmp_path) as connection:
                assert {entry.id for entry in read_requests(connection)} == {
                    *(entry.id for entry in asked),
                    later.id,
                    "last",
                }
            assert not (tmp_path / SPILL).exists()
            assert any("can't be written" in line for line in said) and any("again" in line for line in said)


def test_what_is_neither_written_nor_spilled_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = writer(tmp_path, most_waiting=5)

    def full(*_: Any) -> int:
        raise DatabaseError("database or disk is full")

    monkeypatch.setattr("tuneloop.serving.store.writer.insert", full)
    (tmp_path / SPILL).mkdir()
    future = store.add_durably(request())
    with pytest.raises(OSError, match="takes nothing"):
        future.result(HANG)
    assert store.counts.losses == 1
    store.stop()


@pytest.mark.parametrize("room", [True, False])
def test_what_can_be_written_nowhere_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """For room on the disk; or, where the server is stopped before, for the next one."""
    said: list[str] = []
    with reporting(say=said.append):
        store = StoreWriter(tmp_path)
        store.start()

        def full(*_: Any) -> int:
            raise DatabaseError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("tuneloop.serving.store.writer.insert", full)
            spilled = tmp_path / SPILL
            spilled.symlink_to(tmp_path / "none" / "none")
            asked = [request() for _ in range(50)]
            for item in asked:
                store.add(item)
            until = time.monotonic() + 10
            while not store.counts.fault and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.5)
            assert store.counts.fault and store.counts.losses == 0 and store.waiting == 50
            if not room:
                store.stop()
            spilled.unlink(missing_ok=True)
        if room:
            while store.counts.stored < 50 and time.monotonic() < until:
                time.sleep(0.01)
            store.stop()
            assert "can't be written" in said[0] and "can be written again" in said[-1] and len(said) == 3, said
        else:
            again = writer(tmp_path)
            again.stop()
        with opened(tmp_path) as connection:
            assert {entry.id for entry in read_requests(connection)} == {entry.id for entry in asked}


SECRET = "anna.schmidt@example.org"


@pytest.mark.parametrize("content", ["redacted", "hash", "none"])
def test_what_must_not_be_kept_stands_in_no_file(tmp_path: Path, content: Any) -> None:
    store = writer(
        tmp_path, content=content, redact=lambda value: json.loads(json.dumps(value).replace(SECRET, "[EMAIL]"))
    )
    store.add(request(prompt=[{"role": "user", "content": f"I am {SECRET}"}], completion=f"Hello {SECRET}"))
    store.stop()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert SECRET.encode() not in held
    with opened(tmp_path) as connection:
        (found,) = read_requests(connection)
    shown = {"redacted": "I am [EMAIL]", "none": None}.get(content, "sha256:")
    assert found.prompt[0]["content"].startswith(shown) if shown else found.prompt == []


@pytest.mark.parametrize("content", ["full", "redacted", "hash", "none"])
def test_texts_of_feedback_are_kept_as_those_of_requests_are(tmp_path: Path, content: Any) -> None:
    store = writer(tmp_path, content=content, redact=lambda value: value.replace(SECRET, "[EMAIL]"))
    said = [("comment", f"ask {SECRET}"), ("correction", f"to {SECRET}"), ("edited", SECRET), ("why", f"I am {SECRET}"),
            ("label", "billing"), ("choice", "r2"), ("resolved", "yes"), ("thumbs", True)]  # fmt: skip
    futures = [
        store.add_durably(Feedback(id=uuid7(), request="r1", kind=kind, value=value, time=utc_now()))
        for kind, value in said
    ]
    store.stop()
    assert all(future.exception() is None for future in futures)
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (SECRET.encode() in held) == (content == "full")
    with opened(tmp_path) as connection:
        kept = {item.kind: item.value for item in read_feedback(connection)}
    assert [kept[kind] for kind in ("label", "choice", "resolved", "thumbs")] == ["billing", "r2", "yes", True]
    shown = {"full": f"ask {SECRET}", "redacted": "ask [EMAIL]", "none": ""}.get(content, "sha256:")
    assert kept["comment"].startswith(shown) and len(kept) == len(said)


@EACH
def test_text_that_can_not_be_searched_is_left_out(tmp_path: Path) -> None:
    def broken(value: Any) -> Any:
        raise ValueError("no")

    store = writer(tmp_path, content="redacted", redact=broken)
    store.add(request())
    store.stop()
    with opened(tmp_path) as connection:
        assert [(item.prompt, item.completion) for item in read_requests(connection)] == [([], None)]


def test_a_killed_server_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests" / "serving" / "store")!r}]
from pathlib import Path
from test_store import request, writer
store = writer(Path({str(tmp_path)!r}))
while True:
    each = request()
    store.add_durably(each).result()
    print(each.id, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    told = [child.stdout.readline().strip() for _ in range(50)]
    child.send_signal(signal.SIGKILL)
    told += [line.strip() for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.wait()
    with opened(tmp_path) as connection:
        assert {item.id for item in read_requests(connection)} >= set(told)


def test_exported_requests_are_read_by_prepare(tmp_path: Path) -> None:
    from tuneloop.data.config import PrepareConfig
    from tuneloop.data.formats.guess import detect, parse_record

    lines = [exported(request(user=f"u{i}")) for i in range(5)]
    assert exported(request(error="x")) is None and exported(request(prompt=[])) is None
    records = [line for line in lines if line is not None]
    guess = detect(records, PrepareConfig())
    assert guess.name == "logs"
    parsed = parse_record(records[0], guess, PrepareConfig())
    assert [turn["content"] for turn in parsed.messages] == ["Where is my parcel?", "In Berlin."]  # type: ignore[union-attr]


def test_the_clock_of_a_simulation_runs_faster_from_its_origin_on(monkeypatch):
    monkeypatch.setattr(ids.time, "time", lambda: 1_000_010.0)
    monkeypatch.setenv(ids.CLOCK, "1000000,3600")
    assert ids.utc_now() == ids.utc(1_000_000 + 36_000)
    assert ids.uuid7() < ids.uuid7()
    monkeypatch.setenv(ids.CLOCK, "fast")
    with pytest.raises(UserError, match="Not a clock"):
        ids.utc_now()


def test_a_full_disk_is_no_reason_to_move_the_store_away(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused, opened(tmp_path, create=True) as connection:
        connection.execute("PRAGMA max_page_count = 1")  # no page more than there are
        insert(connection, [request(completion="x" * 100_000)])
    assert "full" in refused.value.what and "free space" in str(refused.value.next_step)
    with opened(tmp_path) as connection:
        assert not list(read_requests(connection))


def test_another_programs_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
        other.commit()
    with pytest.raises(UserError, match="another program's database"), opened(tmp_path):
        pass
    with contextlib.closing(sqlite3.connect(file)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]


HOUR, YEAR = 3600.0, 366 * 86_400.0
JUMPS = pytest.mark.parametrize("jump", [HOUR, YEAR, -HOUR, -YEAR])


@JUMPS
def test_a_jump_of_the_clock_is_noticed_once(jump: float) -> None:
    wall, steady = [1000.0], [5.0]
    watch = ids.ClockWatch(lambda: wall[0], lambda: steady[0])
    wall[0], steady[0] = 1060.0, 65.0
    assert watch.ahead() == 0
    wall[0] += jump
    assert watch.ahead() == jump and watch.ahead() == 0


@EACH
@JUMPS
def test_the_log_keeps_its_order_when_the_clock_jumps(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(ids.time, "time", lambda: now)
    with opened(tmp_path, create=True) as store:
        for i in range(6):
            if i == 3:  # in the middle, and in another process, which knows nothing of earlier ids
                now += jump
                monkeypatch.setattr(ids, "_last", 0)
            insert(store, [request(usd=1.0), Decision(id=uuid7(), time=utc_now(), kind=f"k{i}", key=f"k{i}")])
        assert [decision.kind for decision in read_decisions(store)] == [f"k{i}" for i in range(6)]
        assert not decision_log(tmp_path).fault
        assert len(list(read_requests(store))) == 6
        assert store.execute("SELECT SUM(usd) FROM costs").fetchone()[0] == 6.0
        assert [path for (path,) in store.execute("SELECT place FROM requests ORDER BY place")] == list(range(1, 7))
