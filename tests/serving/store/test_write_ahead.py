"""No request is lost, whenever a server is killed."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patience import HANG
from places import ROOT
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.records.request import StoredRequest
from tuneloop.serving.store import writer as ahead
from tuneloop.serving.store.store import connect, opened, read_requests
from tuneloop.serving.store.writer import FILES, KILLED, SHORT, StoreWriter, WriteAhead, line_of

SERVER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from live_server import StubEngine, live
with live(Path({folder!r}), StubEngine(pause={pause})) as (address, _):
    print(address, flush=True)
    time.sleep(600)
"""
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi you"}]}).encode()


def request(number: int = 0, **changes: Any) -> StoredRequest:
    given: dict[str, Any] = {
        "id": uuid7(), "time": utc_now(), "model": "m", "prompt": [{"role": "user", "content": f"question {number}"}],
        "completion": f"answer {number}",
    }  # fmt: skip
    return StoredRequest(**{**given, **changes})


def killed_after(folder: Path, answers: int, pause: float) -> list[str]:
    """Ids of the answers that clients had when the server was killed in the midst of others."""
    script = SERVER.format(
        paths=[str(ROOT / name) for name in ("src", "tests", "tests/helpers")], folder=str(folder), pause=pause
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    found: list[str] = []

    def one(_: int) -> None:
        try:
            with urllib.request.urlopen(f"{address}/v1/chat/completions", BODY, timeout=HANG) as reply:
                found.append(json.load(reply)["id"])
        except (OSError, http.client.HTTPException):
            return
        if len(found) >= answers:
            os.kill(process.pid, signal.SIGKILL)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(answers + 20)))
    process.kill()
    process.wait()
    return found


@pytest.mark.slow
def test_every_answer_is_in_the_store_after_a_kill(tmp_path: Path) -> None:
    told: list[str] = []
    for number, pause in enumerate((0.0, 0.02, 0.0)):
        told += killed_after(tmp_path, 5 + 4 * number, pause)
    StoreWriter(tmp_path).start()  # the next server
    with opened(tmp_path) as store:
        kept = {item.id: item for item in read_requests(store)}
    assert len(told) >= 25 and set(told) <= set(kept)
    assert all("Hello there." in str(kept[item].completion) and kept[item].error is None for item in told)
    unanswered = [item for item in kept.values() if item.error == KILLED]
    assert all(item.completion is None and item.prompt for item in unanswered)


def restarted(folder: Path, **options: Any) -> list[StoredRequest]:
    store = StoreWriter(folder, **options)
    store.start()
    store.stop()
    with opened(folder) as found:
        return list(read_requests(found))


def test_the_last_word_on_a_request_counts_whatever_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "LARGE", 2_000)
    connect(tmp_path, create=True).close()
    lines = WriteAhead(tmp_path)
    assert lines.open() == ([], [])
    slow = request(99)
    lines.begin(slow)
    done = [request(i) for i in range(40)]
    for item in done:
        lines.begin(item)
        with lines.lock:
            lines.end(item.id, line_of(item))
            number = lines.turn()
        if number is not None:
            with opened(tmp_path) as store:
                from tuneloop.serving.store.database import insert

                insert(store, done[: done.index(item) + 1])
            lines.clear(number)
    sizes = [(tmp_path / name).stat().st_size for name in FILES]
    assert 0 < sum(sizes) < 4_000
    kept = {entry.id: entry for entry in restarted(tmp_path)}
    assert len(kept) == 41 and kept[slow.id].error == KILLED and kept[slow.id].completion is None
    assert all(kept[entry.id].completion == entry.completion for entry in done)
    assert not any((tmp_path / name).exists() for name in FILES)


def test_a_cut_line_costs_itself_alone(tmp_path: Path) -> None:
    connect(tmp_path, create=True).close()
    whole = line_of(request(1)).decode().strip()
    (tmp_path / FILES[0]).write_text(f"{whole}\n{whole[:50]}")
    assert [item.completion for item in restarted(tmp_path)] == ["answer 1"]


@pytest.mark.parametrize("content", ["hash", "none"])
def test_texts_that_are_not_kept_are_not_written_ahead(tmp_path: Path, content: Any) -> None:
    store = StoreWriter(tmp_path, content, most_waiting=5)
    store.start()
    store.begin(request(7))
    store.add(request(7, completion="the secret answer"))
    raw = b"".join((tmp_path / name).read_bytes() for name in FILES)
    assert raw.count(b"\n") == 2 and b"secret" not in raw and b"question" not in raw
    store.stop()


def searching(searched: list[Any]) -> Callable[[Any], Any]:
    """A search for one address, which notes what it was given."""

    def redact(value: Any) -> Any:
        searched.append(value)
        return json.loads(json.dumps(value).replace("bo@example.com", "<EMAIL>"))

    return redact


@pytest.mark.parametrize(("more", "ahead"), [("", True), ("x" * SHORT, False)])
def test_short_texts_are_searched_at_once_so_that_a_kill_costs_none(tmp_path: Path, more: str, ahead: bool) -> None:
    searched: list[Any] = []
    store = StoreWriter(tmp_path, "redacted", searching(searched))
    store.start()
    asked = request(7, completion=f"write to bo@example.com {more}")
    store.begin(asked)
    store.add(asked)
    raw = b"".join((tmp_path / name).read_bytes() for name in FILES)
    assert b"bo@example.com" not in raw and (b"write to <EMAIL>" in raw) == ahead
    store.stop()
    assert len(searched) == (2 if ahead else 1)  # nothing is searched a second time as it is stored
    with opened(tmp_path) as connection:
        (kept,) = read_requests(connection)
    assert str(kept.completion).startswith("write to <EMAIL>")


def test_a_server_that_is_stopped_leaves_nothing_to_do(tmp_path: Path) -> None:
    store = StoreWriter(tmp_path)
    store.start()
    for i in range(30):
        item = request(i)
        store.begin(item)
        store.add(item)
    store.stop()
    assert not any((tmp_path / name).exists() for name in FILES)
    assert len(restarted(tmp_path)) == 30


def test_a_full_disk_delays_nothing(tmp_path: Path) -> None:
    lines = WriteAhead(tmp_path)
    lines.open()
    lines._files[0] = os.open("/dev/full", os.O_WRONLY)
    began = time.perf_counter()
    lines.begin(request())
    assert lines.failed == 1 and time.perf_counter() - began < 1


def test_a_prompt_is_searched_for_personal_data_once(tmp_path: Path) -> None:
    searched: list[Any] = []
    store = StoreWriter(tmp_path, "redacted", searching(searched))
    store.start()
    asked = [{"role": "user", "content": "write to bo@example.com"}]
    begun = StoredRequest(id="a", time="2026-01-01T00:00:00.000Z", model="m", prompt=asked)
    store.begin(begun)
    store.add(replace(begun, **{"completion": "I wrote to bo@example.com"}))
    other = replace(begun, **{"id": "b", "prompt": [{"role": "user", "content": "bo@example.com again"}]})
    store.begin(replace(begun, **{"id": "b"}))
    store.add(other)  # with another prompt than it began with
    store.stop()
    assert [("prompt" in value) for value in searched] == [True, False, True, True]
    with opened(tmp_path) as connection:
        first, second = read_requests(connection)
    assert (first.prompt[0]["content"], first.completion) == ("write to <EMAIL>", "I wrote to <EMAIL>")
    assert second.prompt[0]["content"] == "<EMAIL> again"


def test_what_a_batch_holds_is_stored_if_its_journal_names_it(tmp_path: Path) -> None:
    journal, answered, again = tmp_path / "journal.jsonl", request(1), request(2)
    lines = WriteAhead(tmp_path)
    lines.open()
    for item in (answered, again):
        lines.hold(item.id, line_of(item), journal)
    lines.turn(always=True)  # both are written into the other file too, since they are not stored
    lines.clear(0)
    assert WriteAhead(tmp_path).open() == ([], []), "without the journal the batch answers again"
    journal.write_bytes(json.dumps({"number": 1, "requests": [answered.id]}, separators=(",", ":")).encode() + b"\n")
    assert WriteAhead(tmp_path).open() == ([answered], [])
    lines.drop(again.id)
    lines.turn(always=True)
    lines.clear(1)
    assert (tmp_path / FILES[0]).read_bytes().count(b"\n") == 1


def test_a_batchs_record_is_as_clean_as_any_other(tmp_path: Path) -> None:
    searched: list[Any] = []
    store = StoreWriter(tmp_path, "redacted", searching(searched))
    store.start()
    texts = [{"role": "user", "content": "write to bo@example.com"}]
    held = [store.hold(replace(request(i), prompt=texts), tmp_path / "journal.jsonl") for i in range(2)]
    assert b"bo@example" not in (tmp_path / FILES[0]).read_bytes()
    held[0].store()
    held[1].drop()
    store.stop()
    with opened(tmp_path) as connection:
        assert [item.prompt[0]["content"] for item in read_requests(connection)] == ["write to <EMAIL>"]
    assert not any((tmp_path / name).exists() for name in FILES)
