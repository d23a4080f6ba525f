"""OpenAI's batch API: its own client uploads, waits, reads results and cancels; nobody sees another key's files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import StubEngine, live

from tuneloop.core.files import read_json
from tuneloop.serve.keys import add_key, revoke_key

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
    return "".join(json.dumps(each) + "\n" for each in made).encode()


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
        output = [json.loads(each) for each in api.files.content(done.output_file_id).text.splitlines()]
        assert [each["custom_id"] for each in output] == [f"id-{i}" for i in range(10) if i != 3]
        assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == "Hello there."
        (wrong,) = [json.loads(each) for each in api.files.content(done.error_file_id).text.splitlines()]
        assert wrong["custom_id"] == "id-3" and wrong["response"]["body"]["error"]["code"] == "model_not_found"
        assert [each.id for each in api.batches.list()] == [done.id]
        api.files.delete(done.input_file_id)
        assert [each.id for each in api.files.list()] == []
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
        output = [json.loads(each)["custom_id"] for each in api.files.content(second.output_file_id).text.splitlines()]
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
def test_an_upload_that_does_not_end_stops_at_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], status: int
) -> None:
    monkeypatch.setattr("tuneloop.serve.batch_api.MOST_FILE_MB", 1.0)
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for part in parts:
            sent += len(part)
            yield part

    headers = {"content-type": "multipart/form-data; boundary=b"}
    with live(tmp_path) as (address, _):
        reply = httpx.post(f"{address}/v1/files", content=body(), headers=headers, timeout=30)
        assert reply.status_code == status and reply.json()["error"]["message"], reply.text
        assert sent < 20_000_000 and not list((tmp_path / "batch").rglob("file-*"))
        assert httpx.post(f"{address}/v1/files", content=b"x" * 2_000_000, headers=headers).status_code == 413
        assert httpx.get(f"{address}/v1/files").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"endpoint": "/v1/completions", "completion_window": "soon"}, "completion_window"),
        ({"endpoint": "/v1/completions", "metadata": 3}, "metadata"),
        ({"endpoint": "/v1/completions"}, "No such file"),
        ({"endpoint": "/v1/completions", "input_file_id": "../x"}, "No such file"),
    ],
)
def test_bad_batches_are_refused(tmp_path: Path, body: dict[str, Any], says: str) -> None:
    with live(tmp_path) as (address, _):
        reply = httpx.post(f"{address}/v1/batches", json=body)
        assert reply.status_code in (400, 404) and says in reply.json()["error"]["message"]
        assert httpx.post(f"{address}/v1/files", content=b"x").status_code == 400
