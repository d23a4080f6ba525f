"""Pages that are built in processes which can be ended, so that none holds the server, whatever is in its folders.

A child has its own index of the folders, which it keeps between pages. What a page takes is charged to who opens it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tuneloop.core.bounded_work import BoundedWork, TooBusy, TooMuchWork, charged_to
from tuneloop.core.foreign import LIMITS, fast_json
from tuneloop.web.app import NoRoom, built, warm
from tuneloop.web.index import Index
from tuneloop.web.sources import BY_NAME, Page, Sources

MEMORY, LARGE = 8 << 30, 1 << 30  # bytes: commands that a page starts inherit the first, and MLflow's needs some


@dataclass(frozen=True)
class PageWork:
    """Builds pages; see `web.app.make_app`.

    Args:
        work: the processes.
        charged: whether who opens a page has a share of them only: on a server, whose pages are for several.
    """

    work: BoundedWork
    charged: bool

    async def __call__(self, page: Page, request: Request, sources: Sources, live: bool) -> tuple[int, str]:
        """Status and text of a page, or of its live part. Raises NoRoom."""
        order = json.dumps({"page": page.name, "live": live, "scope": _scope(request), "sources": _fields(sources)})
        token = charged_to.set(f"pages of {sources.who}" if self.charged else None)
        try:
            reply = await self.work.result(build_job, order.encode(), seconds=LIMITS["page built"].seconds)
        except TooMuchWork:
            step = "narrow what it shows; what is in its folder may be damaged"
            raise NoRoom("This page takes too long, or too much memory", next_step=step) from None
        except TooBusy as error:
            step = f"load it again in {error.retry_after:.0f} s or more"
            raise NoRoom("Too many pages are being built", next_step=step) from None
        finally:
            charged_to.reset(token)
        status, text = fast_json(reply)
        return status, text

    def warm(self, sources: Sources) -> None:
        """Start a process that looks through the folders before the first page is opened."""
        order = json.dumps({"sources": _fields(sources)})
        self.work.submit(warm_job, order.encode(), seconds=LIMITS["page built"].seconds)


def page_work(workers: int, *, charged: bool = False) -> PageWork:
    """Pages built by so many processes, which start with the first of them; `charged`: see `PageWork`."""
    nice = 5 if charged else 0  # next to answers of a model pages wait, next to a training they don't
    work = BoundedWork(workers, share=0.5, modules=[__name__], memory=MEMORY, large=LARGE, nice=nice)
    return PageWork(work, charged)


def _scope(request: Request) -> dict[str, Any]:
    scope = request.scope
    plain = {name: scope.get(name) for name in ("path", "root_path", "scheme", "server", "path_params")}
    return {**plain, "query": scope["query_string"].decode("latin-1"), "host": request.headers.get("host", "")}


def _fields(sources: Sources) -> dict[str, Any]:
    names = ("given_stores", "read_only", "local", "base", "who", "token", "texts")
    fields = {name: getattr(sources, name) for name in names}
    return {"folders": [str(folder) for folder in sources.index.folders], "place": os.getcwd(), **fields}


# --- in the child ----------------------------------------------------------------------------------


@lru_cache(4)
def _index(directory: str, folders: tuple[str, ...]) -> Index:
    os.chdir(directory)
    sources = Sources(Index(tuple(map(Path, folders))))
    warm(sources)
    return sources.index


def build_job(order: bytes) -> bytes:
    """In a process of `core.bounded_work`: a page's status and text, as JSON."""
    value = fast_json(order)
    fields, given = value["sources"], value["scope"]
    directory, folders = fields.pop("place"), fields.pop("folders")
    index = _index(directory, tuple(folders))
    os.chdir(directory)
    sources = Sources(index, tuple(fields.pop("given_stores")), **fields)
    host, query = given.pop("host").encode("latin-1"), given.pop("query").encode("latin-1")
    scope = {"type": "http", "method": "GET", "query_string": query, "headers": [(b"host", host)], **given}
    return json.dumps(built(BY_NAME[value["page"]], Request(scope), sources, value["live"])).encode()


def warm_job(order: bytes) -> bytes:
    """In a process of `core.bounded_work`: look through the folders before the first page is opened."""
    fields = fast_json(order)["sources"]
    _index(fields["place"], tuple(fields["folders"]))
    return b""
