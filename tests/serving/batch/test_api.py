"""OpenAI's batch API: its own client uploads, waits, reads results and cancels; nobody sees another key's files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_server import StubEngine, live

from patience import HANG
from tuneloop.core.files import read_json
from tuneloop.serving.batch.api import _Form
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.keys import Limits, add_key, revoke_key
from tuneloop.serving.store.store import opened, read_requests

openai = pytest.importorskip("openai")


def lines(n: int) -> bytes:
    made = [
        {
            "custom_id": f"id-{i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "stub" if i != 3 else "nobody", "messages": [{"role": "user", "content": f"say {i}"}]},
        }
        for i in range(n)
    ]
    return "".join(json.dumps(item) + "\n" for item in made).encode()


def client(address: str, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)


def begin(api: Any, data: bytes) -> Any:
    file = api.files.create(file=("in.jsonl", data), purpose="batch")
    return api.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def waited(api: Any, batch: Any) -> Any:
    end = time.monotonic() + 20
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < end, batch
        time.sleep(0.02)
        batch = api.batches.retrieve(batch.id)
    return batch


def test_a_batch_is_done_and_its_results_are_read(tmp_path: Path) -> None:
    with live(tmp_path) as (address, gateway):
        api = client(address)
        done = waited(api, begin(api, lines(10)))
        assert done.status == "completed"
        assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (10, 9, 1)
        output = [json.loads(line) for line in api.files.content(done.output_file_id).text.splitlines()]
        assert [item["custom_id"] for item in output] == [f"id-{i}" for i in range(10) if i != 3]
        assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there."
        (wrong,) = [json.loads(line) for line in api.files.content(done.error_file_id).text.splitlines()]
        assert wrong["custom_id"] == "id-3" and wrong["response"]["body"]["error"]["code"] == "model_not_found"
        assert [item.id for item in api.batches.list()] == [done.id]
        api.files.delete(done.input_file_id)
        assert [item.id for item in api.files.list()] == []
        with pytest.raises(openai.ConflictError):
            api.batches.cancel(done.id)
        assert gateway.metrics.text().count(b"tuneloop_requests_total") > 0


def test_a_batch_is_cancelled_and_one_that_a_server_left_is_done_by_the_next(tmp_path: Path) -> None:
    with live(tmp_path, StubEngine(pause=0.02)) as (address, _):
        api = client(address)
        first, second = begin(api, lines(50)), begin(api, lines(50))
        time.sleep(0.3)
        assert api.batches.cancel(first.id).status in ("cancelling", "cancelled")
        first = waited(api, first)
        assert first.status == "cancelled" and 0 < first.request_counts.completed < 50
        errors = api.files.content(first.error_file_id).text
        assert "batch_cancelled" in errors
    state = read_json(tmp_path / "batch" / "batches" / second.id / "batch.json")
    assert state["status"] == "in_progress"
    with live(tmp_path) as (address, _):
        api = client(address)
        second = waited(api, api.batches.retrieve(second.id))
        output = [json.loads(line)["custom_id"] for line in api.files.content(second.output_file_id).text.splitlines()]
        assert second.status == "completed" and output == [f"id-{i}" for i in range(50) if i != 3]


def test_files_belong_to_their_key_and_names_lead_nowhere_else(tmp_path: Path) -> None:
    with live(tmp_path) as (address, _):
        anna, ben = (client(address, add_key(tmp_path, name)[0]) for name in ("anna", "ben"))
        batch = waited(anna, begin(anna, lines(3)))
        for call in (
            lambda: ben.files.content(batch.output_file_id),
            lambda: ben.files.retrieve(batch.input_file_id),
            lambda: ben.batches.retrieve(batch.id),
            lambda: begin_with(ben, batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        headers = {"Authorization": f"Bearer {anna.api_key}"}
        for name in ("..%2f..%2fkeys.json", "file-..", "%2e%2e", "file-" + "0" * 32):
            assert httpx.get(f"{address}/v1/files/{name}/content", headers=headers).status_code == 404
            assert httpx.get(f"{address}/v1/batches/{name}", headers=headers).status_code == 404


def test_a_batch_whose_key_is_revoked_asks_nothing_more_and_its_files_are_closed(tmp_path: Path) -> None:
    engine = StubEngine(pause=0.02)
    with live(tmp_path, engine) as (address, _):
        anna = client(address, add_key(tmp_path, "anna")[0])
        batch = begin(anna, lines(200))
        time.sleep(0.3)
        revoke_key(tmp_path, "anna")
        time.sleep(0.2)
        asked = len(engine.asked)
        for call in (
            lambda: anna.batches.retrieve(batch.id),
            lambda: anna.files.content(batch.input_file_id),
            lambda: anna.files.delete(batch.input_file_id),
            lambda: anna.batches.cancel(batch.id),
            lambda: begin(anna, lines(1)),
        ):
            with pytest.raises(openai.AuthenticationError):
                call()
        time.sleep(0.3)
        assert 0 < len(engine.asked) == asked < 200
    journal = (tmp_path / "batch" / "batches" / batch.id / "errors.jsonl").read_text()
    assert "not in use any more" in journal


def begin_with(api: Any, file: str) -> Any:
    return api.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([FILE, *[b"x" * 100_000] * 2000], 413),  # a file that does not end
        ([b"--b\r\n", *[b"x" * 100_000] * 2000], 400),  # nor a header
        ([b"x" * 100_000] * 2000, 400),  # nor what stands before the form
        ([b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n', *[b"x" * 100_000] * 2000], 400),
        ([b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'] * 3000, 400),
        ([FILE + b"x\r\n"] * 3000, 400),
        ([b"--b\r\n", *[b"A: b\r\n"] * 3000], 400),
    ],
)
def test_an_upload_that_does_not_end_stops_at_its_limit(tmp_path: Path, parts: list[bytes], status: int) -> None:
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for part in parts:
            sent += len(part)
            yield part

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with live(tmp_path) as (address, gateway):
        gateway.config = gateway.config.model_copy(
            update={"batch": gateway.config.batch.model_copy(update={"file_mb": 1.0})}
        )
        reply = httpx.post(f"{address}/v1/files", content=body(), headers=headers, timeout=HANG)
        assert reply.status_code == status and reply.json()["error"]["message"], reply.text
        assert sent < 100_000_000 and not list((tmp_path / "batch").rglob("file-*"))
        assert httpx.post(f"{address}/v1/files", content=b"x" * 2_000_000, headers=headers).status_code == 413
        assert httpx.get(f"{address}/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"endpoint": "/v1/completions", "completion_window": "soon"}, "completion_window"),
        ({"endpoint": "/v1/completions", "metadata": 3}, "metadata"),
        ({"endpoint": "/v1/completions", "metadata": {"a": "x" * 1000}}, "metadata"),
        ({"endpoint": "/v1/completions", "metadata": {f"{i}": "" for i in range(17)}}, "metadata"),
        ({"endpoint": "/v1/completions"}, "input_file_id"),
        ({"endpoint": "/v1/completions", "input_file_id": "../x"}, "No such file"),
    ],
)
def test_bad_batches_are_refused(tmp_path: Path, body: dict[str, Any], says: str) -> None:
    with live(tmp_path) as (address, _):
        reply = httpx.post(f"{address}/v1/batches", json=body)
        assert reply.status_code in (400, 404) and says in reply.json()["error"]["message"]
        assert httpx.post(f"{address}/v1/files", content=b"x").status_code == 400


# --- poison


def request(name: Any, **body: Any) -> str:
    body = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body})


def results(api: Any, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in api.files.content(file).text.splitlines()] if file else []


POISON = [
    request("huge", max_tokens=10**400),
    request("minus", max_tokens=-1),
    request("half", max_tokens=1.5),
    request("inf", max_tokens="X").replace('"X"', "1e999"),
    request("minus-inf", temperature="X").replace('"X"', "-1e999"),
    request("seed", seed=10**30, temperature=[1]),
    request("n", n=10**9),
    request("format", response_format={"type": "json_schema", "json_schema": {"schema": 5}}),
    request("user", user="\ud800"),
    request("nul", user="a\0b" * 300),
    request("nobody", model="no such model"),
    request("turns", messages=[]),
    request("deep", metadata="X").replace('"X"', "[" * 5000 + "]" * 5000),
    request("long", messages=[{"role": "user", "content": "x " * 6_000_000}]),
    request("i" * 1_000_000),
    request(None),
    request("good"),
    "x" * 12_000_000,
]


def test_poison_lines_cost_themselves_only(tmp_path: Path) -> None:
    data = "\n".join([request("good"), *POISON, request("last")]).encode()
    with live(tmp_path) as (address, _):
        api = client(address)
        done = waited(api, begin(api, data))
        assert done.status == "completed"
        assert [result["custom_id"] for result in results(api, done.output_file_id)] == ["good", "last"]
        errors = results(api, done.error_file_id)
        assert len(errors) == len(POISON) == done.request_counts.failed
        for item in errors:
            error = item["error"] or item["response"]["body"]["error"]
            assert error["code"] or error["param"], item
            assert 3 < len(error["message"]) < 500
        api.files.delete(done.output_file_id)
        with pytest.raises(openai.NotFoundError):
            api.files.content(done.output_file_id)


def test_an_error_in_our_own_code_ends_one_row_and_one_in_the_batch_no_other_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> Any:
        raise RecursionError("deep")

    with live(tmp_path) as (address, _):
        api = client(address)
        monkeypatch.setattr("tuneloop.serving.http.api_request.as_messages", odd)
        done = waited(api, begin(api, lines(3)))
        assert (done.status, done.request_counts.failed) == ("completed", 3)
        assert {result["error"]["code"] for result in results(api, done.error_file_id)} == {"server"}
        monkeypatch.undo()
        monkeypatch.setattr("tuneloop.serving.batch.file.BatchFile.waiting", odd)
        failed = waited(api, begin(api, lines(3)))
        assert failed.status == "failed" and "RecursionError" in failed.errors.data[0].message
        monkeypatch.undo()
        assert waited(api, begin(api, lines(3))).status == "completed"


@pytest.mark.parametrize("data", [b"", b"\n\n \n"])
def test_a_file_without_requests_fails_as_a_whole(tmp_path: Path, data: bytes) -> None:
    with live(tmp_path) as (address, _):
        api = client(address)
        failed = waited(api, begin(api, data))
        assert failed.status == "failed" and failed.errors.data[0].code == "empty_file"
        with pytest.raises(openai.ConflictError):
            api.batches.cancel(failed.id)


# --- rates, cancels


def test_a_batch_that_meets_its_own_rate_loses_no_row(tmp_path: Path) -> None:
    with live(tmp_path) as (address, _):
        api = client(address, add_key(tmp_path, "anna", Limits(rpm=120))[0])
        data = "\n".join(request(f"id-{i}") for i in range(126)).encode()
        done = waited(api, begin(api, data))
        assert (done.status, done.request_counts.completed) == ("completed", 126)


def test_a_cancel_is_kept_in_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.serving.batch.file.STEP", 0.0)  # so the file of 3,000 lines takes 3,000 steps
    with live(tmp_path) as (address, _):
        api = client(address)
        batch = begin(api, "\n".join(request(f"id-{i}") for i in range(3000)).encode())
        assert batch.status == "validating"
        cancelled = api.batches.cancel(batch.id)
        assert cancelled.status in ("cancelling", "cancelled")
        cancelled = waited(api, cancelled)
        assert (cancelled.status, cancelled.request_counts.completed) == ("cancelled", 0)
        assert api.batches.cancel(batch.id).status == "cancelled", "a second cancel changes nothing"
        batch = begin(api, lines(3000))
        api.batches.cancel(batch.id)
    with live(tmp_path) as (address, _):
        api = client(address)
        assert waited(api, api.batches.retrieve(batch.id)).status == "cancelled"


def test_the_server_answers_while_a_large_file_is_checked(tmp_path: Path) -> None:
    data = b"".join(b'{"custom_id":"%d","body":{"prompt":"a"}}\n' % i for i in range(500_000))
    with live(tmp_path, StubEngine(pause=0.05)) as (address, _):
        api, slowest, checks = client(address), 0.0, 0
        file = api.files.create(file=("in.jsonl", data), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        while batch.status == "validating":
            began = time.monotonic()
            assert httpx.get(f"{address}/healthz").status_code == 200
            slowest, checks = max(slowest, time.monotonic() - began), checks + 1
            batch = api.batches.retrieve(batch.id)
        assert checks > 3 and slowest < 1.0
        api.batches.cancel(batch.id)


# --- uploads and limits

FORM = {"content-type": "multipart/form-data; boundary=edge"}
HEAD = b'--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--edge\r\n'
FILE = b'Content-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'


def stored(folder: Path) -> list[str]:
    return [path.name for path in (folder / "batch" / "files").glob("*")]


def test_an_endless_upload_ends_at_the_limit_and_leaves_nothing(tmp_path: Path) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield HEAD + FILE
        while sent < 500_000_000:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    with live(tmp_path, batch={"file_mb": 2}) as (address, _):
        reply = httpx.post(f"{address}/v1/files", content=endless(), headers=FORM)
        assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"
        assert sent < 100_000_000 and stored(tmp_path) == []
        for wrong in (
            b"--edge\r\nContent-Disposition: form-data; name=x\r\n\r\n" + b"y" * 100_000,
            b"z" * 5_000_000,
            HEAD,
        ):
            reply = httpx.post(f"{address}/v1/files", content=wrong, headers=FORM)
            assert reply.status_code in (400, 413) and reply.json()["error"]["message"]
        two = HEAD + FILE + b"a\r\n--edge\r\n" + FILE + b"b\r\n--edge--\r\n"
        assert httpx.post(f"{address}/v1/files", content=two, headers=FORM).status_code == 400
        cut = HEAD + FILE + b'{"custom_id": "a"}\r\n--edge'
        assert httpx.post(f"{address}/v1/files", content=cut, headers=FORM).status_code == 400
        assert stored(tmp_path) == []
        whole = HEAD + FILE + lines(1) + b"\r\n--edge--\r\n"
        reply = httpx.post(f"{address}/v1/files", content=whole, headers=FORM)
        assert reply.json()["bytes"] == len(lines(1)) and len(stored(tmp_path)) == 2
        path = next((tmp_path / "batch" / "files").glob("*.jsonl"))
        assert path.read_bytes() == lines(1) and path.stat().st_mode & 0o077 == 0
        assert (tmp_path / "batch" / "files").stat().st_mode & 0o077 == 0
        for headers, status in (
            ({"content-type": "text/plain"}, 400),
            ({**FORM, "authorization": "Bearer tl-no"}, 401),
        ):
            if status == 401:
                add_key(tmp_path, "anna")
            sent = 0
            reply = httpx.post(f"{address}/v1/files", content=endless(), headers=headers)
            assert reply.status_code == status and sent < 100_000_000


def test_a_client_that_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with live(tmp_path) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as wire:
            head = f"POST /v1/files HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {FORM['content-type']}\r\n"
            wire.sendall(head.encode() + b"Content-Length: 90000000\r\n\r\n" + HEAD + FILE + b"x" * 3_000_000)
            end = time.monotonic() + 10
            while not stored(tmp_path) and time.monotonic() < end:
                time.sleep(0.02)
            assert stored(tmp_path)[0].endswith(".part")
        while stored(tmp_path) and time.monotonic() < end:
            time.sleep(0.02)
        assert stored(tmp_path) == []
    (tmp_path / "batch" / "files" / ("file-" + "0" * 32 + ".part")).write_text("of a server that was killed")
    with live(tmp_path):
        assert stored(tmp_path) == []


WHOLE = HEAD + FILE + b'{"custom_id": "a"}\r\n--edge--\r\n'


@given(
    st.binary(max_size=200)
    | st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=20), st.integers(0, len(WHOLE))).map(
        lambda cut: WHOLE[: cut[0]] + cut[1] + WHOLE[cut[2] :]
    ),
    st.integers(1, 40),
    st.sampled_from(
        [
            FORM["content-type"],
            "multipart/form-data; boundary=",
            "text/plain",
            "",
            'multipart/form-data; boundary="\xe9',
        ]
    ),
)
def test_no_bytes_of_a_form_raise_anything_else(body: bytes, size: int, kind: str) -> None:
    out = io.BytesIO()
    with contextlib.suppress(ApiError):
        form = _Form(kind, out)
        for i in range(0, len(body), size):
            form.take(body[i : i + size])
        with contextlib.suppress(io.UnsupportedOperation):  # it is synced at the end
            form.end()
        assert form.size == len(out.getvalue())


def test_each_key_has_limits(tmp_path: Path) -> None:
    limits = {"most_gb": 0.001, "most_open": 2, "most_rows": 90, "rows": 1}
    with live(tmp_path, StubEngine(pause=0.2), batch=limits) as (address, _):
        anna, ben = (client(address, add_key(tmp_path, name)[0]) for name in ("anna", "ben"))
        api = anna.files
        big = api.create(file=("in.jsonl", b"x" * 700_000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            api.create(file=("in.jsonl", b"x" * 400_000), purpose="batch")
        assert caught.value.status_code == 413 and "delete files" in str(caught.value)
        assert caught.value.code == "storage_limit"
        ben.files.create(file=("in.jsonl", b"x" * 400_000), purpose="batch")
        api.delete(big.id)
        first, second = begin(anna, lines(60)), begin(anna, lines(91))
        second = waited(anna, second)
        assert second.status == "failed" and second.errors.data[0].code == "too_many_rows"
        third = waited(anna, begin(anna, lines(40)))
        assert third.status == "failed" and "wait in other batches" in third.errors.data[0].message
        begin(anna, lines(10))
        with pytest.raises(openai.RateLimitError, match="not over yet"):
            begin(anna, lines(1))
        begin(ben, lines(1))
        anna.batches.cancel(first.id)
        waited(anna, first)
        begin(anna, lines(1))


# --- damage, owners

DAMAGE = [b"", b"{", b'{"version": 1', b"\xff\xfe\x00", b"[]", b"null", b'"text"', b"{}", b'{"version": 1}']


def test_a_damaged_state_is_a_line_and_keeps_nothing_from_working(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with live(tmp_path, log={"content": "full"}) as (address, _):
        api = client(address)
        waiting = [begin(api, lines(20)) for _ in range(len(DAMAGE) + 6)]
        files = [api.files.create(file=("in.jsonl", lines(1)), purpose="batch") for _ in range(3)]
    folders = [tmp_path / "batch" / "batches" / item.id for item in waiting]
    whole = json.loads((folders[0] / "batch.json").read_text()) | {"status": "in_progress"}
    types = [whole | {"status": 5}, whole | {"request_counts": None}, whole | {"created_at": "noon"}]
    damage = [*DAMAGE, *(json.dumps(item).encode() for item in types)]
    for folder, data in zip(folders, damage, strict=False):
        (folder / "batch.json").write_bytes(data)
    (folders[-3] / "batch.json").unlink()
    (folders[-2] / "batch.json").unlink()
    (folders[-2] / "batch.json").mkdir()
    state = whole | {"id": folders[-1].name}
    (folders[-1] / "batch.json").write_text(json.dumps(state))
    (folders[-1] / "journal.jsonl").write_bytes(b"no\njournal\n")
    for file, data in zip(files, (b"", b"[]", b"\xff"), strict=True):
        (tmp_path / "batch" / "files" / f"{file.id}.json").write_bytes(data)
    capsys.readouterr()
    with live(tmp_path, log={"content": "full"}) as (address, _):
        api = client(address)
        said = [line for line in capsys.readouterr().out.splitlines() if "is left out" in line]
        assert len(said) == len(folders) - 1 and all("missing or damaged" in item for item in said)
        assert waited(api, begin(api, lines(3))).status == "completed"
        for folder in folders[:-1]:
            with pytest.raises(openai.InternalServerError, match="missing or damaged"):
                api.batches.retrieve(folder.name)
        failed = waited(api, api.batches.retrieve(folders[-1].name))
        assert failed.status == "failed" and "journal" in failed.errors.data[0].message
        assert str(tmp_path) not in failed.errors.data[0].message
        assert len(api.batches.list().data) == 2
        assert not {file.id for file in files} & {item.id for item in api.files.list()}


def test_a_new_key_of_the_same_name_is_somebody_else(tmp_path: Path) -> None:
    with live(tmp_path) as (address, _):
        old = client(address, add_key(tmp_path, "anna")[0])
        batch = waited(old, begin(old, lines(3)))
        revoke_key(tmp_path, "anna")
        new = client(address, add_key(tmp_path, "anna")[0])
        for call in (
            lambda: new.batches.retrieve(batch.id),
            lambda: new.batches.cancel(batch.id),
            lambda: new.files.content(batch.output_file_id),
            lambda: new.files.delete(batch.output_file_id),
            lambda: new.files.delete(batch.input_file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert new.batches.list().data == [] == new.files.list().data


# --- a full disk


def test_a_batch_continues_once_the_disk_has_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    engine = StubEngine(pause=0.005)
    filler = disk / "filler"
    try:
        with live(disk / "serve", engine) as (address, gateway):
            api = client(address)
            batch = begin(api, "\n".join(request(f"id-{i}") for i in range(300)).encode())
            while not api.batches.retrieve(batch.id).request_counts.completed:
                time.sleep(0.05)
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 20, 1 << 12):
                    try:
                        while file.write(b"x" * size) == size:
                            pass
                    except OSError:
                        pass
            until = time.monotonic() + 10
            while not (paused := api.batches.retrieve(batch.id)).paused and time.monotonic() < until:
                time.sleep(0.05)
            assert "disk is full" in paused.paused and paused.status == "in_progress"
            with pytest.raises(openai.APIStatusError) as caught:
                api.files.create(file=("in.jsonl", b"x" * 500_000), purpose="batch")
            assert caught.value.status_code == 507 and caught.value.code == "disk_full"
            time.sleep(1.5)
            filler.unlink()
            done = waited(api, batch)
            assert gateway.store.counts.losses == 0
            assert (done.status, done.request_counts.completed, done.paused) == ("completed", 300, None)
            names = [result["custom_id"] for result in results(api, done.output_file_id)]
            assert names == [f"id-{i}" for i in range(300)] and len(engine.asked) == 300
        with opened(disk / "serve") as store:
            assert len(list(read_requests(store))) == 300, "the store lost what it could not write"
        said = [line for line in capsys.readouterr().out.splitlines() if "disk" in line]
        assert len(said) == 2, said
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
