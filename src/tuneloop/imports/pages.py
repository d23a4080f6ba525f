"""Lists of a service by HTTP, a page at a time, by cursor or by number, with retries and limits."""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.ids import utc_now
from tuneloop.core.ui import say
from tuneloop.core.urls import masked
from tuneloop.inference.allowance import MOST_OF_A_PAGE, Allowance
from tuneloop.inference.timeouts import seconds_to_wait

TRIES = 6  # of a request that fails for want of network, for a limit of rates, or at the service
PATIENCE = 60.0  # seconds in which nothing comes of an answer
WHOLE = 600.0  # seconds for all of it
LONGEST_WAIT = 120.0  # seconds before the next try


class NoSuchList(Exception):
    """The service has no such list."""


class _SameHost(HTTPRedirectHandler):
    """Keys are sent to no other host."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            step = "name that one, if it is right"
            raise UserError("The service sends to another address", where=masked(newurl), next_step=step)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class Pages:
    """A service; UserErrors: it can't be reached, or refuses."""

    address: str
    login: tuple[str, str]
    until: str = field(default_factory=utc_now)  # what comes later belongs to another import: pages then don't move
    wait: float = 1.0  # seconds before the second try; twice as many before each further one

    def rows(self, path: str, parameters: Mapping[str, Any], page: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The pages of a list from one on, each with the place of the next; NoSuchList: there is no such list.

        Raises UserError: the list has no end (`inference.allowance`); what came before was given out.
        """
        bound = {"observations": "toStartTime"}.get(path.rpartition("/")[2], "toTimestamp")
        taken = Allowance()
        while True:
            at = {"cursor" if not page.isdigit() else "page": page} if page else {}
            body, size = self._get(path, {**parameters, bound: self.until, **at})
            where, rows, meta = f"{masked(self.address)}{path}", body.get("data"), body.get("meta") or {}
            if not isinstance(rows, list) or not isinstance(meta, dict):
                raise UserError("Not a page of a list", where=where, next_step="is this the address of the service?")
            cursor = meta.get("cursor") or meta.get("nextCursor")
            number, last = (_whole(meta.get(name), f"meta.{name}", where) for name in ("page", "totalPages"))
            page = str(cursor) if cursor else str(number + 1) if number and number < last else ""
            known = [row for row in rows if isinstance(row, dict)]
            ids = (row.get("id") or orjson.dumps(row) for row in known)
            fault = taken.fault(ids, page, size, last)
            yield ("" if fault else page), known
            if fault:
                step = "what came until then is kept; see what is at this address"
                raise UserError(f"The list has no end: {fault}", where=where, next_step=step)
            if not page:
                return

    def _get(self, path: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        url, login = f"{self.address}{path}?{urlencode(parameters)}", base64.b64encode(":".join(self.login).encode())
        headers = {"Authorization": f"Basic {login.decode()}", "Accept": "application/json"}
        request = Request(url, headers=headers)  # noqa: S310 - only of http: see `TraceFormat.is_address`
        where, wait, fault = f"{masked(self.address)}{path}", self.wait, ""
        for left in reversed(range(TRIES)):
            after = None
            try:
                with build_opener(_SameHost).open(request, timeout=PATIENCE) as reply:
                    data = _body(reply, where)
                body = orjson.loads(data)
                return (body if isinstance(body, dict) else {"data": body}), len(data)
            except HTTPError as error:
                fault, after = f"{error.code} {error.reason}", seconds_to_wait(error.headers.get("Retry-After"))
                if error.code in (404, 405, 410):
                    raise NoSuchList(path) from None
                if error.code in (401, 403):
                    step = "check the keys, and that they may read this project"
                    raise UserError(f"The service refuses the keys: {fault}", where=where, next_step=step) from None
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise UserError(f"The service refuses: {fault}", where=where) from None
            except (URLError, http.client.HTTPException, OSError, ValueError) as error:
                fault = str(getattr(error, "reason", "") or error or type(error).__name__)
            if left:
                seconds = min(wait if after is None else after, LONGEST_WAIT)
                say(f"waiting   {seconds:g} s: {fault}")
                time.sleep(seconds)
                wait *= 2
        step = "check the address and the network; the same command then continues"
        raise UserError(f"The service gives no whole answer: {fault}", where=where, next_step=step)


def _body(reply: http.client.HTTPResponse, where: str) -> bytes:
    """An answer, as it comes. Raises UserError: it is too long; TimeoutError: it takes too long."""
    until, pieces, size = time.monotonic() + WHOLE, [], 0
    while piece := reply.read1(1 << 20):
        size += len(piece)
        if size > MOST_OF_A_PAGE:
            raise UserError(f"A page of more than {MOST_OF_A_PAGE >> 20} MiB", where=where)
        if time.monotonic() > until:
            raise TimeoutError(f"no whole answer in {WHOLE:g} s")
        pieces.append(piece)
    if reply.length:  # bytes that were announced and did not come
        raise http.client.IncompleteRead(b"", reply.length)
    return b"".join(pieces)


def _whole(value: Any, name: str, where: str) -> int:
    """A number of pages, also as text; 0 where there is none. Raises UserError: it is no such number."""
    if value is None or (isinstance(value, int | float) and 0 <= value < 1e15):
        return int(value or 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise UserError(f"Not a page of a list: {name} is {value!r:.40}", where=where, next_step="is this the service?")
