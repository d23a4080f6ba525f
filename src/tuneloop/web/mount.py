"""The pages at `/ui` of a server with `ui: true`: only for keys whose right says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway
from tuneloop.web.access import of_keys
from tuneloop.web.app import make_app, warm
from tuneloop.web.index import Index
from tuneloop.web.sources import Sources

BASE = "/ui"


@dataclass
class LatePages:
    """The pages, which read no folder before someone has come to them."""

    pages: ASGIApp
    sources: Sources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self.sources.index.patience is None:
            await run_in_threadpool(warm, self.sources)
        await self.pages(scope, receive, send)


def ui_routes(config: ServeConfig, gateway: Gateway) -> list[BaseRoute]:
    """Routes of the pages over the folder in which a server was started, its own folder and its store; none unless
    `ui` is set."""
    if not config.ui:
        return []
    folders = tuple(dict.fromkeys((Path(), Path(config.folder))))
    sources = Sources(Index(folders), (str(config.store),), base=BASE, local=config.loopback)
    pages = LatePages(make_app(sources, of_keys(gateway.keyring, config.keys.open_rights, BASE)), sources)

    async def to_the_slash(request: Request) -> Response:
        return RedirectResponse(f"{BASE}/")

    return [Route(BASE, to_the_slash), Mount(BASE, pages)]
