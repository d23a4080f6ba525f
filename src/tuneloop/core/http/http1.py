"""HTTP/1.1 to one server over kept connections, by httptools, uvicorn's parser: a request takes a third of the
processor time that aiohttp takes, on the processors that a gateway shares with its load.

No proxies, redirects, cookies or compressed answers: where a proxy is needed, `wire.Wire` takes aiohttp.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

MOST_UNREAD = 1 << 18  # bytes of an answer that wait for their reader before the server has to
MOST_OF_A_HEAD = 1 << 16  # bytes of an answer's headers, each with some more for what holds it
HELD = 32
JSON = "application/json"


class Lost(ConnectionError):
    """The connection ended before the answer did."""


class NoConnection(ConnectionError):
    """There is no connection to the server."""


class KeptConnection(asyncio.Protocol):
    """A connection, and the answer that comes on it."""

    def __init__(self) -> None:
        from httptools import HttpParserError, HttpResponseParser

        self._parser, self._unreadable = HttpResponseParser(self), HttpParserError
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self.lost: Exception | None = None  # why nothing more comes
        self.used = False  # for an answer before this one
        self._awaited = False  # whether an answer is expected: what comes else belongs to no request
        self._begin()

    def _begin(self) -> None:
        self.status, self.headers = 0, dict[str, str]()  # names in small letters
        self._pieces, self._unread, self._head = deque[bytes](), 0, 0
        self.whole = self.keeps = self.began = self._paused = False

    # -- from the transport and the parser

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.began = True
        try:
            self._parser.feed_data(data)
            if not self.status:
                self._count(len(data))
        except (Lost, self._unreadable) as error:
            self.lost = error
            self.close()
        self._wake()

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > MOST_OF_A_HEAD:
            raise Lost("the answer's headers have no end")

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`. An answer without a length ends with its connection."""
        if self.status and error is None and not {"content-length", "transfer-encoding"} & self.headers.keys():
            self.whole = True
        self.lost = self.lost or error or Lost("closed")
        self._wake()

    def on_message_begin(self) -> None:
        """See httptools."""
        if not self._awaited:
            raise Lost("an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._count(len(name) + len(value) + HELD)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """See httptools."""
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._pieces.append(body)
        self._unread += len(body)
        if self._unread > MOST_UNREAD and not self._paused and self._transport is not None:
            self._transport.pause_reading()
            self._paused = True

    def on_message_complete(self) -> None:
        """See httptools."""
        if self.status < 200:  # the server will answer
            self._begin()
            return
        self._awaited = False
        self.whole, self.keeps = True, self._parser.should_keep_alive()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- for who asks

    async def ask(self, request: bytes) -> None:
        """Send a request and wait for the head of its answer. Raises OSError: none comes."""
        assert self._transport is not None
        self.used = self.used or bool(self.status)
        self._begin()
        self._awaited = True
        self._transport.write(request)
        while not self.status:
            if self.lost is not None:
                raise Lost(str(self.lost)) from self.lost
            await self._news()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises OSError: it breaks off."""
        while True:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                self._unread = 0
                if self._paused and self._transport is not None:
                    self._transport.resume_reading()
                    self._paused = False
                yield data
            elif self.whole:
                return
            elif self.lost is not None:
                raise Lost(str(self.lost)) from self.lost
            else:
                await self._news()

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    @property
    def rests(self) -> bool:
        """Whether it can take another request: its answer is read to the end, and it stays open."""
        return self.whole and self.keeps and self.lost is None and not self._pieces

    def close(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()


@dataclass
class Client:
    """A server by its address; see `wire.Wire`, whose errors these become."""

    address: str  # `http://HOST:PORT` or `https://...`, perhaps with the beginning of all paths
    headers: Mapping[str, str]  # of each request
    connect_within: float  # seconds
    _resting: list[KeptConnection] = field(default_factory=list)
    _active: set[KeptConnection] = field(default_factory=set)

    def __post_init__(self) -> None:
        place = urlsplit(self.address)
        self._host, self._port = place.hostname or "", place.port or (443 if place.scheme == "https" else 80)
        self._secure, self._path = place.scheme == "https", place.path.rstrip("/")
        lines = {"Host": place.netloc.rpartition("@")[2], "Accept": "*/*", **self.headers}
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        if self._lines.count("\n") != len(lines) or any(c in place.path for c in "\r\n "):
            raise ValueError("a header or the address holds a line break")

    @asynccontextmanager
    async def answered(self, method: str, path: str, body: bytes, kind: str = JSON) -> AsyncIterator[KeptConnection]:
        """The head of an answer, whose body is read from it; what is not read is dropped with the connection.

        `kind`: media type of the body that is sent.

        Raises:
            TimeoutError: there is no connection in time.
            Lost: it ended before the answer did.
            NoConnection: there is none.
        """
        about = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        request = f"{method} {self._path}{path} HTTP/1.1\r\n{self._lines}{about}\r\n".encode("latin-1") + body
        while True:
            connection = self._resting.pop() if self._resting else await self._connected()
            if connection.lost is not None:
                continue
            self._active.add(connection)
            try:
                await connection.ask(request)
                yield connection
                return
            except Lost:
                if not connection.used or connection.began:  # else it was closed at its other end: try again
                    raise
            finally:
                self._active.discard(connection)
                if connection.rests:
                    self._resting.append(connection)
                else:
                    connection.close()

    async def _connected(self) -> KeptConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_within):
                _, connection = await loop.create_connection(
                    KeptConnection, self._host, self._port, ssl=self._secure or None
                )
        except TimeoutError:
            raise
        except OSError as error:
            raise NoConnection(str(error)) from error
        return connection

    def close(self) -> None:
        """Close all connections; answers that are being read break off."""
        for connection in [*self._resting, *self._active]:
            connection.close()
        self._resting.clear()
