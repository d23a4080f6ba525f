"""The HTTP surface: routes, bodies, headers, streams. What is answered is the gateway's affair."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from tuneloop.core.bounded_work import TooBusy
from tuneloop.core.errors import UserError
from tuneloop.core.text import json_bytes
from tuneloop.inference import label_distribution
from tuneloop.records.completion import Completion
from tuneloop.serving.embeddings import embedded
from tuneloop.serving.gateway import Caller, Gateway, Piece
from tuneloop.serving.http import api_request as read
from tuneloop.serving.http import replies
from tuneloop.serving.http.api_request import ApiError, ApiRequest, Headers, unavailable
from tuneloop.serving.http.contract import (
    MOST_EMBEDDED,
    MOST_TEXTS,
    EmbeddingsBody,
    ResponsesBody,
    TokenizeBody,
    document,
)
from tuneloop.serving.http.feedback import FeedbackLimit, take_feedback
from tuneloop.serving.http.responses import ResponsesStream, earlier_responses, read_responses, responses_body

# Bytes of a body: of schemas and settings, and for each token of a prompt, which mostly has four characters.
AROUND_PROMPTS, BYTES_A_TOKEN = 262_144, 32
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
ANSWERING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/classify", "/v1/models", "/v1/batches")
PLAIN_CLIENTS = ("", "application/x-www-form-urlencoded")  # what raw sockets, `curl -d` and urllib say of JSON
WATCH_AFTER = 0.02  # seconds of an answer after which it is looked whether its client leaves

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Disconnected(Exception):
    """The client has left."""


@dataclass
class Call:
    """One HTTP request, and the ways to answer it."""

    scope: Scope
    receive: Receive
    send: Send
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)  # of large bodies; see `api_request.json_object`
    has_begun: bool = False  # the answer
    left: bool = False  # the client was seen to leave
    events: bool = False  # the answer is a stream of events, in which an error can be one

    def __post_init__(self) -> None:
        self.headers: dict[bytes, bytes] = dict(self.scope["headers"])

    def header(self, name: str) -> str:
        """A header's value, in UTF-8 or else in Latin-1; empty where there is none.

        Raises:
            ApiError: a key is given more than once: another program in between may have looked at the other one.
        """
        key, lines = name.encode(), self.scope["headers"]
        twice = len(self.headers) < len(lines) and key in (b"authorization", b"x-api-key")
        if twice and [value for value, _ in lines].count(key) > 1:
            raise ApiError(400, f"The header {name} is there more than once", code="invalid_api_key")
        raw = self.headers.get(key, b"")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    async def body(self, most: int, *, packed: bool = False, large: ApiError | None = None) -> bytes:
        """The whole body, of so many bytes at most; ApiError: it is larger, which `large` says, or compressed.

        `packed`: one that is compressed by gzip is taken, as it comes.
        """
        length, size = self.headers.get(b"content-length", b"0"), 0
        large = large or ApiError(413, f"The body is larger than {most / 1e6:g} MB", code="request_too_large")
        encoding = self.header("content-encoding").strip().lower()
        if encoding not in ("", "identity", *(["gzip"] if packed else [])):
            raise ApiError(415, "Compressed bodies are not read", code="unsupported_media_type")
        if length.isdigit() and int(length) > most:
            raise large
        parts, more = [], True
        while more:
            part, more = await self.part()
            size += len(part)
            if size > most:
                raise large
            parts.append(part)
        return b"".join(parts)

    async def part(self) -> tuple[bytes, bool]:
        """The next part of the body, and whether more follow; Disconnected: the client left before its end."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message.get("body", b""), message.get("more_body", False)

    async def json(self, most: int, large: ApiError | None = None) -> dict[str, Any]:
        """The body as a JSON object; ApiError: it is not valid JSON, says that it is something else, or see `body`."""
        kind = self.header("content-type").partition(";")[0].strip().lower()
        if kind not in PLAIN_CLIENTS and kind != "application/json" and not kind.endswith("+json"):
            message = "The body must be JSON, with Content-Type: application/json"
            raise ApiError(415, message, code="unsupported_media_type")
        return await read.json_object(await self.body(most, large=large), self.turns)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """End the work of a block when the client leaves, as `Disconnected`; quick answers need no second task."""
        worker = asyncio.current_task()
        assert worker is not None
        watching: list[asyncio.Task[None]] = []

        async def watch() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass
            self.left = True
            worker.cancel()

        def begin() -> None:
            watching.append(asyncio.ensure_future(watch()))

        timer = asyncio.get_running_loop().call_later(WATCH_AFTER, begin)
        try:
            yield
        except asyncio.CancelledError:
            if not self.left:
                raise
            worker.uncancel()
            raise Disconnected from None
        finally:
            timer.cancel()
            for task in watching:
                task.cancel()

    async def start(self, status: int, kind: str, headers: Headers = None, size: int = -1) -> None:
        """Send status and headers."""
        self.has_begun, self.events = True, kind.startswith("text/event-stream")
        lines = [(b"content-type", kind.encode())]
        if not headers or "cache-control" not in headers:
            lines.append((b"cache-control", b"no-store"))
        if size >= 0:
            lines.append((b"content-length", str(size).encode()))
        for name, value in (headers or {}).items():
            line = value.replace("\r", " ").replace("\n", " ")
            lines.append((name.encode(), line.encode("latin-1", "replace")))
        await self.send({"type": "http.response.start", "status": status, "headers": lines})

    async def reply(self, value: Any, status: int = 200, headers: Headers = None) -> None:
        """Send a JSON value."""
        await self.reply_bytes(json_bytes(value), "application/json", status, headers)

    async def reply_bytes(self, data: bytes, kind: str, status: int = 200, headers: Headers = None) -> None:
        """Send a whole body."""
        await self.start(status, kind, headers, len(data))
        await self.send({"type": "http.response.body", "body": data})

    async def event(self, value: Mapping[str, Any] | str) -> None:
        """Send a server-sent event."""
        if isinstance(value, str):
            data = f"data: {value}\n\n".encode()
        else:
            kind = f"event: {value['type']}\n".encode() if "sequence_number" in value else b""
            data = kind + b"data: " + json_bytes(value) + b"\n\n"
        await self.send({"type": "http.response.body", "body": data, "more_body": True})


Handler = Callable[[Call], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RouteApp:
    """An ASGI application for one route: errors become bodies, a client that leaves ends the work."""

    def __init__(self, handler: Handler, seconds: float, local: bool = True, origins: Sequence[str] = ()) -> None:
        self.handler, self.seconds, self.local, self.origins = handler, seconds, local, origins
        self.turns = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        call = Call(scope, receive, send, self.turns)
        try:
            refuse_foreign_pages(call, self.local, self.origins)
            async with asyncio.timeout(self.seconds):
                await self.handler(call)
        except TimeoutError:  # which is an OSError too
            await _fail(call, ApiError(504, f"The request took longer than {self.seconds:g} s", code="timeout"))
        except Disconnected:
            return
        except asyncio.CancelledError:  # by a server that stops, unless its client left at the very end
            if not call.left:
                await _fail(call, unavailable("The server is stopping", "stopping"))
        except Exception as error:
            await _fail(call, error if isinstance(error, ApiError) else failure(error))


def failure(error: Exception) -> ApiError:
    """What a fault of the server is to its client: nothing of its inside; of a full disk, that it may try again; of too
    much work, when."""
    if isinstance(error, TooBusy):
        wait = {"Retry-After": str(math.ceil(error.retry_after))}
        return ApiError(429, f"The request is not read now: {error}", code="busy", headers=wait)
    cause, log = error.__context__ if isinstance(error, UserError) else error, logging.getLogger("uvicorn.error")
    if isinstance(cause, OSError) and cause.errno in NO_DISK:
        log.error("A request failed: %s", error)
        return unavailable("The server can't write at present", "store")
    if isinstance(error, UserError):
        log.error("A request failed: %s (%s)", error.what, error.where)
    else:
        log.error("A request failed", exc_info=error)
    return ApiError(500, "The server failed; its log says why", code="server")


def refuse_foreign_pages(call: Call, local: bool, origins: Sequence[str] = ()) -> None:
    """Refuse what a page of another site sends through its reader's browser.

    Args:
        local: the server listens on this machine only, where no key may be needed: its own names are the only hosts.
        origins: of pages of other sites that are allowed.

    Raises:
        ApiError: the page, or the name by which the server was reached, is foreign.
    """
    host, origin = call.header("host").lower(), call.header("origin").lower()
    foreign = origin.partition("://")[2] != host if origin else call.header("sec-fetch-site") == "cross-site"
    # A link to a page here, and a script for pages there, are all that a browser may fetch for another site.
    linked = not origin and (call.header("sec-fetch-mode") == "navigate" or call.scope["path"] == "/feedback.js")
    if foreign and origin not in origins and not linked:
        raise ApiError(403, "Requests from pages of other sites are refused", code="foreign_origin")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if local and name and name not in ("localhost", "127.0.0.1", "[::1]", "testserver"):
        raise ApiError(403, "The Host header names another server", code="foreign_host")


async def _fail(call: Call, error: ApiError) -> None:
    """Send an error: as a body, or as an event where the answer has begun. A file that has begun breaks off."""
    with contextlib.suppress(OSError):
        if not call.has_begun:
            await call.reply(error.body(), error.status, error.headers)
            return
        if not call.events:
            raise error
        await call.event(error.body())
        await call.send({"type": "http.response.body", "body": b""})


def routed(gateway: Gateway, *handlers: tuple[str, str, Handler], origins: Sequence[str] = ()) -> list[Any]:
    """Routes of a server: method, path, and what answers; `origins`: see `refuse_foreign_pages`."""
    from starlette.routing import Route

    seconds, local = gateway.config.limits.request_seconds, gateway.loopback
    return [
        Route(path, RouteApp(handler, seconds, local, origins), methods=method.split())
        for method, path, handler in handlers
    ]


def routes_of(gateway: Gateway) -> list[Any]:
    """The routes of a server but for those of batches; `http.contract` describes them."""
    limits, server = gateway.config.feedback, RouteHandlers(gateway)
    feedback = partial(take_feedback, gateway, FeedbackLimit(limits.per_minute, limits.pages_per_minute))
    methods = "POST OPTIONS" if limits.origins else "POST"
    return routed(
        gateway,
        ("POST", "/v1/chat/completions", server.chat),
        ("POST", "/v1/completions", server.completions),
        ("POST", "/v1/responses", server.responses),
        ("POST", "/v1/classify", server.classify),
        ("POST", "/v1/embeddings", server.embeddings),
        ("POST", "/tokenize", server.tokenize),
        ("GET", "/v1/models", server.models),
        ("GET", "/v1/models/{model:path}", server.model),
        ("GET", "/healthz", server.healthz),
        ("GET", "/readyz", server.readyz),
        ("GET", "/metrics", server.metrics),
        ("GET", "/openapi.json", server.openapi),
        ("GET", "/feedback.js", server.widget),
        ("GET", "/", server.page),
    ) + routed(gateway, (methods, "/v1/feedback", feedback), origins=limits.origins)


def make_app(gateway: Gateway, extra: Iterable[Any] = ()) -> App:
    """The ASGI application of a server; `extra`: further routes, as those of batches."""
    from starlette.applications import Starlette

    routes = routes_of(gateway)
    app = Starlette(routes=[*routes, *extra], exception_handlers={404: _no_route, 405: _no_route, 500: _no_route})
    app.router.redirect_slashes = False  # the place that it sends to would come from the request's Host
    posts: dict[str, App] = {route.path: route.endpoint for route in routes if route.methods == {"POST"}}

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        """Find the endpoints of answers at once, without a search through all routes."""
        post = scope["type"] == "http" and scope["method"] == "POST"
        await (posts.get(scope["path"], app) if post else app)(scope, receive, send)

    return direct


async def _no_route(request: Any, error: Exception) -> Any:
    from starlette.responses import Response

    status = getattr(error, "status_code", 500)
    path = request.scope["path"][:200]
    instead = f": this server has {', '.join(ANSWERING)}" if path.startswith("/v1/") else ""
    message = {404: f"There is no {path}{instead}", 405: f"{request.method} is not possible here"}
    body = ApiError(status, message.get(status, "The server failed"), code=None if status < 500 else "server").body()
    headers = {**(getattr(error, "headers", None) or {}), "cache-control": "no-store"}  # with 405, what is allowed
    return Response(json_bytes(body), status, headers, media_type="application/json")


@dataclass
class RouteHandlers:
    """The handlers of all routes but those of batches."""

    gateway: Gateway

    async def _body(self, call: Call, prompts: int = 1) -> tuple[dict[str, Any], Caller]:
        """The body and who sends it; the key is checked first, so that no body without one is read.

        Args:
            prompts: that it may have at most: what can't fit into as many contexts is refused before it is read.
        """
        caller, config = self.gateway.caller(call.header), self.gateway.config
        most, context = int(config.limits.body_mb * 1e6), self.gateway.engine.context
        fitting = AROUND_PROMPTS + prompts * context * BYTES_A_TOKEN
        length = call.header("content-length")
        above = fitting >= most or (length.isdigit() and int(length) > most)
        if self.gateway.elsewhere or above:  # of other servers the context may not be known
            return await call.json(most), caller
        message = f"The body has more than {fitting:,} bytes, too many for the {context:,} tokens that the model reads"
        return await call.json(fitting, ApiError(400, message, code="context_length_exceeded")), caller

    async def chat(self, call: Call) -> None:
        """`POST /v1/chat/completions`."""
        body, caller = await self._body(call)
        request = read.read_chat(body, self.gateway.config.limits.most_choices)
        if request.stream:
            await self._stream(call, request, caller, replies.ChatStream(request))
            return
        ((piece, completions),) = await self._whole(call, [request], caller)
        await call.reply(replies.chat_body(request, piece, completions), headers=self._headers(piece, caller))

    async def completions(self, call: Call) -> None:
        """`POST /v1/completions`."""
        body, caller = await self._body(call, self.gateway.config.limits.most_choices)
        requests = read.read_completions(body, self.gateway.config.limits.most_choices)
        if requests[0].stream:
            if len(requests) > 1:
                raise ApiError(400, "One prompt at a time can be streamed", param="prompt")
            await self._stream(call, requests[0], caller, replies.CompletionsStream(requests[0]))
            return
        answers = await self._whole(call, requests, caller)
        await call.reply(replies.completions_body(requests, answers), headers=self._headers(answers[0][0], caller))

    async def responses(self, call: Call) -> None:
        """`POST /v1/responses`."""
        body, caller = await self._body(call)
        asked = read.parsed(ResponsesBody, body)
        request = read_responses(asked, await earlier_responses(self.gateway, asked, caller))
        if request.stream:
            await self._stream(call, request, caller, ResponsesStream(request), end="")
            return
        ((piece, (completion, *_)),) = await self._whole(call, [request], caller)
        await call.reply(responses_body(request, piece, completion), headers=self._headers(piece, caller))

    async def classify(self, call: Call) -> None:
        """`POST /v1/classify`: labels with their probabilities."""
        body, caller = await self._body(call, MOST_TEXTS)
        requests = read.read_classify(body)
        model = self.gateway.model_of(requests[0].model, caller)
        if not model.labels:
            raise ApiError(400, f"{model.name!r} writes texts; it was not trained to choose a label", param="model")
        answers = await self._whole(call, requests, caller)
        data: list[dict[str, Any]] = []
        for request, (piece, (completion, *_)) in zip(requests, answers, strict=True):
            tokens, scores = piece.model.label_tokens, None  # None: the engine has no scores
            if completion.label_scores and tokens:  # of all labels, or of the likeliest ones, the answer first
                scores = label_distribution(completion, tokens, request.top or len(piece.model.labels))
            data.append({
                "index": len(data), "id": piece.id, "label": completion.text,
                "probability": completion.label_probability, "probabilities": scores,
            })  # fmt: skip
        reply = {
            "object": "list", "model": model.name, "labels": list(model.labels), "data": data,
            "usage": replies.usage(*(completions for _, completions in answers)),
        }  # fmt: skip
        await call.reply(reply, headers=self._headers(answers[0][0], caller))

    async def embeddings(self, call: Call) -> None:
        """`POST /v1/embeddings`: vectors of texts."""
        body, caller = await self._body(call, MOST_EMBEDDED)
        asked = read.parsed(EmbeddingsBody, body)
        async with call.watched():
            reply = await embedded(self.gateway, asked, caller)
        await call.reply(reply, headers=self.gateway.ledger.headers(caller.key))

    def _headers(self, piece: Piece, caller: Caller) -> dict[str, str]:
        """The headers of an answer: of itself, and of what its key may still use."""
        return headers_of(piece) | self.gateway.ledger.headers(caller.key)

    async def _whole(self, call: Call, requests: list[ApiRequest], caller: Caller) -> list[Whole]:
        """Whole answers; the client's leaving ends them."""
        async with call.watched():
            if len(requests) == 1:
                return [await whole(self.gateway.answer(requests[0], caller))]
            tasks = [asyncio.ensure_future(whole(self.gateway.answer(request, caller))) for request in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self, call: Call, request: ApiRequest, caller: Caller, shape: Any, end: str = "[DONE]") -> None:
        """An answer in pieces. Status and headers wait for the first one: what is refused has its own status."""
        async with call.watched(), aclosing(self.gateway.answer(request, caller)) as pieces:
            async for piece in pieces:
                if not call.has_begun:
                    headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **self._headers(piece, caller)}
                    await call.start(200, "text/event-stream; charset=utf-8", headers)
                for event in shape.events(piece):
                    await call.event(event)
            for event in [*shape.end(), *([end] if end else [])]:
                await call.event(event)
            await call.send({"type": "http.response.body", "body": b""})

    async def widget(self, call: Call) -> None:
        """`GET /feedback.js`: thumbs, correction and comment for any page."""
        script = (files("tuneloop.serving.http") / "feedback.js").read_bytes()
        await call.reply_bytes(script, "text/javascript; charset=utf-8", headers={"cache-control": "max-age=300"})

    async def tokenize(self, call: Call) -> None:
        """`POST /tokenize`: token ids of a text, or of a conversation as the model reads it."""
        body, caller = await self._body(call, 16)
        asked = read.parsed(TokenizeBody, body)
        model = self.gateway.model_of(asked.model or "", caller)
        if asked.messages is not None:
            request = ApiRequest("chat", messages=read.as_messages(asked.messages))
            ids = (await self.gateway.request(request, await self.gateway.prompt(request, model), model)).ids
        else:
            text = asked.text if asked.prompt is None else asked.prompt
            try:
                ids = tuple(await self.gateway.engine.tokenize(text or "", adapter=model.adapter))
            except ValueError as error:
                raise ApiError(400, str(error), param="prompt") from None
        await call.reply({"tokens": list(ids), "count": len(ids), "max_model_len": self.gateway.engine.context})

    async def models(self, call: Call) -> None:
        """`GET /v1/models`."""
        caller, encoder = self.gateway.caller(call.header), self.gateway.encoder
        data = [self._model(name) for name in self.gateway.models_for(caller)]
        if encoder is not None and encoder.allowed(caller):
            data.append(encoder.described)
        await call.reply({"object": "list", "data": data})

    async def model(self, call: Call) -> None:
        """`GET /v1/models/NAME`."""
        name, caller = call.scope["path_params"]["model"], self.gateway.caller(call.header)
        encoder = self.gateway.encoder
        if encoder is not None and name == encoder.name and name not in self.gateway.models and encoder.allowed(caller):
            await call.reply(encoder.described)
            return
        await call.reply(self._model(self.gateway.model_of(name, caller).name))

    def _model(self, name: str) -> dict[str, Any]:
        model = self.gateway.models[name]
        return {
            "id": model.name, "object": "model", "created": model.created, "owned_by": "tuneloop", "root": model.name,
            "parent": Path(self.gateway.engine.base).name, "release": model.release or None, "adapter": model.adapter,
            "labels": list(model.labels) or None, "max_model_len": self.gateway.engine.context,
        }  # fmt: skip

    async def healthz(self, call: Call) -> None:
        """`GET /healthz`: the process is alive."""
        await call.reply({"status": "ok"})

    async def readyz(self, call: Call) -> None:
        """`GET /readyz`: it takes requests and the engine answers."""
        ready = not self.gateway.admission.closed and await self.gateway.engine.healthy()
        await call.reply({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, call: Call) -> None:
        """`GET /metrics`."""
        self.gateway.caller(call.header)
        self.gateway.metrics.set_gauges(self.gateway)
        await call.reply_bytes(self.gateway.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, call: Call) -> None:
        """`GET /openapi.json`."""
        config = self.gateway.config
        await call.reply(document(batches=config.batch.enabled, most_choices=config.limits.most_choices))

    async def page(self, call: Call) -> None:
        """`GET /`: state, models, a box to try a prompt."""
        page, policy = page_and_policy()
        headers = {"content-security-policy": policy, "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
        await call.reply_bytes(page, "text/html; charset=utf-8", headers={**headers, "cache-control": "no-store"})


@cache
def page_and_policy() -> tuple[bytes, str]:
    """The page at `/`, and the policy that allows the content of its one script and one style, and nothing else."""
    page = (files("tuneloop.serving.http") / "page.html").read_bytes()
    sources = []
    for tag in (b"script", b"style"):
        (content,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), page, re.DOTALL)
        sources.append(f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'")
    sources_of = "default-src 'none'; script-src {}; style-src {}; connect-src 'self'".format(*sources)
    return page, f"{sources_of}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def headers_of(piece: Piece) -> dict[str, str]:
    """The headers of an answer."""
    release = piece.model.release or piece.model.adapter[:16]
    headers = {"x-tuneloop-request": piece.id, "x-tuneloop-release": release, "x-request-id": piece.id}
    return headers | ({"x-tuneloop-prompt": "outside-training"} if piece.outside else {})


Whole = tuple[Piece, list[Completion]]  # the last piece of an answer, and the completions of its choices in order


async def whole(pieces: AsyncGenerator[Piece, None]) -> Whole:
    """An answer as a whole."""
    completions: dict[int, Completion] = {}
    last: Piece | None = None
    async with aclosing(pieces):
        async for piece in pieces:
            last = piece
            if piece.completion is not None:
                completions[piece.index] = piece.completion
    if last is None:
        raise ApiError(503, "The engine gave no answer", code="engine")
    return last, [completions[index] for index in sorted(completions)]
