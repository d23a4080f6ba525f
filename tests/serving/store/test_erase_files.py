"""Who is erased from a server's folder stands in none of its files, in no form, whether a server runs or was killed meanwhile."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_day import by_day
from live_server import StubEngine, live

from patience import HANG
from places import ROOT
from serving import running
from tuneloop.cli.main import main
from tuneloop.core.ids import utc, utc_now, uuid7
from tuneloop.records.feedback import Feedback
from tuneloop.records.request import StoredRequest
from tuneloop.serving.keys import Limits, add_key
from tuneloop.serving.server import redactor_of
from tuneloop.serving.store.database import insert
from tuneloop.serving.store.erase import find
from tuneloop.serving.store.erase_files import expire_files
from tuneloop.serving.store.store import opened, read_decisions, read_feedback, read_requests

USER, TEXT = "zoë-4711", 'my "parcel" to Zoë Brünnhilde, 漢字 zqxvplanted'
CHAT = "/v1/chat/completions"


def forms(text: str) -> set[bytes]:
    """A text as it may stand in a file."""
    escaped = json.dumps(text)[1:-1]
    upper = "\\u".join([part[:4].upper() + part[4:] if i else part for i, part in enumerate(escaped.split("\\u"))])
    return {text.encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode(), escaped.encode(), upper.encode()}


NEEDLES = {b"zqxvplanted", b"nnhilde", *forms(USER), *forms("Brünnhilde")}


def holding(folder: Path) -> list[str]:
    """Files that hold the person in any form, packed ones too, or are named for them."""
    found = []
    for path in sorted(folder.rglob("*")):
        raw = path.read_bytes() if path.is_file() else b""
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if any(form in raw + str(path.relative_to(folder)).encode() for form in NEEDLES):
            found.append(str(path.relative_to(folder)))
    return found


def line(number: int, user: str, text: str, *, ascii: bool = False, **more: Any) -> str:
    body = {"messages": [{"role": "user", "content": text}], "user": user, **more}
    value = {"custom_id": f"{user}-{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(value, ensure_ascii=ascii)


LINES = [
    line(i, USER if i % 3 == 1 else "ben", TEXT if i % 3 == 1 else f"parcel {i}", ascii=i % 2 == 1) for i in range(9)
]


def rows(count: int = 3) -> list[Any]:
    """Requests of the person and of others, and feedback."""
    found: list[Any] = []
    for i in range(count):
        for user, text in ((USER, TEXT), ("ben", f"parcel {i}")):
            prompt: Any = [{"role": "user", "content": text}]
            asked = StoredRequest(id=uuid7(), time=utc_now(), model="m", user=user, conversation=f"talk {user}",
                                  prompt=prompt, completion=f"so: {text}")  # fmt: skip
            said = Feedback(
                id=uuid7(), request=asked.id, kind="comment", value=f"no, {text}", user=user, time=utc_now()
            )
            found += [asked, said]
    return found


def batch_of(folder: Path, name: str, status: str) -> Path:
    """A batch with its upload, as a server leaves them."""
    files, batch = folder / "batch" / "files", folder / "batch" / "batches" / f"batch_{name * 32}"
    files.mkdir(parents=True, exist_ok=True)
    batch.mkdir(parents=True)
    upload = files / f"file-{name * 32}.jsonl"
    upload.write_text("\n".join(LINES) + "\n")
    upload.with_suffix(".json").write_text(
        json.dumps({"id": upload.stem, "filename": f"of {USER}.jsonl", "owner": "", "bytes": 9, "created_at": 1})
    )
    (batch / "input.jsonl").hardlink_to(upload)
    state = {"id": batch.name, "status": status, "endpoint": CHAT, "input_file_id": upload.stem, "owner": "",
             "metadata": {"for": USER, "note": "weekly"}, "created_at": 1, "expires_at": None,
             "request_counts": {"total": 9, "completed": 9, "failed": 0}}  # fmt: skip
    (batch / "batch.json").write_text(json.dumps(state, indent=2))
    for i, item in enumerate(LINES if status == "completed" else LINES[:4], 1):
        answer = {
            "status_code": 200,
            "request_id": "r",
            "body": {"text": json.loads(item)["body"]["messages"][0]["content"]},
        }
        value = {"custom_id": json.loads(item)["custom_id"], "response": answer, "error": None}
        with (batch / "journal.jsonl").open("a") as file:
            file.write(json.dumps({"number": i, **value}) + "\n")
        if status == "completed":
            with (batch / ("errors.jsonl" if i > 6 else "output.jsonl")).open("a") as file:
                file.write(json.dumps({"id": f"batch_req_{i}", **value}, ensure_ascii=False) + "\n")
    return batch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder with the person in every kind of file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "serve"
    with opened(folder, create=True) as store:
        insert(store, rows())
    shutil.copy(folder / "store.db", folder / "store.db.bak")
    batch_of(folder, "a", "completed")
    batch_of(folder, "b", "in_progress")
    late, *_ = rows(1)
    records = [["requests", {"version": 1, **asdict(late)}], 7, ["requests", {"user": USER}]]
    (folder / "store.ahead-0.jsonl").write_text(
        "\n".join(json.dumps(record) for record in records) + f'\n["requests", "{TEXT}'
    )
    (folder / "store.dead.jsonl").write_text(
        json.dumps({"why": "", "record": {"user": USER, "prompt": TEXT}}) + "\n{}\n"
    )
    (folder / "batch" / "files" / "file-x.part").write_text(LINES[1])
    (folder / ".batch.json.abc.tmp").write_text(json.dumps({"user": USER}))
    with gzip.open(folder / "server.log.1.gz", "wt") as file:
        file.write(f'a line\n{{"user": {json.dumps(USER)}}}\nabout {USER} it was\n')
    (folder / f"export of {USER}.jsonl").write_text(
        json.dumps({"user": USER}) + "\n" + json.dumps({"user": "ben"}) + "\n"
    )
    collected = folder / "improve" / "1" / "collected"
    collected.mkdir(parents=True)
    (collected / "sft.jsonl").write_text(json.dumps({"request": "a", "meta": {"user": USER}, "text": TEXT}) + "\n{}\n")
    assert len(holding(folder)) >= 14
    return folder


def left(folder: Path) -> None:
    """All of the others is there, and nothing of the person."""
    assert holding(folder) == []
    with opened(folder) as store:
        assert (
            {request.user for request in read_requests(store)}
            == {"ben"}
            == {item.user for item in read_feedback(store)}
        )
        assert len(list(read_requests(store))) >= 3
    done = folder / "batch" / "batches" / f"batch_{'a' * 32}"
    upload = (folder / "batch" / "files" / f"file-{'a' * 32}.jsonl").read_text().split("\n")
    assert [i for i, item in enumerate(upload) if item.strip()] == [0, 2, 3, 5, 6, 8]
    assert [json.loads(item)["id"] for item in (done / "output.jsonl").read_text().splitlines()] == [
        f"batch_req_{i}" for i in (1, 3, 4, 6)
    ]
    assert len((done / "errors.jsonl").read_text().splitlines()) == 2
    assert json.loads((done / "batch.json").read_text())["metadata"] == {"for": "erased", "note": "weekly"}
    assert (folder / "improve" / "1" / "collected" / "sft.jsonl").read_text() == "{}\n"
    assert gzip.decompress((folder / "server.log.1.gz").read_bytes()) == b"a line\n"


@pytest.mark.parametrize("match", [f"user={USER}", "ZQXVplanted", "brünnhilde,"])
def test_no_byte_of_a_person_is_left_in_the_folder(
    folder: Path, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "forget", str(folder), "--match", match, "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["erased"] and told["lines"] > 10
    if match.startswith("user"):
        left(folder)
    else:  # only what holds the text is theirs then
        text = {b"zqxvplanted", *forms("Brünnhilde")}
        assert not [
            path for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in text)
        ]
    with opened(folder) as store:
        (stone,) = read_decisions(store)
    assert stone.data["lines"] == told["lines"]
    assert main(["data", "forget", str(folder), "--match", match, "--yes", "--json"]) == 1


KILLED = """
import os, signal, sys
import tuneloop.serving.store.erase as erase, tuneloop.serving.store.erase_files as files, tuneloop.serving.store.database as database
import tuneloop.serving.store.forget as work
from tuneloop.cli.main import main
module, name, after = {point!r}
real, calls = getattr(eval(module), name), []
def killing(*values, **named):
    calls.append(1)
    if len(calls) > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*values, **named)
setattr(eval(module), name, killing)
main(["data", "forget", {folder!r}, "--match", {match!r}, "--yes", "-q"])
"""
POINTS = [
    ("work", "erase_lines", 2), ("work", "finish_forgetting", 0), ("files", "_overwrite", 8), ("files", "replacing", 1),
    ("files", "replacing", 4), ("erase", "delete", 0), ("database.SqliteDatabase", "forget", 0), ("work", "_in_copies", 2),
]  # fmt: skip


@pytest.mark.parametrize("point", by_day((pytest.param(point) for point in POINTS), 4), ids=str)
def test_an_erasure_that_was_killed_is_finished_by_the_next_one(folder: Path, point: tuple[str, str, int]) -> None:
    code = KILLED.format(point=point, folder=str(folder), match=f"user={USER}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert holding(folder)
    assert main(["data", "forget", str(folder), "--match", "user=nobody", "--yes", "-q"]) == 1
    left(folder)
    with opened(folder) as store:
        stones = list(read_decisions(store))
    assert len(stones) == 1 and stones[0].data["requests"] == 4


@contextmanager
def server(tmp_path: Path, folder: Path, pause: float, *settings: str) -> Iterator[str]:
    """`tuneloop serve` as a process, before a slow engine here."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with (
        live(tmp_path / "engine", StubEngine(words=["as", " you", " say"], pause=pause), log={"content": "none"}) as (
            url,
            _,
        ),
        running(url, *settings, folder=folder, environment=environment) as (address, _),
    ):
        yield address


@pytest.mark.slow
def test_a_server_erases_while_it_works_and_goes_on_with_its_batches(folder: Path, tmp_path: Path) -> None:
    with server(tmp_path, folder, 0.05, "log.content=full") as address:
        body = {"messages": [{"role": "user", "content": TEXT}], "user": USER}
        for _ in range(3):
            answer = httpx.post(f"{address}{CHAT}", json=body, timeout=HANG)
            assert answer.status_code == 200
        said = {"request": answer.json()["id"], "kind": "comment", "value": TEXT, "user": USER}
        assert httpx.post(f"{address}/v1/feedback", json=said, timeout=HANG).status_code == 200
        many = "\n".join(line(i, USER if i % 2 else "ben", TEXT if i % 2 else "hello") for i in range(60))
        file = httpx.post(f"{address}/v1/files", files={"file": ("in.jsonl", many)}, timeout=HANG).json()
        asked = {"input_file_id": file["id"], "endpoint": CHAT, "metadata": {"who": USER}}
        batch = httpx.post(f"{address}/v1/batches", json=asked, timeout=HANG).json()
        time.sleep(0.5)
        assert main(["data", "forget", str(folder), "--user", USER, "--yes", "-q"]) == 0
        assert holding(folder) == []
        end = time.monotonic() + 60
        while batch["status"] != "completed":
            assert time.monotonic() < end, batch
            time.sleep(0.1)
            batch = httpx.get(f"{address}/v1/batches/{batch['id']}", timeout=HANG).json()
        assert batch["request_counts"] == {"total": 30, "completed": 30, "failed": 0}
        results = httpx.get(f"{address}/v1/files/{batch['output_file_id']}/content", timeout=HANG).text.splitlines()
        assert [json.loads(result)["custom_id"] for result in results] == [f"ben-{i}" for i in range(0, 60, 2)]
        assert holding(folder) == []
    assert holding(folder) == []


@pytest.mark.slow
def test_a_server_finishes_an_erasure_when_it_starts(folder: Path, tmp_path: Path) -> None:
    code = KILLED.format(point=("erase", "delete", 0), folder=str(folder), match=f"user={USER}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert holding(folder)
    with server(tmp_path, folder, 0.0):
        assert holding(folder) == []


@pytest.mark.slow
def test_a_server_takes_from_batches_what_is_older_than_it_may_be(folder: Path, tmp_path: Path) -> None:
    add_key(folder, "long", Limits(keep_days=100_000))
    done = folder / "batch" / "batches" / f"batch_{'a' * 32}"
    other = shutil.copytree(done, done.with_name(f"batch_{'c' * 32}"))
    (other / "batch.json").write_text(json.dumps({**json.loads((done / "batch.json").read_text()), "owner": "long"}))
    with server(tmp_path, folder, 0.0, "log.keep_days=1", "log.content=full", "keys.required=false"):
        end = time.monotonic() + 20
        while (done / "output.jsonl").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (other / "output.jsonl").exists() and (other / "input.jsonl").exists()
    assert [path.name for path in done.iterdir()] == ["batch.json"]


def test_texts_are_found_however_json_writes_them(tmp_path: Path) -> None:
    prompt: Any = [{"role": "user", "content": 'He said "Grüße"\nto all'}]
    asked = StoredRequest(
        id="r", time=utc_now(), model="m", prompt=prompt, completion={"arguments": '{"to": "Gr\\u00FC\\u00dfe"}'}
    )
    with opened(tmp_path, create=True) as store:
        insert(store, [asked])
        for match in ('said "GRÜSSE"', 'grüße"  to', "gru\u0308ße"):
            assert find(store, match).requests == ("r",), match
        assert find(store, "said 'Grüße'").requests == ()


@pytest.mark.parametrize(("content", "leaves"), [("full", False), ("redacted", True), ("hash", True), ("none", True)])
def test_a_batch_that_is_over_keeps_its_results_and_as_much_of_its_texts_as_the_log(
    tmp_path: Path, content: Any, leaves: bool
) -> None:
    with live(tmp_path, log={"content": content}) as (address, gateway):
        file = httpx.post(f"{address}/v1/files", files={"file": ("in.jsonl", "\n".join(LINES))}).json()
        batch = httpx.post(f"{address}/v1/batches", json={"input_file_id": file["id"], "endpoint": CHAT}).json()
        end = time.monotonic() + 30
        while not batch["output_file_id"] or (
            leaves and any("zqxv" in path.read_text() for path in (tmp_path / "batch").rglob("*.jsonl"))
        ):
            assert time.monotonic() < end, batch
            time.sleep(0.05)
            batch = httpx.get(f"{address}/v1/batches/{batch['id']}").json()
        kept = [path.name for path in (tmp_path / "batch").rglob("*.jsonl") if b"zqxvplanted" in path.read_bytes()]
        assert sorted(kept) == ([] if leaves else [f"{file['id']}.jsonl", "input.jsonl"])
        assert len(httpx.get(f"{address}/v1/files/{batch['output_file_id']}/content").text.splitlines()) == 9
        again = httpx.post(f"{address}/v1/batches", json={"input_file_id": file["id"], "endpoint": CHAT})
        assert again.status_code == (400 if leaves else 200) and ("upload" in again.text or not leaves)
        assert httpx.delete(f"{address}/v1/files/{file['id']}").status_code == 200
        assert gateway.store.settle(HANG)


def test_old_batches_uploads_and_dead_letters_lose_their_texts(folder: Path) -> None:
    now = time.time()
    (folder / "store.dead.jsonl").write_text(
        "".join(json.dumps({"time": utc(now - age), "why": "", "record": {"key": key}}) + "\n"
                for age in (10, 1e6) for key in ("", "long"))
    )  # fmt: skip
    done, busy = (folder / "batch" / "batches" / f"batch_{name * 32}" for name in "ab")
    assert expire_files(folder, lambda owner: None, "full") == 0
    assert expire_files(folder, lambda owner: None if owner == "long" else now - 1000, "full") == 4
    assert sorted(path.name for path in done.iterdir()) == ["batch.json"]
    assert "zoë" not in json.loads((done / "batch.json").read_text()).__repr__()
    assert (busy / "input.jsonl").exists() and (busy / "journal.jsonl").exists()  # it is not over
    assert not list((folder / "batch" / "files").glob("file-*.json*"))
    assert len((folder / "store.dead.jsonl").read_text().splitlines()) == 3


def test_names_that_are_words_of_the_format_or_short_cost_nobody_else(folder: Path) -> None:
    """The user `in_progress`, the user `u1` and the key `k` are erased; batches go on and stay their owners'."""
    batch = folder / "batch" / "batches" / f"batch_{'b' * 32}"
    state = json.loads((batch / "batch.json").read_text())
    (batch / "batch.json").write_text(json.dumps({**state, "owner": "k", "metadata": {"for": "u1"}}))
    other = line(0, "u1", "mine") + "\n" + line(1, "in_progress", "mine") + "\n" + line(2, "u2", "u1 is not me")
    (folder / "batch" / "files" / "file-other.jsonl").write_text(other)
    for user, number in (("u1", 0), ("in_progress", 1)):
        assert main(["data", "forget", str(folder), "--user", user, "--yes", "-q"]) == 0
        lines = (folder / "batch" / "files" / "file-other.jsonl").read_text().split("\n")
        assert [i for i, item in enumerate(lines) if not item.strip()] == list(range(number + 1))
    state = json.loads((batch / "batch.json").read_text())
    assert (state["status"], state["owner"], state["metadata"]) == ("in_progress", "k", {"for": "erased"})
    assert len((batch / "journal.jsonl").read_text().splitlines()) == 4
    assert main(["data", "forget", str(folder), "--match", "key=k", "--yes", "-q"]) == 0
    assert not (batch / "journal.jsonl").read_text() and not (batch / "input.jsonl").read_text().strip()


def test_a_store_in_postgres_and_the_folder_of_its_server_are_erased(
    folder: Path, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url()
    (folder / "state.json").write_text(json.dumps({"version": 1, "config": {"log": {"store": url}}}))
    assert any(name.startswith("store.db") for name in holding(folder))  # the store of before
    with opened(url, create=True) as store:
        insert(store, rows())
    assert main(["data", "forget", str(folder), "--user", USER, "--yes", "-q"]) == 0
    left(folder)


def test_a_text_is_found_by_what_the_log_holds_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELOOP_SECRET", "a secret of at least some length, for tests")
    kept = redactor_of("pseudonyms")("Write to zoe.b@example.org or ben@example.org")
    with opened(tmp_path, create=True) as store:
        insert(
            store, [StoredRequest(id=uuid7(), time=utc_now(), model="m", prompt=[{"role": "user", "content": kept}])]
        )
    (tmp_path / "state.json").write_text(json.dumps({"version": 1, "config": {"log": {"content": "pseudonyms"}}}))
    stand_in = kept.split()[2]
    assert "zoe.b" not in kept and stand_in.encode() in (tmp_path / "store.db").read_bytes()
    assert main(["data", "forget", str(tmp_path), "--match", "zoe.b@example.org", "--yes", "-q"]) == 0
    assert stand_in.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


def test_settings_that_hold_the_name_of_a_user_by_chance_stay(folder: Path) -> None:
    run = folder / "improve" / "1" / "run"
    (folder / "experiments").mkdir()
    run.mkdir()
    held = {
        folder / "experiments" / "one.json": {"model": "support"},
        run / "run.json": {"model": "support", "rows": [{"user": "support"}, 1]},
    }
    for path, value in held.items():
        path.write_text(json.dumps(value))
    (run / "recipe.yaml").write_text("model: support\n")
    with opened(folder) as store:
        insert(store, [StoredRequest(id=uuid7(), time=utc_now(), model="m", user="support", prompt=[])])
    assert main(["data", "forget", str(folder), "--user", "support", "--yes", "-q"]) == 0
    assert (run / "recipe.yaml").read_text() == "model: support\n"
    assert [json.loads(path.read_text()) for path in held] == [{"model": "support"}, {"model": "support", "rows": [1]}]


def test_what_was_made_of_requests_is_named_with_a_command_and_in_the_folder_it_is_erased(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(folder) as store:
        insert(store, rows(30))
        asked = list(read_requests(store))
        insert(
            store, [Feedback(id=uuid7(), request=item.id, kind="thumbs", value=True, time=utc_now()) for item in asked]
        )
        (theirs, *_) = read_requests(store, where='"user" = ?', values=[USER])
    inside = folder / "improve" / "2"
    assert (
        main(
            ["collect", str(folder), "-o", str(inside / "collected"), "--per-user", "500", "--heldout-share", "0", "-q"]
        )
        == 0
    )
    sft = str(inside / "collected" / "sft.jsonl")
    main(["prepare", sft, "-o", str(inside / "set"), "-q", "duplicates.near=false", "duplicates.exact=false"])
    table = folder.parent / "an export.csv"
    table.write_text(f"request,text\n{theirs.id},{TEXT}\n")
    capsys.readouterr()
    assert any("set" in name for name in holding(folder))
    assert main(["data", "forget", str(folder), "--user", USER, "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert ("file", "rm 'an export.csv'") in {(item["kind"], item["advice"]) for item in told["descendants"]}
    assert holding(folder) == []
