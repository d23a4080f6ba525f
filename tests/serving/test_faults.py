"""Clients and engines that misbehave harm themselves only: the others are answered, and every request ends."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from live_server import StubEngine, live

from patience import HANG, slowness
from tuneloop.core import ids
from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.inference.request import Request, Update
from tuneloop.records.completion import Completion
from tuneloop.serving.store.store import opened, read_requests

CHAT: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "Hi you"}]}
PATH = "/v1/chat/completions"


def head_of(address: str, length: int) -> bytes:
    return f"POST {PATH} HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\nContent-Length: {length}\r\n\r\n".encode()


@contextlib.contextmanager
def connections(address: str, count: int) -> Iterator[list[socket.socket]]:
    parts = urlsplit(address)
    assert parts.hostname is not None and parts.port is not None
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((parts.hostname, parts.port), 20)) for _ in range(count)]


def answered(address: str) -> float:
    """Seconds of a request that is answered."""
    began = time.monotonic()
    reply = httpx.post(f"{address}{PATH}", json=CHAT, timeout=HANG)
    assert reply.status_code == 200, reply.text
    return time.monotonic() - began


def test_clients_that_send_slowly_hold_up_nobody(tmp_path: Path) -> None:
    body = json.dumps(CHAT).encode()
    with live(tmp_path) as (address, gateway), connections(address, 100) as slow:
        for number, item in enumerate(slow):  # half of them stop in the header, half in the body
            whole = head_of(address, len(body)) + body
            item.sendall(whole[:20] if number % 2 else whole[:-5])
        assert answered(address) < 5 * slowness()
        assert not gateway.admission.active and not gateway.admission.waiting
        slow[0].sendall(body[-5:])  # one of them comes to its end
        assert b"200 OK" in slow[0].recv(4096)


def test_readers_that_do_not_read_hold_up_nobody(tmp_path: Path) -> None:
    engine = StubEngine(words=["word " * 2000] * 200)  # far more than the buffers of a connection hold
    body = json.dumps({**CHAT, "stream": True, "max_tokens": 1000}).encode()
    with live(tmp_path, engine) as (address, gateway):
        with connections(address, 4) as deaf:
            for item in deaf:
                item.sendall(head_of(address, len(body)) + body)
            until(lambda: len(engine.asked) == 4)
            reply = httpx.post(f"{address}{PATH}", json={**CHAT, "max_tokens": 1}, timeout=HANG)
            assert reply.status_code == 200
        until(lambda: len(engine.ended) == 5)  # and when they are gone, the engine is told
        until(lambda: not gateway.admission.active)


def test_a_thousand_connections_are_answered(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    body = json.dumps({**CHAT, "service_tier": "default"}).encode()
    try:
        with (
            live(tmp_path, StubEngine(slots=64), limits={"waiting": 2000}, objective={"admission": "queue"}) as (
                address,
                gateway,
            ),
            connections(address, 1000) as many,
        ):
            for item in many:
                item.sendall(head_of(address, len(body)) + body)
            for item in many:
                assert item.recv(4096).startswith(b"HTTP/1.1 200")
            until(lambda: gateway.store.counts.stored == 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with opened(tmp_path) as store:
        assert len({request.id for request in read_requests(store)}) == 1000


class Hanging(StubEngine):
    async def stream(self, request: Request) -> AsyncIterator[Update]:
        import asyncio

        self.asked.append(request)
        yield Update("Hel")
        try:
            await asyncio.sleep(3600)
        finally:
            self.ended.append("cancelled")


class Lying(StubEngine):
    async def stream(self, request: Request) -> AsyncIterator[Update]:
        yield Update("Hel")  # and no completion, as if that was all


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_hangs_is_left_when_the_time_is_over(tmp_path: Path, stream: bool) -> None:
    engine = Hanging()
    with live(tmp_path, engine, limits={"request_seconds": 0.3}) as (address, gateway):
        reply = httpx.post(f"{address}{PATH}", json={**CHAT, "stream": stream}, timeout=HANG)
        assert "error" in reply.text and (stream or reply.status_code >= 500)
        until(lambda: engine.ended == ["cancelled"])
        until(lambda: not gateway.admission.active and gateway.store.counts.stored == 1)
    with opened(tmp_path) as store:
        (found,) = read_requests(store)
    assert found.error


def test_an_engine_that_ends_without_an_end_is_no_answer(tmp_path: Path) -> None:
    with live(tmp_path, Lying()) as (address, _):
        reply = httpx.post(f"{address}{PATH}", json=CHAT, timeout=HANG)
        assert reply.status_code == 503 and "middle of the answer" in reply.json()["error"]["message"]
        told = httpx.post(f"{address}{PATH}", json={**CHAT, "stream": True}, timeout=HANG).text
        assert "middle of the answer" in told and "[DONE]" not in told


@pytest.mark.parametrize(("wait", "header"), [(6.5, "7"), (1e300, "86400"), (None, None)])
def test_a_busy_engine_says_when_to_come_again(tmp_path: Path, wait: float | None, header: str | None) -> None:
    class Busy(StubEngine):
        async def stream(self, request: Request) -> AsyncIterator[Update]:
            yield Update(completion=Completion(finish="error", error="busy: HTTP 429: slowly", retry_after=wait))

    with live(tmp_path, Busy()) as (address, _):
        reply = httpx.post(f"{address}{PATH}", json=CHAT)
        assert (reply.status_code, reply.headers.get("retry-after")) == (429, header)


def test_a_clock_that_jumps_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, shift = time.time, 0.0
    with live(tmp_path) as (address, gateway):
        monkeypatch.setattr(ids, "_last", ids._last)  # else later ids are a day ahead
        monkeypatch.setattr(time, "time", lambda: now() + shift)
        for jump in (0.0, 86400.0, -86400.0, -3600.0, 0.0):
            shift = jump
            answered(address)
        until(lambda: gateway.store.counts.stored == 5)
        assert gateway.admission.tally.refused == 0
    with opened(tmp_path) as store:
        found = list(read_requests(store))
    assert len({match.id for match in found}) == 5 and all(match.error is None for match in found)
    assert all((match.total_ms or 0) < 60_000 * slowness() for match in found)


def test_two_servers_do_not_share_a_folder(tmp_path: Path, tiny_llama: Path) -> None:
    from tuneloop.improve.serve import serve_until_stopped
    from tuneloop.serving.server import serve_config

    with lock_folder(tmp_path), pytest.raises(UserError, match="this folder"):
        serve_until_stopped(serve_config([], [f"base={tiny_llama}", f"folder={tmp_path}", "port=0"]))


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds * slowness()
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
