"""The application: routes from the table of pages, what is let in, how a page is filled in, sent and kept live."""

from __future__ import annotations

import asyncio
import functools
import hmac
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneloop.core import written as w
from tuneloop.core.access import Access
from tuneloop.core.errors import UserError
from tuneloop.report import page_environment, script_part
from tuneloop.serving.http import ApiError, Call, refuse_foreign_pages
from tuneloop.web.access import login
from tuneloop.web.runs import run_line, run_lines
from tuneloop.web.sources import BY_NAME, PAGES, NotFound, Page, Sources, module_of

if TYPE_CHECKING:
    from jinja2 import Environment

# Nothing of another site, no script in a page: texts of users and models are in it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# For pages with a report in them: its styles, and the one script of reports.
STYLED = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "script-src 'self'", f"script-src 'self' '{script_part()['script_hash']}'"
)
REPORTS = ("/runs/", "/compare", "/data/")
KINDS = {"js": "text/javascript", "css": "text/css"}
MOST_FORM = 1_000_000  # bytes
EVERY = 1.0  # seconds between two looks at what is live
PATIENCE = 0.03  # seconds that a page waits for folders and runs that were not read yet


class WrongToken(UserError):
    """A form that is not of a page of this process."""


class ReadOnly(UserError):
    """A form of who may only read."""


class NoRoom(UserError):
    """A page that takes too long, or for which there is no room now."""


STATUS: dict[type[Exception], int] = {WrongToken: 403, ReadOnly: 403, NoRoom: 503}

READ_ONLY_STEP = {
    "secret": "start `tuneloop ui` without --read-only on this machine",
    "key": "a key with the right acts: tuneloop keys add NAME --rights steer",
}


Build = Callable[[Page, Request, Sources, bool], Awaitable[tuple[int, str]]]


def make_app(sources: Sources, access: Access, build: Build | None = None) -> Starlette:
    """The ASGI application over some sources, for those whom `access` lets in: no route is reached round it.

    Args:
        build: gives the status and the text of a page, or of its live part; default: in this process.
    """
    routes = [Route("/static/{name}", static)]
    for page in PAGES:
        live = page.path.rstrip("/")
        routes += [Route(f"{live}/live", _handler(_live, page)), Route(f"{live}/stream", _handler(_stream, page))]
    for page in PAGES:
        routes += [Route(page.path, _handler(_shown, page)), Route(page.path, _handler(_acted, page), methods=["POST"])]
    middleware = [Middleware(Guarded), Middleware(GZipMiddleware, minimum_size=1000)]
    app = Starlette(
        routes=routes, middleware=middleware, exception_handlers={404: _missing, UserError: _refused, 500: _failed}
    )
    app.state.sources, app.state.access, app.state.build = sources, access, build or _built_here
    return app


def warm(sources: Sources) -> None:
    """Import the pages, and look through the folders in a thread, so that no page waits for either."""
    sources.index.patience = PATIENCE
    for page in PAGES:
        module_of(page)

    def work() -> None:
        run_lines(sources)
        while sources.index.reading:
            for found in sources.all("run"):
                run_line(sources, found)
            run_lines(sources)

    threading.Thread(target=work, daemon=True).start()


class Guarded:
    """Refuse what other sites send through a reader's browser and who is not let in; say what a page may load.

    It stands before all routes: a page gets its sources from here, with the rights of who looks at it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return
        base = scope["app"].state.sources.base
        path = scope["path"].removeprefix(base)
        policy = (STYLED if path.startswith(REPORTS) else POLICY).encode()

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"content-security-policy", policy),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"same-origin"),  # with none a browser hides where its forms come from
                ]
                if not path.startswith("/static/"):
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        request = Request(scope, receive, sent)
        refusal = await self._refusal(request, path)
        await (refusal or self.app)(scope, receive, sent)

    async def _refusal(self, request: Request, path: str) -> Response | None:
        """What is answered in place of the page; None: it may be seen, by whom `request.state.sources` says."""
        sources: Sources = request.app.state.sources
        access: Access = request.app.state.access
        try:
            refuse_foreign_pages(Call(request.scope, request.receive, request._send), sources.local)
        except ApiError as error:
            return Response(error.message, error.status)
        if path.startswith("/static/") and asset(path.removeprefix("/static/")):  # nothing of these folders
            return None
        if request.method == "POST" and path == "/login":
            answer, problem, status = await login(access, request)
            return answer or _login_page(sources, access, problem, status)
        if (opened := access.by_address(request)) is not None:
            return opened
        if (admitted := access.admitted(request)) is None:
            return _login_page(sources, access)
        visitor, token = admitted
        read_only = sources.read_only or not visitor.acts
        request.state.sources = replace(sources, who=visitor.name, read_only=read_only, token=token)
        return None


def _login_page(sources: Sources, access: Access, problem: str = "", status: int = 401) -> Response:
    page = environment().get_template("login.html.j2")
    return HTMLResponse(page.render(sources=sources, access=access, problem=problem), status)


def _handler(work: Any, page: Page) -> Any:
    async def handle(request: Request) -> Response:
        answer: Response = await work(page, request, sources_of(request))
        return answer

    return handle


def sources_of(request: Request) -> Sources:
    """The sources of a request, with the rights of who sends it."""
    sources: Sources = request.state.sources
    return sources


def render(template: str, sources: Sources, request: Request | None = None, **values: Any) -> str:
    """A template of `web/templates`, filled in; `values`: what it needs beyond `sources`, `url` and the navigation."""
    shown = {
        "sources": sources, "url": sources.url, "asset": sources.asset, "nav": [p for p in PAGES if p.title],
        "may_act": not sources.read_only and sources.files is None, "static": sources.files is not None,
        "query": Query(request.query_params if request else {}), "live": _live_address(request) if request else "",
        "said": request.query_params.get("said", "") if request else "",
        "place": str(request.url).partition(request.url.netloc)[2] if request else "",
    }  # fmt: skip
    return environment().get_template(template).render(**shown, **values)


class Query(dict[str, str]):
    """What is behind the question mark; empty where it is not there."""

    def __missing__(self, name: str) -> str:
        return ""


@functools.cache
def environment() -> Environment:
    """Where the templates are, of the reports too."""
    own = page_environment("tuneloop.web")
    own.filters |= {"minutes": w.minutes, "usd": w.usd, "gib": w.gib, "moment": moment}
    return own


def moment(seconds: float) -> str:
    """A time as people read it, to the minute."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _live_address(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return f"{request.url.path.rstrip('/')}/live{query}"


def page_html(page: Page, request: Request, sources: Sources) -> str:
    """A page as text; blocks. Raises UserError: what it is about is not there or damaged."""
    if hasattr(module_of(page), "html"):  # it is a whole page already
        return str(module_of(page).html(request, sources))
    values = module_of(page).show(request, sources)
    return render(f"{page.name}.html.j2", sources, request, here=page, page=values)


def built(page: Page, request: Request, sources: Sources, live: bool) -> tuple[int, str]:
    """Status and text of a page, or of its live part `NAME_live.html.j2`; what is wrong with what it shows is on it."""
    try:
        if not live:
            return 200, page_html(page, request, sources)
        values = module_of(page).live(request, sources)
        return 200, render(f"{page.name}_live.html.j2", sources, request, here=page, page=values)
    except UserError as error:  # it may have been deleted while the page was open
        return (200, render("problem.html.j2", sources, error=error)) if live else _problem(request, sources, error)


async def _built_here(page: Page, request: Request, sources: Sources, live: bool) -> tuple[int, str]:
    return await run_in_threadpool(built, page, request, sources, live)


async def _shown(page: Page, request: Request, sources: Sources) -> Response:
    status, text = await request.app.state.build(page, request, sources, False)
    return HTMLResponse(text, status)


async def _acted(page: Page, request: Request, sources: Sources) -> Response:
    """What a form asks for. The page's `act` gets its fields and returns the address to go to."""
    try:
        body = await Call(request.scope, request.receive, request._send).body(MOST_FORM)
    except ApiError as error:
        raise UserError(error.message) from None
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    form = {name: values[-1].replace("\r\n", "\n") for name, values in fields.items()}
    if not hmac.compare_digest(form.pop("token", "").encode(), sources.token.encode()):
        raise WrongToken("This form is of an earlier page", next_step="go back, load the page again and send it again")
    if sources.read_only:
        raise ReadOnly("This page only reads", next_step=READ_ONLY_STEP[request.app.state.access.asks])
    if not hasattr(module_of(page), "act"):
        raise UserError("There is nothing to do on this page")
    try:
        address = await run_in_threadpool(module_of(page).act, request, sources, form)
    except OSError as error:
        step = "free space on that disk or look at its permissions; then go back and send it again"
        message, where = f"This can't be written: {error.strerror or error}", str(error.filename or "")
        raise UserError(message, where=where, next_step=step) from error
    return RedirectResponse(address, status_code=303)


async def _live(page: Page, request: Request, sources: Sources) -> Response:
    """Events `live` with a page's live part, when it has changed."""
    if not hasattr(module_of(page), "live"):
        raise UserError("This page is not live")

    async def events() -> AsyncIterator[bytes]:
        before = ""
        access: Access = request.app.state.access
        while not await request.is_disconnected() and access.admitted(request):
            html = before
            with suppress(UserError):  # there is no room for it now
                _, html = await request.app.state.build(page, request, sources, True)
            yield event("live", html) if html != before else b": still here\n\n"
            before = html
            await asyncio.sleep(EVERY)

    return StreamingResponse(events(), media_type="text/event-stream")


async def _stream(page: Page, request: Request, sources: Sources) -> Response:
    """Events of the page's own: `stream` is an asynchronous iterator of (name, markup)."""
    if not hmac.compare_digest(request.query_params.get("token", "").encode(), sources.token.encode()):
        raise WrongToken("This page is of an earlier process", next_step="load it again")
    if sources.read_only or not hasattr(module_of(page), "stream"):
        raise ReadOnly("This page only reads")

    async def events() -> AsyncIterator[bytes]:
        async for name, html in module_of(page).stream(request, sources):
            yield event(name, html)

    return StreamingResponse(events(), media_type="text/event-stream")


def event(name: str, html: str) -> bytes:
    """A server-sent event; line ends within it are data too."""
    return f"event: {name}\n{''.join(f'data: {line}{chr(10)}' for line in html.splitlines() or [''])}\n".encode()


async def static(request: Request) -> Response:
    """A file of `web/static`, or the style that reports have too."""
    data = asset(request.path_params["name"])
    if data is None:
        return Response("There is no such file", 404)
    kind = KINDS[request.path_params["name"].rpartition(".")[2]]
    return Response(data, media_type=kind, headers={"cache-control": "max-age=3600"})


@functools.cache
def asset(name: str) -> bytes | None:
    """The content of a file that pages load; None: there is none."""
    if name == "style.css":
        report = files("tuneloop.report") / "templates"
        parts = [report / "style.css", report / "eval_style.css", files("tuneloop.web") / "static" / "web.css"]
        return b"\n".join(part.read_bytes() for part in parts)
    if name == "samples.js":
        return (files("tuneloop.report") / "templates" / name).read_bytes()
    names = {path.name for path in (files("tuneloop.web") / "static").iterdir()}
    known = name in names and name.rpartition(".")[2] in KINDS
    return (files("tuneloop.web") / "static" / name).read_bytes() if known else None


async def _missing(request: Request, error: Exception) -> Response:
    return await _refused(request, UserError("There is no such page", where=request.url.path[:200]))


async def _failed(request: Request, error: Exception) -> Response:
    """A fault of ours: what is in the log is not on the page."""
    error_shown = UserError("This page failed", next_step="the log of tuneloop ui says why")
    if not hasattr(request.state, "sources"):  # nothing is shown to who was not let in yet
        return Response(error_shown.what, 500)
    html = render("problem_page.html.j2", sources_of(request), request, here=BY_NAME["home"], error=error_shown)
    return HTMLResponse(html, 500)


async def _refused(request: Request, error: Exception) -> Response:
    status, text = _problem(request, sources_of(request), error)
    return HTMLResponse(text, status)


def _problem(request: Request, sources: Sources, error: Exception) -> tuple[int, str]:
    """A page that says what is wrong, where, and what to do."""
    here = BY_NAME["home"]
    if isinstance(error, NotFound) and sources.index.reading and request.method == "GET":  # a page that fills
        return 202, render("problem_page.html.j2", sources, request, here=here, error=error, page={})
    status = STATUS.get(type(error), 404 if request.method == "GET" else 400)
    return status, render("problem_page.html.j2", sources, request, here=here, error=error)
