"""HTTP to an inference server, over kept connections: whole answers, and server-sent events as they come.

By httptools (`http1`); through a proxy, or where it is not installed, by aiohttp: there a request was measured to take
a fifth of the processor time that httpx needs.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.http.http1 import JSON, Client, NoConnection
from tuneloop.core.http.timeouts import CONNECT_WITHIN, NO_QUOTA, seconds_to_wait
from tuneloop.core.urls import basic_login

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")
MOST_OF_AN_ERROR = 1 << 20  # bytes of a refusal that are read


Fault = Literal["", "unreachable", "late", "large", "unsendable"]


class Broken(OSError):
    """The server gave no whole answer.

    Args:
        why: name of the error.
        kind: `unreachable`: nothing listens; `late`: no whole answer in time; `large`: an answer above the limit;
            `unsendable`: the request itself is at fault; else it broke off.
        began: whether a part of the answer came.
    """

    def __init__(self, why: str, kind: Fault = "", *, began: bool = False) -> None:
        super().__init__(why)
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


class Reply(Protocol):
    """An answer whose head has come."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer, by their names in small letters."""

    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""


@dataclass(frozen=True)
class _ThroughProxy:
    """An answer to aiohttp."""

    response: ClientResponse

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def pieces(self) -> AsyncIterator[bytes]:
        return self.response.content.iter_any()


@dataclass
class Wire:
    """A server by its address. All methods are called from one event loop."""

    address: str  # `http://HOST:PORT` or `https://...`, perhaps with the beginning of all paths
    key: str = ""  # of the API
    proxies: bool = False  # whether the environment's proxies are used (`HTTPS_PROXY`, `NO_PROXY`)
    login: tuple[str, str] | None = None  # user and password, which take precedence over the key
    connect_within: float = CONNECT_WITHIN  # seconds for a connection
    _session: ClientSession | None = None
    _client: Client | None = None
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
        async with self._answered("GET", path, b"") as response:
            async for piece in response.pieces():
                yield piece

    async def events(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event as it comes. Close the generator to leave: the connection is closed.

        Raises:
            Broken: it breaks off.
            HttpRefused: the status is not 200.
        """
        rest = b""
        async with self._answered("POST", path, body) as response:
            async for part in response.pieces():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._client is not None:
            self._client.close()
        if self._session is not None:
            await self._session.close()

    # --- inside

    async def _whole(
        self, method: str, path: str, body: bytes, within: float | None, most: int | None, kind: str = JSON
    ) -> bytes:
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(within), self._answered(method, path, body, kind) as response:
                size = 0
                async for piece in response.pieces():
                    size += len(piece)
                    if most is not None and size > most:
                        raise Broken("too large", "large", began=True)
                    pieces.append(piece)
        except TimeoutError:
            raise Broken("TimeoutError", "late", began=bool(pieces)) from None
        return b"".join(pieces)

    @asynccontextmanager
    async def _answered(self, method: str, path: str, body: bytes, kind: str = JSON) -> AsyncIterator[Reply]:
        """An answer whose status is 200; what is not read of it is dropped with its connection."""
        from aiohttp import ClientConnectorError, ClientError, InvalidURL

        try:
            async with self._head(method, path, body, kind) as response:
                if response.status != 200:
                    text = b""
                    async for piece in response.pieces():
                        text += piece
                        if len(text) > MOST_OF_AN_ERROR:
                            break
                    wait = seconds_to_wait(response.headers.get("retry-after"))
                    raise HttpRefused(response.status, text, wait, response.headers.get("location", ""))
                yield response
        except Broken:
            raise
        except TimeoutError as error:
            raise Broken(type(error).__name__, "late") from None
        except (ClientConnectorError, NoConnection) as error:
            raise Broken(type(error).__name__, "unreachable") from None
        except (InvalidURL, ValueError) as error:
            raise Broken(type(error).__name__, "unsendable") from None
        except (ClientError, OSError) as error:
            raise Broken(type(error).__name__) from None

    @asynccontextmanager
    async def _head(self, method: str, path: str, body: bytes, kind: str) -> AsyncIterator[Reply]:
        """An answer of any status."""
        if (client := self._opened()) is not None:
            async with client.answered(method, path, body, kind) as connection:
                yield connection
            return
        headers = {"Content-Type": kind} if method == "POST" else {}
        async with await self._sent(method, path, data=body, headers=headers) as response:
            yield _ThroughProxy(response)

    def _opened(self) -> Client | None:
        """What sends requests without a proxy; None: aiohttp does."""
        if self._closed:
            raise Broken("closed")
        if self._client is None and self._session is None:
            if self.proxies:  # looked up once: aiohttp reads the environment in threads, twice for each request
                self._proxy = _proxy_of(self.address)
            if self._proxy is None and importlib.util.find_spec("httptools") is not None:
                self._client = Client(self.address, self._authorization(), self.connect_within)
        return self._client

    def _authorization(self) -> dict[str, str]:
        if self.login is not None:
            return {"Authorization": basic_login(self.login)}
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def _sent(self, method: str, path: str, **more: Any) -> ClientResponse:
        from aiohttp import ClientOSError, ServerDisconnectedError

        url, session = self.address.rstrip("/") + path, self._session_of_aiohttp()
        while True:
            rested: list[bool] = []
            more |= {"trace_request_ctx": rested, "proxy": self._proxy, "allow_redirects": False}
            try:
                return await session.request(method, url, **more)
            except (ServerDisconnectedError, ClientOSError):
                if not rested:  # else it was closed at its other end meanwhile: nothing was answered, so try again
                    raise

    def _session_of_aiohttp(self) -> ClientSession:
        if self._session is None:
            from aiohttp import ClientSession, ClientTimeout, TCPConnector, TraceConfig

            tracing = TraceConfig()
            tracing.on_connection_reuseconn.append(_rested)
            self._session = ClientSession(
                connector=TCPConnector(limit=0),
                timeout=ClientTimeout(total=None, sock_connect=self.connect_within),
                headers=self._authorization(),
                auto_decompress=False,  # as without a proxy: no answer is larger here than it was on the way
                skip_auto_headers=("Accept-Encoding",),
                trace_configs=[tracing],
            )
        return self._session


def need_aiohttp(where: str, extra: str) -> None:
    """Check for the library.

    Args:
        extra: of the package, which has it.

    Raises:
        UserError: it is missing.
    """
    try:
        import aiohttp  # noqa: F401
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
    """The environment's proxy for an address, of a kind that aiohttp supports; None: none, or `NO_PROXY` names it."""
    place = urlsplit(address)
    proxy = getproxies().get(place.scheme, "")
    return proxy if proxy.startswith("http://") and not proxy_bypass(place.hostname or "") else None


async def _rested(session: object, context: Any, params: object) -> None:
    context.trace_request_ctx.append(True)
