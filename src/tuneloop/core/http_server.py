"""uvicorn with limits for clients that are slow, silent or many; errors have the shape of OpenAI's API.

The limit of open files is never reached: near it each new connection takes the place of the one that has owed the
rest of a request for longest, else of an idle one, else it gets 503. What is being answered is never closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import sys
import time
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneloop.core.ui import say

SILENT = 30.0  # seconds for a whole head, for the next part of a body, between two requests, and for reading an answer
SLOWEST = 10_000  # bytes of a body in a second, as a whole
MOST_HEAD, MOST_HEADERS, MOST_URL = 65_536, 100, 8_192  # bytes, lines, bytes; httptools collects any
# Of a body that is not needed so many seconds and bytes are dropped: closing at once would take the answer back.
LINGER, MOST_DROPPED = 2.0, 1_000_000
ROOM_AGAIN = 5.0  # seconds without a refused or closed connection after which there is room again
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def answer(status: int, message: str, code: str) -> bytes:
    """A whole HTTP answer with an error, after which the connection ends."""
    kind = "server_error" if status >= 500 else "timeout_error" if status == 408 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    more = "retry-after: 1\r\n" if status == 503 else ""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\n{more}connection: close\r\n\r\n{body}"
    ).encode()


class Connection(HttpToolsProtocol):
    """One connection of a `GuardedServer`."""

    def __init__(self, server: GuardedServer) -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self.of = server
        self.since = self.heard = 0.0  # when the client began to owe bytes, and last sent some; 0: it owes none
        self.body_bytes = self.head_bytes = self.unparsed = self.dropped = 0
        self.deaf = 0.0  # since when it does not read what is sent; 0: it does
        self.ends = 0.0  # when the connection ends, whatever still comes; 0: it does not
        self.fault = (400, "This is not an HTTP request", "invalid_http")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.heard = time.monotonic()
        self.of.owing[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.of.owing.pop(self, None)
        self.of.resting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. Unlike uvicorn's it writes no line in the log for what strangers send."""
        if self.ends or self.parser is None:
            self.dropped += len(data)
            if self.dropped > MOST_DROPPED:
                self.flow.pause_reading()
            return
        self._unset_keepalive_if_required()
        self.unparsed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the offer of another protocol is declined: HTTP answers
        except httptools.HttpParserError:
            self.refuse(*self.fault)
        else:
            if self.unparsed > MOST_HEAD:  # of a head, a trailer or a chunk's extension that does not end
                self.refuse(431, "The headers are too large", "headers_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MOST_URL:
            self._fail(414, "The URL is too long", "url_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self.head_bytes += len(name) + len(value)
        if self.head_bytes > MOST_HEAD or len(self.headers) > MOST_HEADERS:
            self._fail(431, "The headers are too large", "headers_too_large")

    def _fail(self, status: int, message: str, code: str) -> None:
        self.fault = (status, message, code)
        raise ValueError(message)  # httptools then ends with an error

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.of.resting.pop(self, None)
        if not self.pipeline:  # else an earlier request is being answered
            self.of.owing[self] = None
        self.since = self.heard = time.monotonic()
        self.body_bytes = self.unparsed = 0

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self.heard = time.monotonic()
        self.body_bytes += len(body)
        self.unparsed = 0
        if self in self.of.owing:  # it is the last one to be closed
            del self.of.owing[self]
            self.of.owing[self] = None

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.since, self.unparsed = 0.0, 0
        self.of.owing.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete or self.transport.is_closing():
            return
        if self.cycle.more_body:
            self._hang_up()
            return
        self.since = self.heard = time.monotonic()
        self.of.resting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.deaf = time.monotonic()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.deaf = 0.0

    def refuse(self, status: int, message: str, code: str) -> None:
        """Answer with an error where no answer has begun, and end the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(answer(status, message, code))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._hang_up()

    def _hang_up(self) -> None:
        self._unset_keepalive_if_required()
        self.ends = time.monotonic() + LINGER
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self.flow.resume_reading()

    def look(self, now: float, seconds: float) -> None:
        """End the connection where its client has taken longer than so many seconds; `now`: of the monotonic clock."""
        if self.ends:
            if now > self.ends:
                self.transport.abort()
        elif self.transport.is_closing():  # what is still to be sent has its time too
            self.ends = now + seconds
        elif self.deaf:
            if now - self.deaf > seconds:
                self.transport.abort()
        elif self.since and self.flow.read_paused:
            self.since = self.heard = now
        elif self.since and (now - self.heard > seconds or now - self.since > seconds + self.body_bytes / SLOWEST):
            if self.unparsed or (self.cycle is not None and not self.cycle.response_complete):
                self.refuse(408, f"The request did not come within {seconds:g} s", "timeout")
            else:
                self.transport.close()


class GuardedServer(uvicorn.Server):
    """An ASGI application on sockets that listen; a client may be silent for `seconds`; `config`: uvicorn's."""

    def __init__(self, app: Any, *, seconds: float = SILENT, **config: Any) -> None:
        config |= {"http": HttpToolsProtocol, "ws": "none", "lifespan": "off", "timeout_keep_alive": int(seconds) + 1}
        config |= dict.fromkeys(("access_log", "server_header", "date_header"), False)
        super().__init__(uvicorn.Config(app, headers=[("x-content-type-options", "nosniff")], **config))
        self.seconds = seconds
        self.owing: dict[Connection, None] = {}  # whose request has not come whole yet, the longest silent first
        self.resting: dict[Connection, None] = {}  # between two requests
        self._accepting: list[asyncio.Task[None]] = []
        self._others = 0  # descriptors that are no connections
        self._full = 0.0  # when there was no room last; 0: there is

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections one by one: asyncio's own loop takes thousands before one can see whether there is room."""
        self.servers = []
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or []]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: ten times a second."""
        if counter % 5 == 0:
            now = time.monotonic()
            with contextlib.suppress(OSError):
                self._others = len(os.listdir("/dev/fd")) - len(self.server_state.connections)
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.look(now, self.seconds)
            if self._full and now - self._full > ROOM_AGAIN:
                self._full = 0.0
                say("listening  there is room for connections again")
        return await super().on_tick(counter)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        while True:
            try:
                connected, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._make_room()
                    await asyncio.sleep(0.02)
                continue
            try:
                limit = _limit()  # some descriptors are left for files, the store and engines
                near = limit - max(16, min(256, limit // 8))
                full = 0 < near <= self._others + len(self.server_state.connections)
                if full and not self._make_room():
                    connected.setblocking(False)
                    connected.send(answer(503, "The server has no room for further connections", "overloaded"))
                    connected.close()
                else:
                    await loop.connect_accepted_socket(lambda: Connection(self), connected)
            except OSError:  # it has left
                connected.close()

    def _make_room(self) -> bool:
        """Close a connection that no one waits on; returns whether there was one."""
        if not self._full:
            number = f"{len(self.server_state.connections):,} connections are open"
            near = f"the limit of open files ({_limit():,}) is near"
            say(f"listening  {number}, and {near}: idle ones are closed, further ones get 503 (ulimit -n raises it)")
        self._full = time.monotonic()
        for those in (self.owing, self.resting):
            if those:
                oldest = next(iter(those))
                del those[oldest]
                oldest.transport.abort()
                return True
        return False


def _limit() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit on sockets
        return sys.maxsize
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; OSError: the port is taken, or the address is not this machine's."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError:
        listening.close()
        raise
    return listening
