"""A service of OpenAI's API for more than answers: its lists and files, and what hosted training sends it.

Lists and files are read by GET alone, so that nothing there can change; only `post` and `upload` write. The project's
own client does it, not the official one: its waits and errors are those of every other endpoint here, and it needs no
further package. Tests put the official client before the same stand-in.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, urlencode, urlsplit
from uuid import uuid4

from tuneloop.core.errors import UserError
from tuneloop.core.files import replacing
from tuneloop.core.foreign import parse_json
from tuneloop.core.http import allowance, timeouts
from tuneloop.core.http.allowance import Allowance
from tuneloop.core.http.wire import Broken, HttpRefused, Wire, need_httptools
from tuneloop.core.ui import say
from tuneloop.core.urls import masked, split_login

T = TypeVar("T")
Item = Mapping[str, Any]  # of a list, as the service describes it

TRIES = 6  # further ones of a request that may succeed later
RESTARTS = 3  # of a list whose place to continue from was deleted
SAID = 5.0  # seconds of a wait from which it is reported


class _BrokenOff(Exception):
    """A file did not come as a whole."""


class Service:
    """The service, from one event loop.

    Args:
        url: its base, as in `https://api.openai.com/v1`.
        key: of the API; it is sent and kept nowhere.
        login: user and password in its place.

    Raises:
        UserError: that is no URL.
    """

    def __init__(
        self, url: str, key: str, pause: float = timeouts.PAUSE, *, login: tuple[str, str] | None = None
    ) -> None:
        plain, own_login = split_login(url)
        parts = _parts_of(plain)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            message = f"Not a service's URL: {masked(url)!r:.80}"
            raise UserError(message, where="--base-url", next_step="as in https://api.openai.com/v1")
        if not (key.isascii() and (key or " ").isprintable()):
            message, step = "The API key holds characters that no header may hold", "set the variable to the key alone"
            raise UserError(message, where="--api-key-env", next_step=step)
        need_httptools(masked(plain), "evaluate")
        self.url, self.pause = masked(plain), pause
        self._wire = Wire(plain.rstrip("/"), key, True, login or own_login, timeouts.CONNECT_FAR_WITHIN)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._wire.close()

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """An object by its path.

        Raises:
            HttpRefused: the service refuses it.
            Broken: there is no whole answer, after several tries.
        """
        value, _ = await self.read(path, query)
        return value

    async def read(self, path: str, query: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """An object by its path and query, and its size in bytes; raises as `get`."""
        target, most = f"{path}?{urlencode(query)}" if query else path, allowance.MOST_OF_A_PAGE
        body = await self._tried(lambda: self._wire.get(target, timeouts.ANSWER_WITHIN, most))
        return _object(body, path), len(body)

    async def post(self, path: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """What the service answers to an object. It is sent once: where the reply is lost, it may have begun.

        Raises:
            HttpRefused, Broken: see `get`; a busy service is waited for.
        """
        return await self._sent(path, json.dumps(value).encode(), "application/json")

    async def upload(self, path: str, fields: Mapping[str, str], file: Path) -> dict[str, Any]:
        """What the service answers to a file with form fields. Raises HttpRefused, Broken: see `post`."""
        mark = f"tuneloop-{uuid4().hex}"
        part = '--{mark}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        head = "".join(part.format(mark=mark, name=name, more="") + f"{value}\r\n" for name, value in fields.items())
        head += part.format(mark=mark, name="file", more=f'; filename="{file.name}"')
        body = head.encode() + await asyncio.to_thread(file.read_bytes) + f"\r\n--{mark}--\r\n".encode()
        return await self._sent(path, body, f"multipart/form-data; boundary={mark}")

    async def _sent(self, path: str, body: bytes, kind: str) -> dict[str, Any]:
        within, most = allowance.UPLOAD_WITHIN, allowance.MOST_OF_A_PAGE
        reply = await self._tried(lambda: self._wire.post(path, body, within, most, kind), once=True)
        return _object(reply, path)

    async def pages(self, path: str, **query: str | int) -> AsyncGenerator[list[Item], None]:
        """The pages of a list, each item once, also where the list changes meanwhile.

        What is added at the front is passed over. Where the item from which the next page begins was deleted, the list
        is read again from its beginning, and what was there before is left out.

        Raises:
            HttpRefused, Broken: see `get`; the list has no end (`core.http.allowance`).
        """
        seen: set[str] = set()
        restarts, after, taken = 0, "", Allowance()
        while True:
            try:
                page, size = await self.read(path, {**query, **({"after": after} if after else {})})
            except HttpRefused as error:
                if not after or error.status not in (400, 404) or restarts == RESTARTS:
                    raise
                restarts, after, taken = restarts + 1, "", Allowance()
                continue
            items = page.get("data")
            if not isinstance(items, list) or not all(map(_is_item, items)):
                raise Broken(f"{path} is no list of objects with an id")
            yield [item for item in {item["id"]: item for item in items}.values() if item["id"] not in seen]
            seen |= {item["id"] for item in items}
            if not items or not page.get("has_more"):
                return
            after = items[-1]["id"]
            if fault := taken.fault((item["id"] for item in items), after, size):
                raise Broken(f"the list {path} has no end: {fault}")

    async def items(self, path: str, **query: str | int) -> list[Item]:
        """A whole list; see `pages`."""
        async with aclosing(self.pages(path, **query)) as pages:
            return [item async for page in pages for item in page]

    async def download(self, path: str, file: Path, progress: Callable[[int], None]) -> None:
        """Write what a path holds to a file, which is complete or not there.

        A whole URL, or one that the service names instead, is of another server: it gets no key.

        Args:
            progress: gets the bytes of each piece, and minus their sum where it begins again.

        Raises:
            HttpRefused, Broken: see `get`.
            UserError: the disk is full, or the folder can't be written.
        """

        parts = _parts_of(path)
        if parts.netloc:
            async with aclosing(Service(f"{parts.scheme}://{parts.netloc}", "", self.pause)) as other:
                return await other.download(path.split(parts.netloc, 1)[1], file, progress)

        async def once() -> None:
            size, begun = 0, time.monotonic()
            pieces, broken = _patient(self._wire.pieces(path)), list[Broken]()
            try:
                with replacing(file) as handle:
                    try:
                        async for piece in pieces:
                            handle.write(piece)
                            size += len(piece)
                            progress(len(piece))
                            _refuse_endless(size, time.monotonic() - begun)
                    except Broken as error:  # an OSError too, and not one of the disk
                        broken.append(error)
                        raise _BrokenOff from None
            except _BrokenOff:
                progress(-size)
                raise broken[0] from None

        try:
            await self._tried(once)
        except HttpRefused as error:
            if not (self._wire.key and _parts_of(error.location).netloc):
                raise
            await self.download(error.location, file, progress)

    async def _tried(self, ask: Callable[[], Awaitable[T]], *, once: bool = False) -> T:
        """What a request brings; one that may succeed later is made again, after the time that the service names.

        Args:
            once: only where the service counts it as too many. A 503 may be a gateway's, behind which it was taken.
        """
        waited = 0.0
        for tries in range(TRIES + 1):
            wait: float | None = None
            try:
                return await ask()
            except HttpRefused as error:
                wait, reason = error.retry_after, error.in_words
                later = error.status in ((429,) if once else timeouts.RETRIED)
                if not later or error.no_quota or tries == TRIES:
                    raise
                if waited + (wait or 0.0) > timeouts.PATIENCE:
                    raise
            except Broken as error:
                reason = f"{error.kind or 'broken off'} ({error})"
                if (
                    once
                    or error.kind in ("unsendable", "large")
                    or tries == TRIES
                    or (error.kind == "unreachable" and tries == 2)
                ):
                    raise
            wait = wait or timeouts.backoff(tries, self.pause)
            waited += wait
            if wait >= SAID:
                say(f"wait      {wait:.0f} s: {reason}")
            await asyncio.sleep(wait)
        raise AssertionError("the last try returns or raises")


def _object(body: bytes, path: str) -> dict[str, Any]:
    try:
        value = parse_json(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Broken(f"{path} holds no JSON object")
    return value


def _is_item(value: Any) -> bool:
    id_ = value.get("id") if isinstance(value, dict) else None
    return isinstance(id_, str) and 0 < len(id_) <= allowance.LONGEST_NAME and id_.isprintable()


def _parts_of(url: str) -> SplitResult:
    """The parts of an address, which a service may have named; Broken: it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise Broken("not an address", "unsendable") from None
    return parts


def _refuse_endless(size: int, seconds: float) -> None:
    """Raise Broken where a file is larger, or slower on average, than any is."""
    if size > allowance.MOST_OF_A_FILE:
        raise Broken(f"a file of more than {allowance.MOST_OF_A_FILE >> 30} GiB", "large", began=True)
    if seconds > timeouts.ANSWER_WITHIN and size < allowance.SLOWEST * seconds:
        raise Broken(f"less than {allowance.SLOWEST:,} bytes a second", "late", began=True)


async def _patient(pieces: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """Pieces as they come; Broken: the next one does not come in time."""
    async with aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout(timeouts.ANSWER_WITHIN):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise Broken("TimeoutError", "late", began=True) from None
            if piece is None:
                return
            yield piece


def place_of(*parts: str) -> str:
    """A path of parts, each quoted: an id from the service must not lead elsewhere."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def why(error: HttpRefused | Broken) -> str:
    """An error in words."""
    if isinstance(error, HttpRefused):
        return error.in_words
    return "nothing answers at this address" if error.kind == "unreachable" else f"no whole answer ({error})"


def refusal(
    error: HttpRefused | Broken, url: str, subject: str, key: str = "OPENAI_API_KEY", option: str = "--base-url"
) -> UserError:
    """An error at what nothing works without, with the way out.

    Args:
        key: variable with the key. `option`: what says where the service is.
    """
    status = error.status if isinstance(error, HttpRefused) else 0
    steps = {
        401: f"export {key}=..., a key of the project that owns the models",
        403: f"give the key the right to read {subject}, or take one of the project that owns the models",
        404: f"check {option}{': it ends in /v1 as a rule' if option == '--base-url' else ''}",
        429: "its limit is reached: run the same command later, it continues",
    }
    wrong = option if status or option == "--base-url" else "the network"
    step = steps.get(status, f"check {wrong} and run the same command again, it continues")
    return UserError(f"The service gives no {subject}: {why(error)}", where=url, next_step=step)
