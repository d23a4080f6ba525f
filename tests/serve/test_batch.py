"""Batches: each request is answered exactly once, whatever is killed and whenever."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneloop.core.errors import UserError
from tuneloop.serve.batch import ERRORS, INPUT, JOURNAL, OUTPUT, STATE, Batch, make_batch
from tuneloop.serve.batch_file import Line
from tuneloop.serve.errors import ApiError

CHAT = "/v1/chat/completions"


def line(name: Any, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": str(name)}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body, **fields}


def new(folder: Path, lines: list[Any], seconds: float | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    (folder / INPUT).write_text("\n".join(texts) + "\n")
    make_batch(folder, CHAT, seconds=seconds)
    return folder


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(each) for each in (folder / name).read_text().splitlines()]


async def echo(each: Line) -> dict[str, Any]:
    await asyncio.sleep(0)
    assert each.body is not None
    return {"id": f"r{each.number}", "said": each.body["messages"][0]["content"]}


def test_each_line_stands_once_in_output_or_errors(tmp_path: Path) -> None:
    wrong = [
        "{", "[1]", '{"custom_id": "nan", "body": NaN}', line(None), line(""), line("a"), line("u", url="/v1/x"),
        line("b", body=3),
    ]  # fmt: skip
    folder = new(tmp_path, [line("a"), *wrong, "", line("z")])
    batch = Batch(folder, echo)
    assert asyncio.run(batch.run()) == "completed"
    good, bad = results(folder, OUTPUT), results(folder, ERRORS)
    assert [each["custom_id"] for each in good] == ["a", "z"]
    assert good[1]["response"]["body"]["said"] == "z" and good[1]["response"]["status_code"] == 200
    assert Counter(each["error"]["code"] for each in bad) == {
        "invalid_json_line": 3, "missing_custom_id": 2, "duplicate_custom_id": 1, "invalid_url": 1, "invalid_body": 1
    }  # fmt: skip
    names = [each["custom_id"] for each in good + bad if each["custom_id"]]
    assert len(names) == len(set(names))
    assert batch.state.request_counts.to_json() == {"total": 10, "completed": 2, "failed": 8}
    assert asyncio.run(Batch(folder, echo).run()) == "completed", "a batch that is over is not done again"


def test_refusals_are_kept_and_failures_tried_again(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    async def answer(each: Line) -> dict[str, Any]:
        tries[each.custom_id or ""] += 1
        if each.custom_id == "never":
            raise ApiError(404, "no such model", code="model_not_found")
        if tries[each.custom_id or ""] < 3:
            raise ApiError(503, "the engine died", code="engine")
        return await echo(each)

    folder = new(tmp_path, [line("never"), line("later")])
    assert asyncio.run(Batch(folder, answer, pause=0.001).run()) == "completed"
    assert tries == {"never": 1, "later": 3}
    (refused,) = results(folder, ERRORS)
    assert (
        refused["response"]["status_code"] == 404 and refused["response"]["body"]["error"]["code"] == "model_not_found"
    )


def test_a_cancelled_and_an_expired_batch_keep_what_is_done(tmp_path: Path) -> None:
    for name, end in (("c", "cancelled"), ("e", "expired")):
        folder = new(tmp_path / name, [line(str(i)) for i in range(10)], seconds=3600)
        batch = Batch(folder, echo, rows=1)

        async def answer(each: Line, batch: Batch = batch, end: str = end) -> dict[str, Any]:
            if each.number == 4:
                if end == "cancelled":
                    await batch.cancel()
                else:
                    batch.clock = lambda: time.time() + 7200
            return await echo(each)

        batch.answer = answer
        assert asyncio.run(batch.run()) == end
        assert len(results(folder, OUTPUT)) == 4 and len(results(folder, ERRORS)) == 6
        assert {each["error"]["code"] for each in results(folder, ERRORS)} == {f"batch_{end}"}


def test_rows_give_way_while_others_wait(tmp_path: Path) -> None:
    async def go() -> None:
        free = asyncio.Event()
        folder = new(tmp_path, [line(str(i)) for i in range(5)])
        batch = Batch(folder, echo, room=lambda: free.wait())  # type: ignore[arg-type,return-value]
        task = asyncio.create_task(batch.run())
        await asyncio.sleep(0.1)
        assert (folder / JOURNAL).read_bytes() == b""
        free.set()
        assert await asyncio.wait_for(task, 10) == "completed"

    asyncio.run(go())


def do_in_a_child(folder: Path, life: str) -> int:
    """Run the batch in a process of its own, which writes down what it begins; returns the process's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        begun = os.open(folder / "begun", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        async def answer(each: Line) -> dict[str, Any]:
            os.write(begun, f"{life} {each.number}\n".encode())
            await asyncio.sleep(random.uniform(0.001, 0.01))
            return {"id": "r", "said": each.custom_id, "long": "x" * 3000}

        status = 0 if asyncio.run(Batch(folder, answer, rows=8).run()) == "completed" else 1
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
        done_before[life] = {json.loads(each)["number"] for each in whole}
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
    assert [each["custom_id"] for each in good] == [f"id-{i}" for i in range(6000)]
    assert (folder / ERRORS).read_bytes() == b""
    begun = [text.split() for text in (folder / "begun").read_text().splitlines()]
    assert len({life for life, _ in begun}) >= 10, "the kills came before anything was begun"
    assert [each for each in begun if int(each[1]) in done_before[each[0]]] == []
