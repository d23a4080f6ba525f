"""HTTP/1.1 to an inference server over kept connections: whole answers, and server-sent events as they come.

By httptools, uvicorn's parser: a request was measured to take a third of the processor time that aiohttp takes, and
aiohttp a fifth of what httpx needs, on the processors that a gateway shares with its load. Proxies of the environment
are used; there are no redirects, cookies or compressed answers.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.http.timeouts import CONNECT_WITHIN, NO_QUOTA, seconds_to_wait
from tuneloop.core.urls import basic_login

T = TypeVar("T")
MOST_OF_AN_ERROR = 1 << 20  # bytes of a refusal that are read
MOST_UNREAD = 1 << 18  # bytes of an answer that wait for their reader before the server has to
MOST_OF_A_HEAD = 1 << 16  # bytes of an answer's headers, each with some more for what holds it
HELD = 32
JSON = "application/json"


Fault = Literal["", "unreachable", "late", "large", "unsendable"]


class Broken(OSError):
    """The server gave no whole answer.

    Args:
        reason: name of the error.
        kind: `unreachable`: nothing listens; `late`: no whole answer in time; `large`: an answer above the limit;
            `unsendable`: the request itself is at fault; else it broke off.
        began: whether a part of the answer came.
    """

    def __init__(self, reason: str, kind: Fault = "", *, began: bool = False) -> None:
        super().__init__(reason)
        self.kind, self.began = kind, began


class HttpRefused(Exception):
    """The server's answer is an error.

    Args:
        status: of HTTP.
        body: its text.
        retry_after: seconds after which a further request may succeed; None: it names none.
        location: where the server sends the request instead; no redirection is followed here.
    """

    def __init__(self, status: int, body: bytes, retry_after: float | None = None, location: str = "") -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.body, self.retry_after, self.location = status, body, retry_after, location

    @property
    def message(self) -> str:
        """What the server says is wrong, in a line."""
        return message_of(self.body.decode("utf-8", "replace"))

    @property
    def no_quota(self) -> bool:
        """Whether a quota is spent, which no time helps."""
        return self.status == 429 and NO_QUOTA.encode() in self.body

    @property
    def in_words(self) -> str:
        """The status, with what the server says."""
        return f"{self}: {self.message}" if self.message else str(self)


def message_of(text: str) -> str:
    """The message of an error's body, in the forms that inference servers have; else the body itself, cut."""
    try:
        value = parse_json(text)
        error = value.get("error", value.get("detail", value.get("message", "")))
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join(text[:2000].split())
    return "".join(c for c in line if c.isprintable())[:200]


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

    async def secured(self, host: str) -> KeptConnection:
        """A connection with TLS to a server over this one. Raises OSError: there is none."""
        assert self._transport is not None
        loop, inner, context = asyncio.get_running_loop(), KeptConnection(), ssl.create_default_context()
        transport = await loop.start_tls(self._transport, inner, context, server_hostname=host)
        assert transport is not None
        inner.connection_made(transport)
        return inner

    @property
    def rests(self) -> bool:
        """Whether it can take another request: its answer is read to the end, and it stays open."""
        return self.whole and self.keeps and self.lost is None and not self._pieces

    def close(self) -> None:
        """End it at once."""
        if self._transport is not None:
            self._transport.abort()


@dataclass
class Wire:
    """A server by its address. All methods are called from one event loop."""

    address: str  # `http://HOST:PORT` or `https://...`, perhaps with the beginning of all paths
    key: str = ""  # of the API
    proxies: bool = False  # whether the environment's proxies are used (`HTTPS_PROXY`, `NO_PROXY`)
    login: tuple[str, str] | None = None  # user and password, which take precedence over the key
    connect_within: float = CONNECT_WITHIN  # seconds for a connection
    _resting: list[KeptConnection] = field(default_factory=list)
    _active: set[KeptConnection] = field(default_factory=set)
    _start: tuple[str, str] | None = None  # of each request: what goes before its path, and the lines of its head
    _proxy: str | None = None
    _closed: bool = False

    async def post(
        self, path: str, body: bytes, within: float | None = None, most: int | None = None, kind: str = JSON
    ) -> bytes:
        """The body of an answer.

        Args:
            within: seconds for all of it; None: any time.
            most: bytes that it may have; None: any number.
            kind: media type of the body that is sent.

        Raises:
            Broken: there is no whole one.
            HttpRefused: its status is not 200.
        """
        return await self._whole("POST", path, body, within, most, kind)

    async def get(self, path: str, within: float | None = None, most: int | None = None) -> bytes:
        """See `post`."""
        return await self._whole("GET", path, b"", within, most)

    async def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The body of an answer to a GET as it comes, for files that no memory should hold; see `events`."""
        async with self._answered("GET", path, b"") as connection:
            async for piece in connection.pieces():
                yield piece

    async def events(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event as it comes. Close the generator to leave: the connection is closed.

        Raises:
            Broken: it breaks off.
            HttpRefused: the status is not 200.
        """
        rest = b""
        async with self._answered("POST", path, body) as connection:
            async for part in connection.pieces():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()

    async def close(self) -> None:
        """Close all connections; answers that are being read break off."""
        self._closed = True
        for connection in [*self._resting, *self._active]:
            connection.close()
        self._resting.clear()

    # --- inside

    async def _whole(
        self, method: str, path: str, body: bytes, within: float | None, most: int | None, kind: str = JSON
    ) -> bytes:
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(within), self._answered(method, path, body, kind) as connection:
                size = 0
                async for piece in connection.pieces():
                    size += len(piece)
                    if most is not None and size > most:
                        raise Broken("too large", "large", began=True)
                    pieces.append(piece)
        except TimeoutError:
            raise Broken("TimeoutError", "late", began=bool(pieces)) from None
        return b"".join(pieces)

    @asynccontextmanager
    async def _answered(self, method: str, path: str, body: bytes, kind: str = JSON) -> AsyncIterator[KeptConnection]:
        """An answer whose status is 200; what is not read of it is dropped with its connection."""
        if self._closed:
            raise Broken("closed")
        try:
            async with self._head(method, path, body, kind) as connection:
                if connection.status != 200:
                    text = b""
                    async for piece in connection.pieces():
                        text += piece
                        if len(text) > MOST_OF_AN_ERROR:
                            break
                    wait = seconds_to_wait(connection.headers.get("retry-after"))
                    raise HttpRefused(connection.status, text, wait, connection.headers.get("location", ""))
                yield connection
        except Broken:
            raise
        except TimeoutError as error:
            raise Broken(type(error).__name__, "late") from None
        except NoConnection as error:
            raise Broken(type(error).__name__, "unreachable") from None
        except ValueError as error:
            raise Broken(type(error).__name__, "unsendable") from None
        except OSError as error:
            raise Broken(type(error).__name__) from None

    @asynccontextmanager
    async def _head(self, method: str, path: str, body: bytes, kind: str) -> AsyncIterator[KeptConnection]:
        """The head of an answer of any status, whose body is read from it.

        Raises:
            TimeoutError: there is no connection in time.
            NoConnection: there is none.
            Lost: it ended before the answer did.
            ValueError: a header or the address holds a line break.
        """
        before, lines = self._start = self._start or self._beginning()
        about = f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n" if method == "POST" else ""
        request = f"{method} {before}{path} HTTP/1.1\r\n{lines}{about}\r\n".encode("latin-1") + body
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

    def _beginning(self) -> tuple[str, str]:
        """What goes before the path of each request, and the lines of its head; the proxy is looked up."""
        parts = urlsplit(self.address)
        if self.proxies:
            self._proxy = _proxy_of(self.address)
        host = parts.netloc.rpartition("@")[2]
        headers = {"Host": host, "Accept": "*/*"}
        if self.login is not None:
            headers["Authorization"] = basic_login(self.login)
        elif self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        before = parts.path.rstrip("/")
        if self._proxy is not None and parts.scheme != "https":
            before = f"http://{host.removesuffix(':80')}{before}"
            headers |= _login_of(self._proxy)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if lines.count("\n") != len(headers) or any(c in before for c in "\r\n "):
            raise ValueError("a header or the address holds a line break")
        return before, lines

    async def _connected(self) -> KeptConnection:
        parts = urlsplit(self.address)
        port, secure = parts.port or (443 if parts.scheme == "https" else 80), parts.scheme == "https"
        try:
            async with asyncio.timeout(self.connect_within):
                if self._proxy is not None and secure:
                    return await _tunnel(self._proxy, parts.hostname or "", port)
                if self._proxy is not None:
                    proxy = urlsplit(self._proxy)
                    parts, port = proxy, proxy.port or 80
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    KeptConnection, parts.hostname or "", port, ssl=secure or None
                )
                return connection
        except TimeoutError:
            raise
        except OSError as error:
            raise NoConnection(str(error)) from error


def need_httptools(where: str, extra: str) -> None:
    """Check for the library.

    Args:
        extra: of the package, which has it.

    Raises:
        UserError: it is missing.
    """
    try:
        import httptools  # noqa: F401
    except ModuleNotFoundError as error:
        step = f"pip install 'tuneloop[{extra}]'"
        raise UserError(f"Requests to a server need {error.name}", where=where, next_step=step) from None


def finished(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, for callers that are none; in a new thread where a loop runs, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def fetched(wire: Wire, path: str, within: float) -> bytes:
    """One answer to a GET, for callers that are no coroutines; the wire is closed behind it. See `Wire.get`."""

    async def get() -> bytes:
        try:
            return await wire.get(path, within)
        finally:
            await wire.close()

    return finished(get())


def _proxy_of(address: str) -> str | None:
    """The environment's proxy for an address, where it is one of HTTP; None: none, or `NO_PROXY` names it."""
    parts = urlsplit(address)
    proxy = getproxies().get(parts.scheme, "")
    return proxy if proxy.startswith("http://") and not proxy_bypass(parts.hostname or "") else None


def _login_of(proxy: str) -> dict[str, str]:
    """The header by which a proxy knows its user, where its URL names one."""
    parts = urlsplit(proxy)
    user, password = (unquote(part or "") for part in (parts.username, parts.password))
    return {"Proxy-Authorization": basic_login((user, password))} if user else {}


async def _tunnel(proxy: str, host: str, port: int) -> KeptConnection:
    """A connection with TLS to a server through a proxy (RFC 9110, 9.3.6). Raises OSError: the proxy opens none."""
    loop, parts = asyncio.get_running_loop(), urlsplit(proxy)
    _, outer = await loop.create_connection(KeptConnection, parts.hostname or "", parts.port or 80)
    try:
        server = f"{f'[{host}]' if ':' in host else host}:{port}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": server, **_login_of(proxy)}.items())
        await outer.ask(f"CONNECT {server} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        if outer.status != 200:
            raise NoConnection(f"the proxy answers with {outer.status}")
        return await outer.secured(host)
    except BaseException:
        outer.close()
        raise
