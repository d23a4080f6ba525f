"""HTTP to a server next door, over kept connections: little more than the bytes.

A general client takes a tenth of a millisecond for each token of a stream, which is a good part of what a small model
takes to write it, on the same processor. This one knows what inference servers send: bodies with a length or in chunks, and
server-sent events. It knows no TLS and no proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

LIMIT = 1 << 20  # bytes of a line
CONNECT_WITHIN = 5.0  # seconds


class Broken(OSError):
    """The server gave no whole answer."""


class Refused(Exception):
    """The server's answer is an error.

    Args:
        status: of HTTP.
        body: what it said.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.body = status, body


@dataclass
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    used: bool = False

    @property
    def alive(self) -> bool:
        """Whether the server has not closed it, as far as is known."""
        return not self.reader.at_eof() and not self.writer.is_closing()

    def close(self) -> None:
        """Close it at once, so that the server sees that nobody reads any more."""
        self.writer.transport.abort()


@dataclass
class _Head:
    status: int
    length: int = -1
    chunked: bool = False
    keeps: bool = True


@dataclass
class Wire:
    """A server by its address. All methods are called from one event loop.

    Args:
        address: `http://HOST:PORT`, perhaps with the beginning of all paths.
        key: of the API.
        keep: connections that rest at most.
    """

    address: str
    key: str = ""
    keep: int = 16
    _free: list[_Connection] = field(default_factory=list)
    _closed: bool = False

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of an answer.

        Raises:
            Broken: there is no whole one.
            Refused: its status is not 200.
        """
        return await self._whole(self._request("POST", path, body))

    async def get(self, path: str) -> bytes:
        """See `post`."""
        return await self._whole(self._request("GET", path, b""))

    async def events(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event as it comes. Close the generator to leave: the connection is closed.

        Raises:
            Broken: it breaks off.
            Refused: the status is not 200.
        """
        connection, head = await self._asked(self._request("POST", path, body))
        whole, rest = False, b""
        try:
            if head.status != 200:
                said = b"".join([part async for part in self._parts(connection, head)])
                whole = True
                raise Refused(head.status, said)
            async for part in self._parts(connection, head):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()
            whole = True
        finally:
            self._give(connection, whole and head.keeps)

    def close(self) -> None:
        """Close the connections that rest; others when they are through."""
        self._closed = True
        for connection in self._free:
            connection.close()
        self._free.clear()

    # --- inside

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        place = urlsplit(self.address)
        host, path = place.netloc, place.path.rstrip("/") + path
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{key}{length}\r\n".encode() + body

    async def _whole(self, request: bytes) -> bytes:
        connection, head = await self._asked(request)
        whole = False
        try:
            said = b"".join([part async for part in self._parts(connection, head)])
            whole = True
        finally:
            self._give(connection, whole and head.keeps)
        if head.status != 200:
            raise Refused(head.status, said)
        return said

    async def _asked(self, request: bytes) -> tuple[_Connection, _Head]:
        """A connection on which the head of the answer has come."""
        while True:
            connection = await self._take()
            try:
                connection.writer.write(request)
                await connection.writer.drain()
                return connection, _head(await connection.reader.readuntil(b"\r\n\r\n"))
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
                connection.close()
                # One that rested was closed at its other end meanwhile: nothing has been answered, so it is asked anew.
                if not connection.used or (isinstance(error, asyncio.IncompleteReadError) and error.partial):
                    raise Broken(type(error).__name__) from None
            except BaseException:
                connection.close()
                raise

    async def _take(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.alive:
                return connection
            connection.close()
        place = urlsplit(self.address)
        try:
            opening = asyncio.open_connection(place.hostname, place.port or 80, limit=LIMIT)
            return _Connection(*await asyncio.wait_for(opening, CONNECT_WITHIN))
        except (OSError, TimeoutError) as error:
            raise Broken(type(error).__name__) from None

    def _give(self, connection: _Connection, whole: bool) -> None:
        connection.used = True
        if whole and not self._closed and len(self._free) < self.keep and connection.alive:
            self._free.append(connection)
        else:
            connection.close()

    async def _parts(self, connection: _Connection, head: _Head) -> AsyncGenerator[bytes, None]:
        reader = connection.reader
        try:
            if head.chunked:
                while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    yield (await reader.readexactly(size + 2))[:-2]
                while await reader.readuntil(b"\r\n") != b"\r\n":  # what follows the last chunk
                    pass
            elif head.length >= 0:
                yield await reader.readexactly(head.length)
            else:
                while part := await reader.read(1 << 16):
                    yield part
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise Broken(type(error).__name__) from None


def _head(raw: bytes) -> _Head:
    """Status and headers of an answer.

    Raises:
        ValueError: it is no HTTP.
    """
    first, *lines = raw.decode("latin-1").split("\r\n")
    if not first.startswith("HTTP/1."):
        raise ValueError("no HTTP")
    found = _Head(int(first.split(" ", 2)[1]), keeps=first.startswith("HTTP/1.1"))
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip().lower()
        if name == "content-length":
            found.length = int(value)
        elif name == "transfer-encoding":
            found.chunked = "chunked" in value
        elif name == "connection":
            found.keeps = value != "close"
    if not found.chunked and found.length < 0:
        found.keeps = False  # it ends with the connection
    return found


def plain(address: str) -> bool:
    """Whether a `Wire` reaches an address: by HTTP, without a proxy or a name and password in it."""
    place = urlsplit(address)
    if place.scheme != "http" or place.username or not place.hostname:
        return False
    return "http" not in getproxies() or bool(proxy_bypass(place.hostname))
