"""Batches: each request is answered exactly once, whatever is killed and whenever."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from by_day import by_day
from live_server import StubEngine, live

from patience import HANG
from places import ROOT
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json
from tuneloop.core.ui import reporting
from tuneloop.serving.batch import batch as module
from tuneloop.serving.batch.batch import ERRORS, INPUT, JOURNAL, OUTPUT, STATE, BatchJob, make_batch
from tuneloop.serving.batch.file import Line
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.store.store import opened, read_requests

CHAT = "/v1/chat/completions"


def line(name: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": str(name)}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body, **fields}


def new(folder: Path, lines: list[Any], seconds: float | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [item if isinstance(item, str) else json.dumps(item) for item in lines]
    (folder / INPUT).write_text("\n".join(texts) + "\n")
    make_batch(folder, CHAT, seconds=seconds)
    return folder


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(item) for item in (folder / name).read_text().splitlines()]


async def echo(item: Line) -> dict[str, Any]:
    await asyncio.sleep(0)
    assert item.body is not None
    return {"id": f"r{item.number}", "said": item.body["messages"][0]["content"]}


def test_each_line_stands_once_in_output_or_errors(tmp_path: Path) -> None:
    wrong = [
        "{", "[1]", '{"custom_id": "nan", "body": NaN}', line(None), line(""), line("a"), line("u", url="/v1/x"),
        line("b", body=3),
    ]  # fmt: skip
    folder = new(tmp_path, [line("a"), *wrong, "", line("z")])
    batch = BatchJob(folder, echo)
    assert asyncio.run(batch.run()) == "completed"
    good, bad = results(folder, OUTPUT), results(folder, ERRORS)
    assert [item["custom_id"] for item in good] == ["a", "z"]
    assert good[1]["response"]["body"]["said"] == "z" and good[1]["response"]["status_code"] == 200
    assert Counter(item["error"]["code"] for item in bad) == {
        "invalid_json_line": 3, "missing_custom_id": 2, "duplicate_custom_id": 1, "invalid_url": 1, "invalid_body": 1
    }  # fmt: skip
    names = [item["custom_id"] for item in good + bad if item["custom_id"]]
    assert len(names) == len(set(names))
    assert batch.state.request_counts.to_json() == {"total": 10, "completed": 2, "failed": 8}
    assert asyncio.run(BatchJob(folder, echo).run()) == "completed", "a batch that is over is not done again"


def test_refusals_are_kept_and_failures_tried_again(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    async def answer(item: Line) -> dict[str, Any]:
        tries[item.custom_id or ""] += 1
        if item.custom_id == "never":
            raise ApiError(404, "no such model", code="model_not_found")
        if tries[item.custom_id or ""] < 3:
            raise ApiError(503, "the engine died", code="engine")
        return await echo(item)

    folder = new(tmp_path, [line("never"), line("later")])
    assert asyncio.run(BatchJob(folder, answer, pause=0.001).run()) == "completed"
    assert tries == {"never": 1, "later": 3}
    (refused,) = results(folder, ERRORS)
    assert (
        refused["response"]["status_code"] == 404 and refused["response"]["body"]["error"]["code"] == "model_not_found"
    )


def test_a_cancelled_and_an_expired_batch_keep_what_is_done(tmp_path: Path) -> None:
    for name, end in (("c", "cancelled"), ("e", "expired")):
        folder = new(tmp_path / name, [line(str(i)) for i in range(10)], seconds=3600)
        batch = BatchJob(folder, echo, rows=1)

        async def answer(item: Line, batch: BatchJob = batch, end: str = end) -> dict[str, Any]:
            if item.number == 4:
                if end == "cancelled":
                    await batch.cancel()
                else:
                    batch.steady = lambda: time.monotonic() + 7200
            return await echo(item)

        batch.answer = answer
        assert asyncio.run(batch.run()) == end
        assert len(results(folder, OUTPUT)) == 4 and len(results(folder, ERRORS)) == 6
        assert {result["error"]["code"] for result in results(folder, ERRORS)} == {f"batch_{end}"}


def test_rows_give_way_while_others_wait(tmp_path: Path) -> None:
    async def go() -> None:
        free = asyncio.Event()
        folder = new(tmp_path, [line(str(i)) for i in range(5)])
        batch = BatchJob(folder, echo, room=lambda: free.wait())  # type: ignore[arg-type,return-value]
        task = asyncio.create_task(batch.run())
        await asyncio.sleep(0.1)
        assert (folder / JOURNAL).read_bytes() == b""
        free.set()
        assert await asyncio.wait_for(task, 10) == "completed"

    asyncio.run(go())


def do_in_a_child(folder: Path, life: str, notes: Path | None = None) -> int:
    """Run the batch in a process of its own, which writes down what it begins; returns the process's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        begun = os.open((notes or folder) / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        async def answer(item: Line) -> dict[str, Any]:
            os.write(begun, f"{life} {item.number}\n".encode())
            await asyncio.sleep(random.uniform(0.001, 0.01))
            return {"id": "r", "said": item.custom_id, "long": "x" * 3000}

        status = 0 if asyncio.run(BatchJob(folder, answer, rows=8).run()) == "completed" else 1
    finally:
        os._exit(status)


def began(folder: Path) -> int:
    """Size of the file that names what was begun."""
    return (folder / "begun").stat().st_size if (folder / "begun").exists() else 0


def test_twenty_kills_lose_nothing_and_repeat_nothing_that_was_done(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = new(tmp_path, [line(f"id-{i}") for i in range(6000)])
    done_before: dict[str, set[int]] = {}
    kills = 0
    for life in map(str, range(60)):
        raw = (folder / JOURNAL).read_bytes() if (folder / JOURNAL).exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1].splitlines()
        done_before[life] = {json.loads(item)["number"] for item in whole}
        child = do_in_a_child(folder, life)
        if kills < 20:
            if kills % 2:  # else at any time, so also before anything is begun
                size, until = began(folder), time.monotonic() + 20
                while began(folder) == size and time.monotonic() < until:
                    time.sleep(0.002)
            time.sleep(draw.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            assert status == 0
            break
    assert kills == 20
    good = results(folder, OUTPUT)
    assert [item["custom_id"] for item in good] == [f"id-{i}" for i in range(6000)]
    assert (folder / ERRORS).read_bytes() == b""
    begun = [text.split() for text in (folder / "begun").read_text().splitlines()]
    assert len({life for life, _ in begun}) >= 10, "the kills came before anything was begun"
    assert [item for item in begun if int(item[1]) in done_before[item[0]]] == []


# --- nothing that one request does ends the others


def test_what_our_own_code_raises_is_the_error_of_its_row(tmp_path: Path) -> None:
    said: list[str] = []
    raised = {"1": OverflowError("int too large"), "3": RecursionError(), "5": AssertionError("no"), "7": MemoryError()}

    async def answer(item: Line) -> dict[str, Any]:
        if (error := raised.get(item.custom_id or "")) is not None:
            raise error
        if item.custom_id == "8":
            return {"id": "r", "odd": object()}  # can't be written
        if item.custom_id == "9":
            return ["no object"]  # type: ignore[return-value]
        return await echo(item)

    folder = new(tmp_path, [line(f"{i}") for i in range(12)])
    with reporting(say=said.append):
        assert asyncio.run(BatchJob(folder, answer).run()) == "completed"
    assert [result["custom_id"] for result in results(folder, OUTPUT)] == ["0", "2", "4", "6", "10", "11"]
    errors = results(folder, ERRORS)
    assert [error["custom_id"] for error in errors] == ["1", "3", "5", "7", "8", "9"]
    assert all(error["error"]["code"] == "server" and error["error"]["message"] for error in errors)
    assert len(said) == 1 and "OverflowError" in said[0], "a million rows that fail are not a million lines of log"


def test_an_answer_that_never_comes_is_the_error_of_its_row(tmp_path: Path) -> None:
    async def answer(item: Line) -> dict[str, Any]:
        if item.custom_id in ("1", "2", "3", "4"):
            await asyncio.sleep(3600)
        return await echo(item)

    folder = new(tmp_path, [line(f"{i}") for i in range(20)])
    assert asyncio.run(asyncio.wait_for(BatchJob(folder, answer, longest=0.3).run(), 20)) == "completed"
    assert len(results(folder, OUTPUT)) == 16
    assert [result["error"]["code"] for result in results(folder, ERRORS)] == ["timeout"] * 4


def test_what_ends_all_work_is_no_error_of_a_row(tmp_path: Path) -> None:
    async def lost(item: Line) -> dict[str, Any]:
        if item.number > 5:
            raise UserError("All actors are lost")
        return await echo(item)

    folder = new(tmp_path, [line(f"{i}") for i in range(20)])
    with pytest.raises(UserError, match="actors"):
        asyncio.run(BatchJob(folder, lost, fatal=(UserError,)).run())
    assert asyncio.run(BatchJob(folder, echo).run()) == "completed"
    assert len(results(folder, OUTPUT)) == 20


def test_a_refusal_travels_between_processes() -> None:
    """As from an actor to the batch that asked it."""
    error = pickle.loads(pickle.dumps(ApiError(429, "slowly", code="x", param="y", headers={"Retry-After": "3"})))
    assert (error.status, error.message, error.code, error.param) == (429, "slowly", "x", "y")
    assert error.headers == {"Retry-After": "3"}


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    async def answer(item: Line) -> dict[str, Any]:
        return {"id": "r", "logprob": float("-inf"), "other": float("nan")}

    folder = new(tmp_path, [line("a")])
    assert asyncio.run(BatchJob(folder, answer).run()) == "completed"
    assert results(folder, OUTPUT)[0]["response"]["body"] == {"id": "r", "logprob": None, "other": None}


def test_a_file_that_became_shorter_does_not_hold_the_batch(tmp_path: Path) -> None:
    folder = new(tmp_path, [line(f"{i}") for i in range(500)])

    async def answer(item: Line) -> dict[str, Any]:
        if item.number == 1:
            (folder / INPUT).write_text("")
        return await echo(item)

    batch = BatchJob(folder, answer)
    assert asyncio.run(asyncio.wait_for(batch.run(), 20)) == "failed"
    assert "became shorter" in str(batch.state.errors)


# --- rates


def test_a_rate_that_is_used_up_costs_no_row(tmp_path: Path) -> None:
    """Two requests a fifth of a second, each refusal with the time to wait; a row would fail for good after five tries."""
    taken: list[float] = []
    refused: Counter[int] = Counter()
    at_work, most = 0, 0

    async def answer(item: Line) -> dict[str, Any]:
        nonlocal at_work, most
        now = time.monotonic()
        if len([at for at in taken if at > now - 0.2]) >= 2:
            refused[item.number] += 1
            raise ApiError(429, "slowly", code="rate_limit_exceeded", headers={"Retry-After": "0.2"})
        taken.append(now)
        at_work, most = at_work + 1, max(most, at_work + 1)
        await asyncio.sleep(0.001)
        at_work -= 1
        return await echo(item)

    folder = new(tmp_path, [line(f"{i}") for i in range(40)])
    assert asyncio.run(asyncio.wait_for(BatchJob(folder, answer, rows=8).run(), 60)) == "completed"
    assert len(results(folder, OUTPUT)) == 40 == len(taken) and sum(refused.values()) > 8
    assert sum(refused.values()) < 40, "fewer are asked at the same time once a rate is used up"


def test_a_refusal_without_a_time_is_asked_later_and_later(tmp_path: Path) -> None:
    asked: list[float] = []

    async def answer(item: Line) -> dict[str, Any]:
        asked.append(time.monotonic())
        if len(asked) < 8:
            raise ApiError(429, "slowly", code="rate_limit_exceeded")
        return await echo(item)

    folder = new(tmp_path, [line("a")])
    assert asyncio.run(BatchJob(folder, answer, pause=0.01).run()) == "completed"
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert len(gaps) == 7 and gaps[6] > 0.3 and gaps[6] > 3 * gaps[2]


def test_a_row_that_is_always_refused_holds_up_no_other_and_ends_with_the_window(tmp_path: Path) -> None:
    async def answer(item: Line) -> dict[str, Any]:
        if item.number == 1:
            raise ApiError(429, "too large for the rate", code="rate_limit_exceeded", headers={"Retry-After": "0.05"})
        return await echo(item)

    folder = new(tmp_path, [line(f"{i}") for i in range(30)], seconds=2)
    batch = BatchJob(folder, answer)
    assert asyncio.run(asyncio.wait_for(batch.run(), 20)) == "expired"
    assert len(results(folder, OUTPUT)) == 29
    assert [result["error"]["code"] for result in results(folder, ERRORS)] == ["batch_expired"]


def test_a_batch_without_a_window_waits_a_day_and_no_longer(tmp_path: Path) -> None:
    async def answer(item: Line) -> dict[str, Any]:
        raise ApiError(429, "slowly", code="rate_limit_exceeded", headers={"Retry-After": "90000"})

    folder = new(tmp_path, [line("a")])
    assert asyncio.run(asyncio.wait_for(BatchJob(folder, answer).run(), 10)) == "completed"
    assert results(folder, ERRORS)[0]["response"]["status_code"] == 429


def test_a_budget_that_is_spent_is_no_rate(tmp_path: Path) -> None:
    async def answer(item: Line) -> dict[str, Any]:
        raise ApiError(429, "spent", code="insufficient_quota")

    folder = new(tmp_path, [line("a"), line("b")])
    assert asyncio.run(asyncio.wait_for(BatchJob(folder, answer).run(), 10)) == "completed"
    assert len(results(folder, ERRORS)) == 2


# --- cancelling


async def run_until(batch: BatchJob, then: Callable[[], bool], do: Callable[[], Coroutine[Any, Any, None]]) -> str:
    """Run a batch, and do something once something holds."""
    task = asyncio.create_task(batch.run())
    while not then() and not task.done():
        await asyncio.sleep(0)
    await do()
    return await asyncio.wait_for(task, 20)


def test_a_cancel_while_the_file_is_checked_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneloop.serving.batch.file.STEP", 0.0)
    folder = new(tmp_path, [line(f"{i}") for i in range(500)])
    batch = BatchJob(folder, echo)
    assert asyncio.run(run_until(batch, lambda: batch.file.total > 10, batch.cancel)) == "cancelled"
    assert not (folder / JOURNAL).exists() and read_json(folder / STATE)["status"] == "cancelled"


def test_a_cancel_is_kept_through_a_kill(tmp_path: Path) -> None:
    folder = new(tmp_path, [line(f"{i}") for i in range(50)])
    asyncio.run(BatchJob(folder, echo).cancel())  # and its process is killed before anything else
    assert read_json(folder / STATE)["status"] == "cancelling"
    assert asyncio.run(BatchJob(folder, echo).run()) == "cancelled"

    folder = new(tmp_path / "b", [line(f"{i}") for i in range(50)])
    batch = BatchJob(folder, echo, rows=1)

    async def killed() -> None:
        await batch.cancel()
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run_until(batch, lambda: batch.file.counts[1] > 5, killed))
    assert read_json(folder / STATE)["status"] == "cancelling"
    begun: list[int] = []

    async def answer(item: Line) -> dict[str, Any]:
        begun.append(item.number)
        return await echo(item)

    assert asyncio.run(BatchJob(folder, answer).run()) == "cancelled" and not begun
    done = len(results(folder, OUTPUT))
    assert 5 < done < 50 and len(results(folder, ERRORS)) == 50 - done


def test_a_cancel_while_results_are_written_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 0.0)
    folder = new(tmp_path, [line(f"{i}") for i in range(300)])
    batch = BatchJob(folder, echo)
    finalizing = lambda: batch.state.status == "finalizing"  # noqa: E731
    assert asyncio.run(run_until(batch, finalizing, batch.cancel)) == "cancelled"
    assert len(results(folder, OUTPUT)) == 300 and batch.state.request_counts.completed == 300


def test_a_cancel_ends_a_batch_whose_engine_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.3)
    folder = new(tmp_path, [line(f"{i}") for i in range(10)])
    hangs = asyncio.Event()

    async def answer(item: Line) -> dict[str, Any]:
        if item.number == 3:
            hangs.set()
            await asyncio.sleep(3600)
        return await echo(item)

    batch = BatchJob(folder, answer)

    async def twice() -> None:
        await batch.cancel()
        at = batch.state.cancelling_at
        await batch.cancel()
        assert batch.state.cancelling_at == at

    assert asyncio.run(run_until(batch, hangs.is_set, twice)) == "cancelled"
    assert "2" not in {result["custom_id"] for result in results(folder, OUTPUT)}


def test_a_cancel_ends_a_batch_that_waits_for_room_or_for_a_rate(tmp_path: Path) -> None:
    async def refused(item: Line) -> dict[str, Any]:
        raise ApiError(429, "slowly", headers={"Retry-After": "3000"})

    async def never() -> None:
        await asyncio.sleep(3600)

    for name, more in (("a", {"room": never, "answer": echo}), ("b", {"answer": refused})):
        folder = new(tmp_path / name, [line(f"{i}") for i in range(10)], seconds=86400)
        batch = BatchJob(folder, **more)  # type: ignore[arg-type]
        began = time.monotonic()
        later = began + 0.5
        status = asyncio.run(run_until(batch, lambda until=later: time.monotonic() > until, batch.cancel))  # type: ignore[misc]
        assert status == "cancelled" and time.monotonic() - began < 10


# --- a full disk


def test_a_full_disk_pauses_a_batch_wherever_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files is met like a full disk, first by the journal, then by the output."""
    said: list[str] = []
    asked: Counter[int] = Counter()
    folder = new(tmp_path, [line(f"{i}") for i in range(20)])
    write, replacing = os.write, module.replacing
    full = {"journal": True, "output": True}

    def short(to: int, data: bytes) -> int:
        if full["journal"] and b'"number":7' in data:
            write(to, data[:10])  # the beginning still fits
            return 10
        return write(to, data)

    @contextlib.contextmanager
    def no_room(path: Path) -> Any:
        if full["output"]:
            with replacing(path):
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
        with replacing(path) as file:
            yield file

    async def answer(item: Line) -> dict[str, Any]:
        asked[item.number] += 1
        return await echo(item)

    monkeypatch.setattr("tuneloop.serving.batch.file.os.write", short)
    monkeypatch.setattr(module, "replacing", no_room)
    with reporting(say=said.append):
        batch = BatchJob(folder, answer, full_pause=0.02)

        async def make_room() -> None:
            for count, message in enumerate(full, 1):
                while sum("waits" in item for item in said) < count:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
                full[message] = False

        async def both() -> str:
            return (await asyncio.gather(batch.run(), make_room()))[0]

        assert asyncio.run(asyncio.wait_for(both(), 20)) == "completed"
        assert [result["custom_id"] for result in results(folder, OUTPUT)] == [f"{i}" for i in range(20)]
        assert set(asked.values()) == {1}, "what is answered waits in memory, and is not asked again"
        assert ["waits" in item for item in said] == [True, False, True, False]
        numbers = [json.loads(item)["number"] for item in (folder / JOURNAL).read_bytes().splitlines()]
        assert sorted(numbers) == list(range(1, 21))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 8 MB."""
    import subprocess

    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_is_full_for_some_lives_costs_nothing(small_disk: Path) -> None:
    """Two kills while it waits; then there is room, and each row has one answer."""
    folder = new(small_disk / "b", [line(f"id-{i}") for i in range(500)])
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for size in (7 << 20, 1 << 12, 64):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    for _ in range(2):
        child = do_in_a_child(folder, "full", small_disk.parent)
        time.sleep(1.5)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it waits"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    child = do_in_a_child(folder, "room", small_disk.parent)
    time.sleep(0.5)
    filler.unlink()
    assert os.waitpid(child, 0)[1] == 0
    assert [result["custom_id"] for result in results(folder, OUTPUT)] == [f"id-{i}" for i in range(500)]
    numbers = [json.loads(item)["number"] for item in (folder / JOURNAL).read_bytes().splitlines()]
    assert sorted(numbers) == list(range(1, 501))


@pytest.mark.slow
@pytest.mark.parametrize("seed", by_day([1, 2, 3], 1))
def test_a_batch_that_is_killed_again_and_again_is_stored_and_billed_once(tmp_path: Path, seed: int) -> None:
    program = ROOT / "tests" / "helpers" / "killed_batch.py"
    command = [sys.executable, str(program), str(tmp_path / "serve"), str(seed)]
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "tests" / "helpers")))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, env=environment)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    assert left.pop("kills") >= 3
    assert left == {
        "results": 60, "rows": 60, "repeated": 0, "missing": 0, "errors": 0, "usd": 60 * 5, "same": True,
        "keys": ["custom_id", "error", "id", "response"],
    }  # fmt: skip


def test_a_server_that_is_stopped_in_a_batch_leaves_no_request_of_it_half_done(tmp_path: Path) -> None:
    lines = [
        line(f"id-{i}", body={"model": "stub", "messages": [{"role": "user", "content": f"{i}"}]}) for i in range(30)
    ]
    for pause in (0.02, 0.0):
        with live(tmp_path, StubEngine(pause=pause)) as (address, gateway):
            api = httpx.Client(base_url=address)
            if pause:
                data = "".join(json.dumps(item) + "\n" for item in lines).encode()
                file = api.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).json()["id"]
                body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
                batch = api.post("/v1/batches", json=body).json()["id"]
            until = time.monotonic() + HANG
            while (state := api.get(f"/v1/batches/{batch}").json())["status"] != "completed":
                assert time.monotonic() < until
                if pause and len(gateway.engine.ended) > 6:
                    break
                time.sleep(0.01)
    assert state["request_counts"]["completed"] == 30
    with opened(tmp_path) as store:
        rows = list(read_requests(store))
    assert len(rows) == len({row.prompt[0]["content"] for row in rows}) == 30
    assert not [row.error for row in rows if row.error]


def test_an_attempt_that_fails_is_stored_and_no_one_pays_for_it(tmp_path: Path) -> None:
    engine = StubEngine(fail_after=2)
    data = json.dumps(line("a", body={"model": "stub", "messages": [{"role": "user", "content": "x"}]})) + "\n"
    with live(tmp_path, engine, prices={"input": 1.0, "output": 1.0}) as (address, _):
        api = httpx.Client(base_url=address)
        file = api.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).json()["id"]
        batch = api.post(
            "/v1/batches", json={"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        ).json()
        until = time.monotonic() + HANG
        while api.get(f"/v1/batches/{batch['id']}").json()["status"] != "completed":
            assert time.monotonic() < until
            if engine.ended:
                engine.fail_after = None
            time.sleep(0.01)
    with opened(tmp_path) as store:
        rows = list(read_requests(store))
    assert [row.error is None for row in rows] == [False] * (len(rows) - 1) + [True] and len(rows) > 1
    assert [row.usd for row in rows[:-1]] == [0.0] * (len(rows) - 1) and rows[-1].usd


@pytest.mark.parametrize("jump", [3600.0, 366 * 86_400.0, -3600.0, -366 * 86_400.0])
def test_a_clock_that_jumps_neither_ends_a_batch_nor_keeps_it_for_ever(tmp_path: Path, jump: float) -> None:
    folder = new(tmp_path, [line(str(i)) for i in range(6)], seconds=1800)
    batch = BatchJob(folder, echo, rows=1)

    async def answer(item: Line) -> dict[str, Any]:
        if item.number == 3:
            batch.clock = lambda: time.time() + jump
        return await echo(item)

    batch.answer = answer
    assert asyncio.run(batch.run()) == "completed" and len(results(folder, OUTPUT)) == 6
    later = new(tmp_path / "later", [line(str(i)) for i in range(6)], seconds=1800)
    batch = BatchJob(later, echo, rows=1, clock=lambda: time.time() - 366 * 86_400.0)  # behind the batch's beginning
    batch.steady = lambda: time.monotonic() + 1801
    assert asyncio.run(batch.run()) == "expired"
