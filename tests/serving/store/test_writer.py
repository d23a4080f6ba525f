"""Whatever stands in a record, the store's writer lives, the other records are kept, and every start works."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG
from places import ROOT
from tuneloop.core.files import write_json
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.ui import reporting
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.keys import add_key
from tuneloop.serving.store import writer
from tuneloop.serving.store.database import TABLES
from tuneloop.serving.store.store import opened, read_feedback, read_requests
from tuneloop.serving.store.writer import DEAD, FILES, SPILL, StoreWriter

EACH = pytest.mark.usefixtures("each_database")
PLACES = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}:{ROOT / 'tests' / 'helpers'}"}
LOCK = """
import sqlite3, sys
raw = sqlite3.connect({place!r}, isolation_level=None)
raw.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""
SERVER = """
import sys, time
from pathlib import Path
from live_server import StubEngine, live
with live(Path({folder!r}), StubEngine(), log={{"content": "full"}}) as (address, _):
    print(address, flush=True)
    time.sleep(600)
"""


def request(**changes: Any) -> StoredRequest:
    usual: dict[str, Any] = {"id": uuid7(), "time": utc_now(), "model": "m", "prompt": [], "completion": "fine"}
    return StoredRequest(**{**usual, **changes})


def held(**changes: Any) -> dict[str, Any]:
    """A request as a line of a file holds it."""
    return {"version": 1, **asdict(request(**changes))}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def child(code: str) -> subprocess.Popen[str]:
    made = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env={**os.environ, **PLACES})  # fmt: skip
    assert made.stdout is not None
    return made


def letters(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DEAD).read_text().splitlines()]


def test_records_that_are_being_written_wait_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done, insert = threading.Event(), threading.Event(), writer.insert

    def slow(*arguments: Any) -> None:
        begun.set()
        done.wait(20)
        insert(*arguments)

    monkeypatch.setattr(writer, "insert", slow)
    store = StoreWriter(tmp_path, most_waiting=1)
    store.start()
    store.add(request())
    assert begun.wait(20) and store.full and store.waiting == 1
    done.set()
    store.stop()
    assert not store.waiting and not store.full


def test_feedback_does_not_wait_for_the_search_of_long_requests(tmp_path: Path) -> None:
    searched: list[Any] = []
    begun = threading.Event()

    def slow(value: Any) -> Any:
        if isinstance(value, dict):
            searched.append(value)
            begun.set()
            time.sleep(0.05)
        return value

    store = StoreWriter(tmp_path, content="redacted", redact=slow)
    store.start()
    for _ in range(100):
        store.add(request(completion="word " * 1000))
    assert begun.wait(HANG)
    assert store.add_durably(Feedback(id=uuid7(), request="r", kind="k", value=1, time=utc_now())).result(HANG)
    assert len(searched) < 50
    store.stop(HANG)
    with opened(tmp_path) as database:
        assert len([*read_requests(database)]) == len(searched) == 100


POISON: dict[str, dict[str, Any]] = {
    "a number beyond 64 bits": {"prompt_tokens": 10**30},
    "a list in place of a text": {"model": ["m"]},
    "nothing where something must be": {"model": None},
    "depth": {"completion": deep(3000)},
}
CLEANED: dict[str, dict[str, Any]] = {
    "a lone surrogate": {"user": "\ud83d", "completion": "half \udc00", "error": "\ud800"},
    "the character 0": {"user": "x\0y", "conversation": "\0"},
    "no number": {"usd": float("nan"), "seconds": float("inf")},
}


@EACH
@pytest.mark.parametrize("message", [*POISON, *CLEANED])
@pytest.mark.parametrize("locked", [False, True])
def test_a_row_that_no_store_takes_costs_none_of_the_others(
    tmp_path: Path, message: str, locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "AGAIN", 0.05)
    said: list[str] = []
    with reporting(say=said.append):
        store = StoreWriter(tmp_path, patience=0.05)
        store.start()
        if locked:  # the records take the way through the spill file
            with opened(tmp_path) as holder, holder.transaction():
                bad = store.add_durably(request(**{**POISON, **CLEANED}[message]))
                good = [store.add_durably(request()) for _ in range(3)]
                for future in (bad, *good):
                    future.exception(20)
        else:
            futures = [store.add_durably(request(**more)) for more in ({}, {**POISON, **CLEANED}[message], {}, {})]
            for future in futures:
                future.exception(20)
        assert store.add_durably(request()).result(20)
        assert store.settle(HANG)
        store.stop()
        with opened(tmp_path) as found:
            assert len(list(read_requests(found))) == 4 + (message in CLEANED)
        assert (tmp_path / DEAD).exists() == (message in POISON) and store.counts.dead == (message in POISON)
        if message in POISON:
            (letter,) = letters(tmp_path)
            assert letter["why"] and (tmp_path / DEAD).stat().st_mode & 0o777 == 0o600
            assert sum(DEAD in line for line in said) == 1


def test_a_sender_that_leaves_does_not_end_the_writer(tmp_path: Path) -> None:
    store = StoreWriter(tmp_path)
    store.start()
    for _ in range(20):
        store.add_durably(Feedback(id=uuid7(), request="r", kind="k", value=1, time=utc_now())).cancel()
    assert store.add_durably(request()).result(HANG)
    store.stop()
    with pytest.raises(OSError, match="closed"):  # and after its end nobody waits for ever
        store.add_durably(request()).result(1)


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(["requests", {**held(id="poison"), "user": "\ud800"}]),
        '["requests", ' + "[" * 100_000 + "]" * 100_000 + "]",
        json.dumps(["requests", held(id="cut")])[:60],
        '["nothing", {"id": "a"}]', '[["requests"], {}]', "7", '["requests", {"id": [1]}]',
        json.dumps(["requests", {**held(id="huge"), "prompt_tokens": 10**30}]),
        "\x00\x00\xff half a block",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [*FILES, SPILL])
def test_nothing_that_a_killed_server_left_prevents_a_start(tmp_path: Path, name: str, line: str) -> None:
    good = json.dumps(["requests", held(id="good")])
    (tmp_path / name).write_bytes(f"{good}\n{line}".encode("utf-8", "replace"))
    for _ in range(2):  # and the next start finds nothing of it
        store = StoreWriter(tmp_path)
        store.start()
        assert store.settle(HANG)
        store.stop()
    with opened(tmp_path) as found:
        ids = {item.id for item in read_requests(found)}
    poisoned = "poison" in line
    assert ids == {"good"} | ({"poison"} if poisoned else set())
    assert (tmp_path / DEAD).exists() != poisoned
    assert poisoned or len(letters(tmp_path)) == 1


def test_feedback_is_answered_and_said_while_another_process_holds_the_store(tmp_path: Path) -> None:
    with live(tmp_path) as (address, gateway):
        said: list[str] = []
        gateway.store._say = said.append  # type: ignore[method-assign]
        answer = httpx.post(f"{address}/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        assert gateway.store.settle(HANG)
        holder = child(LOCK.format(place=str(tmp_path / "store.db")))
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
            sent = {"request": answer.json()["id"], "kind": "thumbs", "value": True}
            assert httpx.post(f"{address}/v1/feedback", json=sent, timeout=HANG).status_code == 200
            assert any("locked" in line and SPILL in line for line in said)
        finally:
            holder.communicate("go\n", timeout=HANG)
        assert gateway.store.settle(HANG)
        assert any("again" in line for line in said)
    with opened(tmp_path) as store:
        assert len(list(read_feedback(store))) == 1


def test_a_killed_server_with_odd_texts_starts_again_and_has_every_request(tmp_path: Path) -> None:
    """With the store locked, so that all of it is in the files before the store when the server is killed."""
    with live(tmp_path) as (_, gateway):
        assert gateway.store.settle(HANG)
    holder, server = child(LOCK.format(place=str(tmp_path / "store.db"))), child(SERVER.format(folder=str(tmp_path)))
    assert holder.stdout is not None and server.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        address = server.stdout.readline().strip()
        body = {"messages": [{"role": "user", "content": "Hi \0 you"}], "user": "zoë"}
        for _ in range(3):
            assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=HANG).status_code == 200
        server.send_signal(signal.SIGKILL)
        server.wait(HANG)
        with (tmp_path / FILES[0]).open("ab") as file:  # as an earlier version wrote it
            odd = json.dumps(["requests", {**held(id="odd"), "user": "\ud800", "adapter": "\udfff"}])
            file.write(odd.encode() + b"\n" + odd.encode()[:50])
    finally:
        server.kill()
        holder.communicate("go\n", timeout=HANG)
    with live(tmp_path) as (_, gateway):
        assert gateway.store.settle(HANG)
        assert gateway.store.counts.dead == 1
    with opened(tmp_path) as store:
        users = sorted(str(item.user) for item in read_requests(store))
    assert users == ["zoë", "zoë", "zoë", "\ufffd"]


HALVES = ["\ud800", "a\udfffb", "\u0000"]


@pytest.mark.parametrize("half", HALVES)
def test_texts_that_can_not_be_stored_are_refused_at_the_edge(tmp_path: Path, half: str) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    with live(tmp_path) as (address, gateway):
        for path, body in (
            ("/v1/chat/completions", {"messages": turns, "user": half}),
            ("/v1/completions", {"prompt": "Hi", "user": half}),
            ("/v1/responses", {"input": "Hi", "user": half}),
            ("/v1/classify", {"input": "Hi", "user": half}),
            ("/v1/chat/completions", {"messages": turns, "model": half}),
            ("/v1/feedback", {"request": "r", "kind": "comment", "value": half + "x"}),
            ("/v1/feedback", {"request": "r" + half, "kind": "thumbs", "value": True}),
            ("/v1/feedback", {"conversation": "c", "kind": "thumbs", "value": True, "user": half}),
            ("/v1/feedback", {"conversation": "c", "kind": "thumbs", "value": True, "key": half}),
        ):
            reply = httpx.post(f"{address}{path}", content=json.dumps(body), timeout=HANG)
            assert reply.status_code == 400 and reply.json()["error"]["message"], (path, body, reply.text)
        reply = httpx.post(f"{address}/tokenize", content=json.dumps({"prompt": half}), timeout=HANG)
        assert reply.status_code == (200 if half == "\0" else 400)
        long = httpx.post(
            f"{address}/v1/chat/completions", json={"messages": turns}, headers={"x-tuneloop-user": "u" * 257}
        )
        assert long.status_code == 400
        named = {"x-tuneloop-user": "Zoë".encode()}  # as curl sends it
        assert httpx.post(f"{address}/v1/chat/completions", json={"messages": turns}, headers=named).status_code == 200
        assert gateway.store.settle(HANG)
    with opened(tmp_path) as store:
        assert [item.user for item in read_requests(store)] == ["Zoë"]


@pytest.mark.parametrize("stream", [False, True])
def test_half_a_character_from_an_engine_is_answered_and_stored(tmp_path: Path, stream: bool) -> None:
    call = '{"name": "f", "parameters": {"a": "\\ud800"}}'
    tools = [{"type": "function", "function": {"name": "f"}}]
    for number, (text, more) in enumerate(((["half \ud83d"], {}), ([call], {"tools": tools}))):
        folder = tmp_path / str(number)
        with live(folder, StubEngine(words=text), log={"content": "full"}) as (address, gateway):
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream, **more}
            reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=HANG)
            assert reply.status_code == 200 and "\ufffd" in reply.text.replace("\\ufffd", "\ufffd"), reply.text
            assert "server" not in reply.text
            assert gateway.store.settle(HANG)
        with opened(folder) as store:
            (held,) = read_requests(store)
        assert held.error is None and held.completion


def test_a_batch_line_with_half_a_character_is_refused_alone(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"user": "\ud800"}, {"user": "fine"}, {"metadata": {"a": "\udc00"}}, {"seed": 10**400}, {"user": "a\0b"},
    ]  # fmt: skip
    turns = [{"role": "user", "content": "Hi"}]
    lines = [
        {"custom_id": f"c{i}", "url": "/v1/chat/completions", "method": "POST", "body": {"messages": turns, **more}}
        for i, more in enumerate(bodies)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines)
    with live(tmp_path) as (address, gateway):
        given = httpx.post(f"{address}/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": given["id"], "endpoint": "/v1/chat/completions"}
        batch = httpx.post(f"{address}/v1/batches", json=asked).json()
        end = time.monotonic() + 30
        while batch["status"] != "completed":
            assert time.monotonic() < end, batch
            time.sleep(0.05)
            batch = httpx.get(f"{address}/v1/batches/{batch['id']}").json()
        assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
        assert gateway.store.settle(HANG)
    raw = sqlite3.connect(tmp_path / "store.db")
    assert raw.execute('SELECT "user" FROM requests').fetchall() == [("fine",)]
    assert TABLES[StoredRequest] == "requests"


def modes(folder: Path) -> dict[str, str]:
    """What others may, by the names of files and folders."""
    found = {}
    for item in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            if others := item.stat().st_mode & 0o077:
                found[str(item.relative_to(folder))] = oct(others)
    return found


@pytest.mark.parametrize("umask", [0, 0o022])
def test_what_a_server_keeps_is_its_users_alone(tmp_path: Path, umask: int) -> None:
    folder, before = tmp_path / "serve", os.umask(umask)
    try:
        add_key(folder, "anna")
        assert modes(folder) == {}
        with live(folder, StubEngine(pause=0.05), keys={"required": False}) as (address, _):
            line = {
                "custom_id": "a",
                "url": "/v1/chat/completions",
                "body": {"messages": [{"role": "user", "content": "Hi"}]},
            }
            file = {"file": ("in.jsonl", json.dumps(line))}
            given = httpx.post(f"{address}/v1/files", files=file, data={"purpose": "batch"}).json()
            asked = {"input_file_id": given["id"], "endpoint": "/v1/chat/completions"}
            batch = httpx.post(f"{address}/v1/batches", json=asked).json()
            assert modes(folder) == {}
            end = time.monotonic() + 30
            while batch["status"] != "completed" and time.monotonic() < end:
                time.sleep(0.05)
                batch = httpx.get(f"{address}/v1/batches/{batch['id']}").json()
            write_json(folder / "state.json", {})
            write_json(folder / "experiments" / "one.json", {})
            assert modes(folder) == {} and (folder / "store.db-wal").is_file()
        for item in [folder, *folder.rglob("*")]:  # as an earlier version left them
            item.chmod(0o777 if item.is_dir() else 0o666)
        said: list[str] = []
        for _ in range(2):
            with reporting(say=said.append):
                store = StoreWriter(folder)
                store.start()
                assert modes(folder) == {}
                store.stop()
        assert len([line for line in said if "yours alone" in line]) == 1
        (tmp_path / "open").mkdir(0o755)
        write_json(tmp_path / "open" / "a" / "b.json", {})  # elsewhere the umask decides
        assert (tmp_path / "open" / "a" / "b.json").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


def test_folders_of_all_keep_their_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    store = StoreWriter(tmp_path)
    store.start()
    store.stop()
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777 and (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600
