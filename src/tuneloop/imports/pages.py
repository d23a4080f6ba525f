"""Lists of a service, a page at a time, by cursor or by number, with the tries and limits of `core.http.service`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.http.allowance import Allowance
from tuneloop.core.http.service import Service, why
from tuneloop.core.http.timeouts import RETRIED
from tuneloop.core.http.wire import Broken, HttpRefused, finished
from tuneloop.core.ids import utc_now
from tuneloop.core.urls import masked


class NoSuchList(Exception):
    """The service has no such list."""


@dataclass
class Pages:
    """A service; UserErrors: it can't be reached, or refuses."""

    address: str
    login: tuple[str, str]
    until: str = field(default_factory=utc_now)  # what comes later belongs to another import: pages then don't move

    def rows(self, path: str, parameters: Mapping[str, Any], page: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The pages of a list from one on, each with the place of the next; NoSuchList: there is no such list.

        Raises UserError: the list has no end (`core.http.allowance`); what came before was given out.
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
            refuse_endless(fault, where)
            if not page:
                return

    def _get(self, path: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """A page and its size in bytes. The keys are sent to no other address: no redirection is followed."""
        where = f"{masked(self.address)}{path}"

        async def read() -> tuple[dict[str, Any], int]:
            async with aclosing(Service(self.address, "", login=self.login)) as service:
                return await service.read(path, parameters)

        try:
            return finished(read())
        except HttpRefused as error:
            fault, status, location = why(error), error.status, error.location
        except Broken as error:
            fault, status, location = why(error), 0, ""
        if status in (404, 405, 410):
            raise NoSuchList(path)
        if location:
            step = "name that one, if it is right"
            raise UserError("The service sends to another address", where=masked(location)[:200], next_step=step)
        if status in (401, 403):
            step = "check the keys, and that they may read this project"
            raise UserError(f"The service refuses the keys: {fault}", where=where, next_step=step)
        if status and status not in RETRIED:
            raise UserError(f"The service refuses: {fault}", where=where)
        step = "check the address and the network; the same command then continues"
        raise UserError(f"The service gives no whole answer: {fault}", where=where, next_step=step)


def refuse_endless(fault: str, where: str) -> None:
    """Raises UserError where a list has a fault (`Allowance.fault`)."""
    if fault:
        step = "what came until then is kept; see what is at this address"
        raise UserError(f"The list has no end: {fault}", where=where, next_step=step)


def _whole(value: Any, name: str, where: str) -> int:
    """A number of pages, also as text; 0 where there is none. Raises UserError: it is no such number."""
    if value is None or (isinstance(value, int | float) and 0 <= value < 1e15):
        return int(value or 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    raise UserError(f"Not a page of a list: {name} is {value!r:.40}", where=where, next_step="is this the service?")
