"""Large bodies are looked at where that can be ended; what is too much for the server is refused with a reason."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tuneloop.core.bounded_work import WORK, TooBusy, TooMuchWork
from tuneloop.serving.http import api_request as bodies
from tuneloop.serving.http.api_request import AT_ONCE, MOST_PARTS, ApiError, json_object
from tuneloop.serving.http.app import failure


def read(raw: bytes) -> Any:
    return asyncio.run(json_object(raw, asyncio.Lock()))


def fault_of(raw: bytes) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as refused:
        read(raw)
    return refused.value.status, refused.value.code


def test_small_bodies_are_read_at_once_and_large_ones_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = {"a": "x" * 100}, {"a": "x, " * AT_ONCE, "ids": list(range(200_000)), "b": [{"c": "ü"}] * 5_000}
    assert read(json.dumps(large).encode()) == large
    monkeypatch.setattr(WORK, "submit", None)
    assert read(json.dumps(small).encode()) == small
    monkeypatch.undo()
    monkeypatch.setattr(bodies, "_read", None)
    assert read(json.dumps(large).encode()) == large


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b'{"a":[' + b"[]," * MOST_PARTS + b"1]}", 413, "request_too_large"),
        (b'{"a":[' + b'"",' * MOST_PARTS + b"1]}", 413, "request_too_large"),
        (json.dumps({"logit_bias": {str(i): 1 for i in range(1_000_000)}}).encode(), 413, "request_too_large"),
        (b'{"a":' + b"[" * 4_000_000, 400, "invalid_json"),
        (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}" + b" " * AT_ONCE, 400, "invalid_json"),
        (b"[" + b'"x",' * 20_000 + b"1]", 400, "invalid_json"),
        (b'{"a": "' + b"x" * AT_ONCE, 400, "invalid_json"),
    ],
)
def test_what_is_no_body_for_a_server_is_refused(raw: bytes, status: int, code: str) -> None:
    assert fault_of(raw) == (status, code)


@pytest.mark.parametrize(("error", "status"), [(TooBusy("it is full", 2.5), 429), (TooMuchWork("it is long"), 413)])
def test_what_is_not_looked_at_gets_a_status(error: Exception, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def result(*args: Any, **more: Any) -> bytes:
        raise error

    monkeypatch.setattr(WORK, "result", result)
    with pytest.raises((ApiError, TooBusy)) as refused:
        read(b'{"a": "' + b"x" * AT_ONCE + b'"}')
    fault = refused.value if isinstance(refused.value, ApiError) else failure(refused.value)
    assert fault.status == status and fault.headers == ({"Retry-After": "3"} if status == 429 else {})


def test_the_loop_goes_round_between_two_bodies_that_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    read_in: list[int] = []
    rounds = 0

    def count(raw: bytes) -> dict[str, Any]:
        read_in.append(rounds)
        return {}

    async def work() -> None:
        nonlocal rounds
        turns = asyncio.Lock()
        reading = [asyncio.create_task(json_object(b"x" * (bodies.QUICK + 1), turns)) for _ in range(20)]
        while not all(task.done() for task in reading):
            rounds += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(bodies, "_read", count)
    asyncio.run(work())
    assert len(read_in) == 20 == len(set(read_in))
