"""HTTP to an inference server, over kept connections: whole answers, and server-sent events as they come.

By aiohttp: a request takes a third of the processor time that httpx needs, on the processors that a small model computes on
(`python benchmarks/serve_wire.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tuneloop.inference.client import seconds_to_wait

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

CONNECT_WITHIN = 5.0  # seconds


class Broken(OSError):
    """The server gave no whole answer."""


class Refused(Exception):
    """The server's answer is an error.

    Args:
        status: of HTTP.
        body: what it said.
        retry_after: seconds after which it wants to be asked again; None: it does not say.
    """

    def __init__(self, status: int, body: bytes, retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.body, self.retry_after = status, body, retry_after


@dataclass
class Wire:
    """A server by its address. All methods are called from one event loop.

    Args:
        address: `http://HOST:PORT` or `https://...`, perhaps with the beginning of all paths.
        key: of the API.
        login: user and password, which go before the key.
        proxies: whether the environment's proxies are used (`HTTPS_PROXY`, `NO_PROXY`).
    """

    address: str
    key: str = ""
    proxies: bool = False
    login: tuple[str, str] | None = None
    _session: ClientSession | None = None
    _proxy: str | None = None
    _closed: bool = False

    async def post(self, path: str, body: bytes) -> bytes:
        """The body of an answer.

        Raises:
            Broken: there is no whole one.
            Refused: its status is not 200.
        """
        return await self._whole("POST", path, body)

    async def get(self, path: str) -> bytes:
        """See `post`."""
        return await self._whole("GET", path, b"")

    async def events(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event as it comes. Close the generator to leave: the connection is closed.

        Raises:
            Broken: it breaks off.
            Refused: the status is not 200.
        """
        rest = b""
        async with self._asked("POST", path, body) as response:
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:"):
                        yield line[5:].strip()

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    # --- inside

    async def _whole(self, method: str, path: str, body: bytes) -> bytes:
        async with self._asked(method, path, body) as response:
            return await response.read()

    @asynccontextmanager
    async def _asked(self, method: str, path: str, body: bytes) -> AsyncIterator[ClientResponse]:
        """An answer whose status is 200; what is not read of it is dropped with its connection."""
        from aiohttp import ClientError

        headers = {"Content-Type": "application/json"} if method == "POST" else {}
        try:
            async with await self._sent(method, path, data=body, headers=headers) as response:
                if response.status != 200:
                    wait = seconds_to_wait(response.headers.get("Retry-After"))
                    raise Refused(response.status, await response.read(), wait)
                yield response
        except (ClientError, TimeoutError, OSError, ValueError) as error:
            raise Broken(type(error).__name__) from None

    async def _sent(self, method: str, path: str, **more: Any) -> ClientResponse:
        from aiohttp import ClientOSError, ServerDisconnectedError

        url, session = self.address.rstrip("/") + path, self._opened()
        while True:
            rested: list[bool] = []
            try:
                return await session.request(method, url, trace_request_ctx=rested, proxy=self._proxy, **more)
            except (ServerDisconnectedError, ClientOSError):
                # A connection that rested was closed at its other end meanwhile: nothing has been answered, so it is asked anew.
                if not rested:
                    raise

    def _opened(self) -> ClientSession:
        if self._closed:
            raise Broken("closed")
        if self._session is None:
            from aiohttp import BasicAuth, ClientSession, ClientTimeout, TCPConnector, TraceConfig

            tracing = TraceConfig()
            tracing.on_connection_reuseconn.append(_rested)
            self._session = ClientSession(
                connector=TCPConnector(limit=0),
                timeout=ClientTimeout(total=None, sock_connect=CONNECT_WITHIN),
                headers={"Authorization": f"Bearer {self.key}"} if self.key and self.login is None else {},
                auth=None if self.login is None else BasicAuth(*self.login, encoding="utf-8"),
                trace_configs=[tracing],
            )
            # Looked up once: told to trust the environment, aiohttp reads it in threads, twice for each request.
            self._proxy = _proxy_of(self.address) if self.proxies else None
        return self._session


def _proxy_of(address: str) -> str | None:
    """The environment's proxy for an address, of the kind that aiohttp speaks to; None: none, or `NO_PROXY` names it."""
    place = urlsplit(address)
    found = getproxies().get(place.scheme, "")
    return found if found.startswith("http://") and not proxy_bypass(place.hostname or "") else None


async def _rested(session: object, context: Any, params: object) -> None:
    context.trace_request_ctx.append(True)
