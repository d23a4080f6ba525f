"""The pages at `/ui` of a server with `ui: true`: only for keys whose right says so."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from tuneloop.serving import Gateway, ServeConfig
from tuneloop.web.access import of_keys
from tuneloop.web.apart import page_work
from tuneloop.web.app import make_app
from tuneloop.web.index import Index
from tuneloop.web.sources import Sources

BASE = "/ui"


def ui_routes(config: ServeConfig, gateway: Gateway) -> list[BaseRoute]:
    """Routes of the pages over the folder in which a server was started, its own folder and its store; none unless
    `ui` is set."""
    if not config.ui:
        return []
    folders = tuple(dict.fromkeys((Path(), Path(config.folder))))
    sources = Sources(Index(folders), (str(config.store),), base=BASE, local=config.loopback)
    access = of_keys(gateway.keyring, config.keys.open_rights, BASE)
    pages = make_app(sources, access, page_work(2, charged=True))  # which read no folder before the first is opened

    async def to_the_slash(request: Request) -> Response:
        return RedirectResponse(f"{BASE}/")

    return [Route(BASE, to_the_slash), Mount(BASE, pages)]
