"""Clients that are slow, silent, many or wrong: each case over real sockets, against a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patience import slowness

APP = """
import asyncio, sys
from functools import partial
from tuneloop.core.http_server import GuardedServer, listen
from tuneloop.core.ui import reporting

async def app(scope, receive, send):
    body = b""
    while scope["path"] != "/unread":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    if scope["path"] == "/wait":
        await asyncio.sleep(3)
    size = 50_000_000 if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    await send({"type": "http.response.body", "body": b"x" * size})

listening = listen("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
server = GuardedServer(app, seconds=float(sys.argv[1]), log_level="warning")
with reporting(say=partial(print, flush=True)):
    server.run(sockets=[listening])
"""
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
CHUNKED = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def running(seconds: float, files: int = 1024) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Port and process of a server whose clients may be silent so long, with a limit of open files."""
    process = subprocess.Popen(
        [sys.executable, "-c", APP, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with running(1.0) as (port, _):
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 60)


def is_answered(client: socket.socket, request: bytes = GET) -> bool:
    """Whether a request, or the rest of one, gets its whole answer."""
    data = b""
    client.sendall(request)
    while not data.endswith(b"\r\n\r\nxx"):
        part = client.recv(4096)
        data += part
        if not part:
            return False
    return b" 200 " in data


def rest(client: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data


# What is sent before a silence, and what is in the answer.
SILENT = {
    b"": b"",
    b"GET / HT": b" 408 ",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b": b" 408 ",
    POST + b"x" * 99: b" 408 ",
    CHUNKED % b"/" + b"5\r\nabcde\r\n": b" 408 ",
    CHUNKED % b"/" + b"5\r\nabcde\r\n0\r\nTrailer: x": b" 408 ",
    GET: b" 200 ",  # and then nothing
    GET + b"GET / HT": b" 200 ",  # and then half of another one
}


def test_who_is_silent_is_left_in_time(server: int) -> None:
    def wait(sent: bytes) -> tuple[bytes, float]:
        with connected(server) as client:
            began = time.monotonic()
            client.sendall(sent)
            return rest(client), time.monotonic() - began

    with ThreadPoolExecutor(len(SILENT)) as pool:
        ends = pool.map(wait, SILENT)
    for (sent, answer), (reply, seconds) in zip(SILENT.items(), ends, strict=True):
        assert answer in reply and 0.9 < seconds < 6 * slowness(), (sent, reply, seconds)


def test_who_sends_byte_by_byte_has_an_end_too(server: int) -> None:
    def send(begin: bytes) -> float:
        with connected(server) as client:
            began = time.monotonic()
            client.sendall(begin)
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 10 * slowness():
                    client.sendall(b"1\r\nx\r\n" if b"chunked" in begin else b"x")
                    time.sleep(0.2)
                    client.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        if b" 408 " in client.recv(4096):
                            break
                    client.setblocking(True)
            return time.monotonic() - began

    begins = (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: ", POST, CHUNKED % b"/")
    with ThreadPoolExecutor(len(begins)) as pool:
        assert max(pool.map(send, begins)) < 8 * slowness()


def test_a_steady_body_may_take_longer(server: int) -> None:
    with connected(server) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n")
        for _ in range(10):
            client.sendall(b"x" * 25_000)
            time.sleep(0.25)
        assert b" 200 " in client.recv(4096)


def test_who_does_not_read_is_left(server: int) -> None:
    with connected(server) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(3)
        assert len(rest(client)) < 50_000_000


def test_what_nobody_wants_is_not_read_and_the_answer_arrives(server: int) -> None:
    with connected(server) as client:
        client.sendall(CHUNKED % b"/unread")
        began, sent = time.monotonic(), 0
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 10 * slowness():
                client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
                time.sleep(0.01)
        assert b" 200 " in client.recv(4096) and time.monotonic() - began < 6 * slowness()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(101)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),  # one header that does not end
        (b"GET / HTTP/1.1\r\n" + b"a" * 70_000, 431),  # nor does its name
        (CHUNKED % b"/" + b"0\r\nTrailer: " + b"a" * 140_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
        (CHUNKED % b"/" + b"zz\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_gets_an_error_in_the_form_of_the_api(server: int, sent: bytes, status: int) -> None:
    with connected(server) as client:
        client.sendall(sent[:90])
        time.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            client.sendall(sent[90:])
        head, _, body = rest(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head[:200]
    assert json.loads(body)["error"]["type"] == "invalid_request_error" and b"nosniff" in head
    assert b"server:" not in head.lower()


def test_the_offer_of_another_protocol_is_declined(server: int) -> None:
    with connected(server) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert b" 200 " in client.recv(4096)


def test_far_more_idle_connections_than_files_keep_nobody_out() -> None:
    with running(3.0, files=128) as (port, process), contextlib.ExitStack() as stack:
        kept = stack.enter_context(connected(port))  # a client that was answered before
        assert is_answered(kept)
        used = cpu_seconds(process.pid)
        idle = [stack.enter_context(connected(port)) for _ in range(400)]
        for number, item in enumerate(idle):  # silent, in the midst of a head, and of a body
            with contextlib.suppress(ConnectionError):
                item.sendall((b"", b"GET / HT", POST + b"x")[number % 3])
        for _ in range(3):
            with connected(port) as client:
                assert is_answered(client)
            assert is_answered(kept)
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 120
            time.sleep(0.5)
        assert cpu_seconds(process.pid) - used < 2 * slowness()
        ends = [rest(entry) for entry in idle]  # closed, the last of them when they were silent for too long
        assert all(not end or b" 408 " in end for end in ends)
        deadline = time.monotonic() + 30 * slowness()
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        while "room" not in lines[-1] or "again" not in lines[-1]:
            assert time.monotonic() < deadline
            lines.append(process.stdout.readline())
        assert len(lines) == 2 and "limit of open files (128) is near" in lines[0], lines


def test_when_all_connections_are_busy_a_further_one_is_refused_and_later_served() -> None:
    with running(20.0, files=100) as (port, _), contextlib.ExitStack() as stack:
        wait = GET.replace(b"/", b"/wait", 1)
        busy = [stack.enter_context(connected(port)) for _ in range(60)]
        for item in busy:
            item.sendall(wait)
        refused = 0
        for _ in range(60):
            client = stack.enter_context(connected(port))
            client.sendall(wait)
            client.settimeout(0.05)
            with contextlib.suppress(TimeoutError, ConnectionError):
                refused += b" 503 " in client.recv(4096)
        assert refused > 20
        assert all(is_answered(entry, b"") for entry in busy)
        with connected(port) as client:  # those that were answered give way
            assert is_answered(client)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
