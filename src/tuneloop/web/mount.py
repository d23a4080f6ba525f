"""The pages at `/ui` of a server, behind its keys: one with the right `ui` opens them for as long as it is in use."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway
from tuneloop.serving.http.api_request import ApiError
from tuneloop.serving.http.app import Call
from tuneloop.serving.keys import ApiKey
from tuneloop.web.app import POLICY, make_app, render, warm
from tuneloop.web.index import Index
from tuneloop.web.sources import BY_NAME, Sources

BASE = "/ui"
COOKIE = "tuneloop-ui"
MOST_SESSIONS = 1000
LONGEST_KEY = 1000  # bytes of the form


@dataclass
class KeyedPages:
    """The application of the pages for those who have given a key; the key itself is kept nowhere.

    Args:
        needed: whether a key is needed now; `check`: the key that a text is; `named`: the one in use of a name.
    """

    pages: ASGIApp
    sources: Sources
    needed: Callable[[], bool]
    check: Callable[[str], ApiKey | None]
    named: Callable[[str], ApiKey | None]
    sessions: dict[str, str] = field(default_factory=dict)  # what a cookie holds -> name of the key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the name of its key, or ask for one."""
        if scope["type"] != "http":
            return
        if self.sources.index.patience is None:  # not before someone looks: a server reads no folders for itself
            await run_in_threadpool(warm, self.sources)
        request = Request(scope, receive, send)
        if not self.needed():
            await self.pages(scope, receive, send)
            return
        name = self.sessions.get(request.cookies.get(COOKIE, ""), "")
        if name and _may(self.named(name)):
            scope["state"] = {**scope.get("state", {}), "sources": replace(self.sources, who=name)}
            await self.pages(scope, receive, send)
        elif scope["path"].startswith(f"{BASE}/static/"):
            await self.pages(scope, receive, send)
        elif request.method == "POST" and scope["path"] == f"{BASE}/login":
            await (await self._login(request))(scope, receive, send)
        else:
            await self._form(request, "", 401)(scope, receive, send)

    async def _login(self, request: Request) -> Response:
        try:
            body = await Call(request.scope, request.receive, request._send).body(LONGEST_KEY)
        except ApiError as error:
            return self._form(request, error.message, 413)
        if (request.headers.get("origin") or "").partition("://")[2] not in ("", request.headers.get("host")):
            return self._form(request, "Requests from pages of other sites are refused", 403)
        key = self.check(parse_qs(body.decode("utf-8", "replace")).get("key", [""])[0].strip())
        if not _may(key):
            return self._form(request, "This key is not in use, or has not the right `ui`", 401)
        assert key is not None
        while len(self.sessions) >= MOST_SESSIONS:
            self.sessions.pop(next(iter(self.sessions)))
        session = secrets.token_urlsafe(24)
        self.sessions[session] = key.name
        answer = RedirectResponse(f"{BASE}/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session, path=BASE, httponly=True, samesite="strict", secure=secure)
        return answer

    def _form(self, request: Request, problem: str, status: int) -> Response:
        html = render("login.html.j2", self.sources, request, here=BY_NAME["home"], problem=problem)
        headers = {"cache-control": "no-store", "content-security-policy": POLICY}
        return HTMLResponse(html, status, headers=headers)


def _may(key: ApiKey | None) -> bool:
    return key is not None and "ui" in key.limits.rights


def ui_routes(config: ServeConfig, gateway: Gateway) -> list[BaseRoute]:
    """Routes of the pages over the folder in which a server was started, its own folder and its store."""
    folders = tuple(dict.fromkeys((Path(), Path(config.folder))))
    sources = Sources(Index(folders), (str(config.store),), base=BASE, local=config.loopback)
    keyring = gateway.keyring
    keyed = KeyedPages(make_app(sources), sources, lambda: gateway.key_required, keyring.check, keyring.named)

    async def to_the_slash(request: Request) -> Response:
        return RedirectResponse(f"{BASE}/")

    return [Route(BASE, to_the_slash), Mount(BASE, keyed)]
