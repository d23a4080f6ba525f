"""The HTTP surface: routes, bodies, headers, streams. What is answered is the gateway's affair."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson

from tuneloop.core.errors import UserError
from tuneloop.core.text import json_bytes
from tuneloop.inference.local.scoring import label_distribution
from tuneloop.records.completion import Completion
from tuneloop.serving.gateway import Caller, Gateway, Piece, ServedModel
from tuneloop.serving.http import api_request as read
from tuneloop.serving.http import replies
from tuneloop.serving.http.api_request import ApiRequest
from tuneloop.serving.http.errors import ApiError, too_much
from tuneloop.serving.http.openapi import document
from tuneloop.serving.http.page import PAGE, POLICY
from tuneloop.serving.http.senders import limited_as, of_its_sender, read_feedback_of
from tuneloop.serving.limits import FeedbackLimit, Refusal

MOST_FEEDBACK = 150_000  # bytes of feedback: its longest text, mostly also where it is escaped
MOST_DEPTH = 200  # levels of objects and lists in a body: deeper ones can't be written again
NO_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
PLAIN_CLIENTS = ("", "application/x-www-form-urlencoded")  # what raw sockets, `curl -d` and urllib say of JSON
WATCH_AFTER = 0.02  # seconds of an answer after which it is looked whether its client leaves

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Disconnected(Exception):
    """The client has left."""


@dataclass
class Call:
    """One HTTP request, and the ways to answer it.

    Args:
        sent: the answer has begun.
        left: the client was seen to leave.
        events: the answer is a stream of events, in which an error can be one.
    """

    scope: Scope
    receive: Receive
    send: Send
    sent: bool = False
    left: bool = False
    events: bool = False
    headers: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.headers = dict(self.scope["headers"])

    def header(self, name: str) -> str:
        """A header's value, in UTF-8 or else in Latin-1; empty where there is none.

        Raises:
            ApiError: a key is given more than once: another program in between may have looked at the other one.
        """
        wanted = name.encode()
        if wanted in (b"authorization", b"x-api-key") and [each for each, _ in self.scope["headers"]].count(wanted) > 1:
            raise ApiError(400, f"The header {name} is there more than once", code="invalid_api_key")
        raw = self.headers.get(wanted, b"")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")

    async def body(self, most: int) -> bytes:
        """The whole body.

        Raises:
            ApiError: it is larger than allowed.
        """
        parts, receive = [], self.bounded(most)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    def bounded(self, most: int) -> Receive:
        """What receives the body, piece by piece.

        Raises:
            ApiError: at once where it is compressed or says that it is larger than allowed; later where it turns out to be.
        """
        length, size = self.headers.get(b"content-length", b"0"), 0
        large = ApiError(413, f"The body is larger than {most / 1e6:g} MB", code="request_too_large")
        if self.header("content-encoding").strip().lower() not in ("", "identity"):
            raise ApiError(415, "Compressed bodies are not read", code="unsupported_media_type")
        if length.isdigit() and int(length) > most:
            raise large

        async def receive() -> Any:
            nonlocal size
            message = await self.receive()
            size += len(message.get("body", b""))
            if size > most:
                raise large
            return message

        return receive

    async def json(self, most: int) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            ApiError: it is not valid JSON, or says that it is something else.
        """
        kind = self.header("content-type").partition(";")[0].strip().lower()
        if kind not in PLAIN_CLIENTS and kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(
                415, "The body must be JSON, with Content-Type: application/json", code="unsupported_media_type"
            )
        raw = await self.body(most)
        try:
            value = orjson.loads(raw)
        except ValueError as error:
            raise ApiError(400, f"The body is not valid JSON: {error}"[:300], code="invalid_json") from None
        except RecursionError:
            value = None
        if not isinstance(value, dict):
            raise ApiError(400, "The body must be a JSON object", code="invalid_json")
        if raw.count(b"{") + raw.count(b"[") > MOST_DEPTH and _deeper(value, MOST_DEPTH):
            raise ApiError(400, f"The body is nested in more than {MOST_DEPTH} levels", code="invalid_json")
        return value

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """End the work of a block when the client leaves.

        It is looked at after a moment: most answers that come at once need no second task.

        Raises:
            Disconnected: it has left.
        """
        worker = asyncio.current_task()
        assert worker is not None
        watching: list[asyncio.Task[None]] = []

        async def watch() -> None:
            while (await self.receive())["type"] != "http.disconnect":
                pass
            self.left = True
            worker.cancel()

        timer = asyncio.get_running_loop().call_later(
            WATCH_AFTER, lambda: watching.append(asyncio.ensure_future(watch()))
        )
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

    async def start(self, status: int, kind: str, headers: Mapping[str, str] | None = None, size: int = -1) -> None:
        """Send status and headers."""
        self.sent, self.events = True, kind.startswith("text/event-stream")
        lines = [(b"content-type", kind.encode())]
        if not headers or "cache-control" not in headers:
            lines.append((b"cache-control", b"no-store"))
        if size >= 0:
            lines.append((b"content-length", str(size).encode()))
        lines += [(name.encode(), _safe(value).encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": lines})

    async def reply(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send a JSON value."""
        await self.reply_bytes(json_bytes(value), "application/json", status, headers)

    async def reply_bytes(
        self, data: bytes, kind: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
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


def _deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested in more levels. It goes down level by level, so that nothing is too deep for it."""
    level = [value]
    for _ in range(levels):
        level = [
            part
            for each in level
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def _safe(value: str) -> str:
    """A header's value on one line."""
    return value.replace("\r", " ").replace("\n", " ")


Handler = Callable[[Call], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Endpoint:
    """An ASGI application for one route: errors become bodies, a client that leaves ends the work."""

    def __init__(self, handler: Handler, seconds: float, local: bool = True, origins: Sequence[str] = ()) -> None:
        self.handler, self.seconds, self.local, self.origins = handler, seconds, local, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        call = Call(scope, receive, send)
        try:
            refuse_foreign_pages(call, self.local, self.origins)
            async with asyncio.timeout(self.seconds):
                await self.handler(call)
        except TimeoutError:  # which is an OSError too
            await _fail(call, ApiError(504, f"The request took longer than {self.seconds:g} s", code="timeout"))
        except Disconnected:
            return
        except asyncio.CancelledError:
            if not call.left:  # else its client left at the very end
                raise
        except ApiError as error:
            await _fail(call, error)
        except Exception as error:
            await _fail(call, failure(error))


def failure(error: Exception) -> ApiError:
    """What a fault of the server is to its client: nothing of its inside. The log has it.

    A disk that is full is no fault: the client may ask again.
    """
    cause = error.__context__ if isinstance(error, UserError) else error
    if isinstance(cause, OSError) and cause.errno in NO_DISK:
        logging.getLogger("uvicorn.error").error("A request failed: %s", error)
        return ApiError(503, "The server can't write at present", code="store", headers={"Retry-After": "5"})
    if isinstance(error, UserError):
        logging.getLogger("uvicorn.error").error("A request failed: %s (%s)", error.what, error.where)
    else:
        logging.getLogger("uvicorn.error").error("A request failed", exc_info=error)
    return ApiError(500, "The server failed; its log says why", code="server")


def refuse_foreign_pages(call: Call, local: bool, origins: Sequence[str] = ()) -> None:
    """Refuse what a page of another site sends through its reader's browser.

    Args:
        local: the server listens on this machine only, where no key may be needed: then its own names are the only hosts.
        origins: pages of other sites that may.

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
    """Tell an error: as a body, or as an event where the answer has begun. A file that has begun breaks off."""
    with contextlib.suppress(OSError):
        if not call.sent:
            await call.reply(error.body(), error.status, error.headers)
            return
        if not call.events:
            raise error
        await call.event(error.body())
        await call.send({"type": "http.response.body", "body": b""})


def make_app(gateway: Gateway, extra: Iterable[Any] = ()) -> App:
    """The ASGI application of a server.

    Args:
        extra: further routes, as those of batches.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    limits = gateway.config.feedback
    server = Server(gateway, FeedbackLimit(limits.per_minute, limits.pages_per_minute))
    seconds, local = gateway.config.limits.request_seconds, gateway.config.loopback
    routes = [
        Route(path, Endpoint(handler, seconds, local), methods=[method])
        for method, path, handler in (
            ("POST", "/v1/chat/completions", server.chat),
            ("POST", "/v1/completions", server.completions),
            ("POST", "/v1/responses", server.responses),
            ("POST", "/v1/classify", server.classify),
            ("POST", "/tokenize", server.tokenize),
            ("GET", "/v1/models", server.models),
            ("GET", "/v1/models/{model:path}", server.model),
            ("GET", "/healthz", server.healthz),
            ("GET", "/readyz", server.readyz),
            ("GET", "/metrics", server.metrics),
            ("GET", "/openapi.json", server.openapi),
            ("GET", "/feedback.js", server.widget),
            ("GET", "/", server.page),
        )
    ]
    pages = gateway.config.feedback.origins
    feedback = Endpoint(server.feedback, seconds, local, pages)
    routes.append(Route("/v1/feedback", feedback, methods=["POST", "OPTIONS"] if pages else ["POST"]))
    app = Starlette(routes=[*routes, *extra], exception_handlers={404: _no_route, 405: _no_route, 500: _no_route})
    app.router.redirect_slashes = False  # the place that it sends to would come from the request's Host
    return _direct({route.path: route.endpoint for route in routes if route.methods == {"POST"}}, app)


def _direct(posts: Mapping[str, App], app: App) -> App:
    """An application whose endpoints of answers are found at once, without a search through all routes."""

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        found = posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (found or app)(scope, receive, send)

    return direct


async def _no_route(request: Any, error: Exception) -> Any:
    from starlette.responses import Response

    status = getattr(error, "status_code", 500)
    what = {404: f"There is no {request.scope['path'][:200]}", 405: f"{request.method} is not possible here"}
    body = ApiError(status, what.get(status, "The server failed"), code=None if status < 500 else "server").body()
    headers = {**(getattr(error, "headers", None) or {}), "cache-control": "no-store"}  # with 405, what is allowed
    return Response(json_bytes(body), status, headers, media_type="application/json")


@dataclass
class Server:
    """The handlers of all routes but those of batches."""

    gateway: Gateway
    limit: FeedbackLimit

    async def _body(self, call: Call) -> tuple[dict[str, Any], Caller]:
        """The body and who sends it; the key is looked at first, so that nobody without one is read."""
        caller = self.gateway.caller(call.header)
        return await call.json(int(self.gateway.config.limits.body_mb * 1e6)), caller

    # --- answers

    async def chat(self, call: Call) -> None:
        """`POST /v1/chat/completions`."""
        body, caller = await self._body(call)
        asked = read.read_chat(body, self.gateway.config.limits.most_choices)
        if asked.stream:
            await self._stream(call, asked, caller, replies.ChatStream(asked))
            return
        ((piece, done),) = await self._whole(call, [asked], caller)
        await call.reply(replies.chat_body(asked, piece, done), headers=headers_of(piece))

    async def completions(self, call: Call) -> None:
        """`POST /v1/completions`."""
        given, caller = await self._body(call)
        asked = read.read_completions(given, self.gateway.config.limits.most_choices)
        if asked[0].stream:
            if len(asked) > 1:
                raise ApiError(400, "One prompt at a time can be streamed", param="prompt")
            await self._stream(call, asked[0], caller, replies.CompletionsStream(asked[0]))
            return
        found = await self._whole(call, asked, caller)
        first = found[0][0]
        body = replies.completions_body(asked, first.model, first.id, [done for _, done in found])
        await call.reply(body, headers=headers_of(first))

    async def responses(self, call: Call) -> None:
        """`POST /v1/responses`."""
        given, caller = await self._body(call)
        asked = read.read_responses(given)
        if asked.stream:
            await self._stream(call, asked, caller, replies.ResponsesStream(asked), end="")
            return
        ((piece, done),) = await self._whole(call, [asked], caller)
        body = replies.responses_body(asked, piece.model, piece.id, done[0].text, done[0])
        await call.reply(body, headers=headers_of(piece))

    async def classify(self, call: Call) -> None:
        """`POST /v1/classify`: labels with their probabilities."""
        given, caller = await self._body(call)
        asked = read.read_classify(given)
        model = self.gateway.model_of(asked[0].model, caller)
        if not model.labels:
            raise ApiError(400, f"{model.name!r} writes texts; it was not trained to choose a label", param="model")
        found = await self._whole(call, asked, caller)
        data = [
            {
                "index": i,
                "id": piece.id,
                "label": done[0].text,
                "probability": done[0].label_probability,
                "probabilities": _probabilities(done[0], piece.model, each.top),
            }
            for i, (each, (piece, done)) in enumerate(zip(asked, found, strict=True))
        ]
        total = [replies.usage(done) for _, done in found]
        body = {
            "object": "list", "model": model.name, "labels": list(model.labels), "data": data,
            "usage": {key: sum(each[key] for each in total) for key in total[0]},
        }  # fmt: skip
        await call.reply(body, headers=headers_of(found[0][0]))

    async def _whole(self, call: Call, asked: list[ApiRequest], caller: Caller) -> list[tuple[Piece, list[Completion]]]:
        """Whole answers; the client's leaving ends them."""
        async with call.watched():
            return await self._all(asked, caller)

    async def _all(self, asked: list[ApiRequest], caller: Caller) -> list[tuple[Piece, list[Completion]]]:
        if len(asked) == 1:
            return [await whole(self.gateway.answer(asked[0], caller))]
        tasks = [asyncio.ensure_future(whole(self.gateway.answer(each, caller))) for each in asked]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _stream(self, call: Call, asked: ApiRequest, caller: Caller, shape: Any, end: str = "[DONE]") -> None:
        """An answer in pieces. Status and headers wait for the first one, so that what is refused has its own status."""
        async with call.watched(), aclosing(self.gateway.answer(asked, caller)) as pieces:
            await self._events(call, pieces, shape, end)

    async def _events(self, call: Call, pieces: AsyncIterator[Piece], shape: Any, end: str) -> None:
        async for piece in pieces:
            if not call.sent:
                headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **headers_of(piece)}
                await call.start(200, "text/event-stream; charset=utf-8", headers)
            for event in shape.events(piece):
                await call.event(event)
        for event in shape.end():
            await call.event(event)
        if end:
            await call.event(end)
        await call.send({"type": "http.response.body", "body": b""})

    # --- the rest

    async def feedback(self, call: Call) -> None:
        """`POST /v1/feedback`: what people say of an answer. It is stored when the reply comes."""
        page = call.header("origin") if call.header("origin") in self.gateway.config.feedback.origins else ""
        shared = {"access-control-allow-origin": page, "vary": "origin"} if page else {}
        if call.scope["method"] == "OPTIONS":  # a browser asks before it sends what a page of another site wants sent
            more = {"access-control-allow-headers": "content-type, idempotency-key", "access-control-max-age": "3600"}
            if not page:
                raise ApiError(403, "Requests from pages of other sites are refused", code="foreign_origin")
            await call.reply_bytes(b"", "text/plain", 204, {**shared, **more})
            return
        caller = Caller(rights=()) if page else self.gateway.caller(call.header)  # readers of pages have no key
        body = await call.json(MOST_FEEDBACK)
        body.setdefault("key", call.header("idempotency-key") or None)
        made = read_feedback_of(body, caller, page=bool(page))
        user = made.user or "" if "users" in caller.rights else ""
        try:
            self.limit.take(limited_as(caller, call.scope.get("client")), page=bool(page), user=user)
        except Refusal as refused:
            raise too_much(refused) from None
        made = await of_its_sender(self.gateway, made, caller)
        try:
            stored = await asyncio.wrap_future(self.gateway.store.add_durably(made))
        except OSError:  # the log has it
            raise ApiError(
                503, "The store takes nothing at present", code="store", headers={"Retry-After": "5"}
            ) from None
        reply = {"id": stored, "object": "feedback", "request": made.request, "conversation": made.conversation}
        await call.reply(reply, headers=shared)

    async def widget(self, call: Call) -> None:
        """`GET /feedback.js`: thumbs, correction and comment for any page."""
        script = (files("tuneloop.serving.http") / "feedback.js").read_bytes()
        await call.reply_bytes(script, "text/javascript; charset=utf-8", headers={"cache-control": "max-age=300"})

    async def tokenize(self, call: Call) -> None:
        """`POST /tokenize`: token ids of a text, or of a conversation as the model reads it."""
        body, caller = await self._body(call)
        name = body.get("model") or ""
        model = self.gateway.model_of(name if isinstance(name, str) else "?", caller)
        if body.get("messages") is not None:
            messages = read.read_messages(body["messages"])
            ids = (await self.gateway.request(ApiRequest("chat", messages=messages), model)).ids
        else:
            text = body.get("prompt", body.get("text"))
            if not isinstance(text, str):
                raise ApiError(400, "prompt must be a text, or messages a list of turns", param="prompt")
            ids = tuple(await self.gateway.engine.tokenize(text))
        await call.reply({"tokens": list(ids), "count": len(ids), "max_model_len": self.gateway.engine.context})

    async def models(self, call: Call) -> None:
        """`GET /v1/models`."""
        names = self.gateway.models_for(self.gateway.caller(call.header))
        await call.reply({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, call: Call) -> None:
        """`GET /v1/models/NAME`."""
        found = self.gateway.model_of(call.scope["path_params"]["model"], self.gateway.caller(call.header))
        await call.reply(self._model(found.name))

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
        gauges(self.gateway)
        await call.reply_bytes(self.gateway.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, call: Call) -> None:
        """`GET /openapi.json`."""
        await call.reply(document(batches=self.gateway.config.batch.enabled))

    async def page(self, call: Call) -> None:
        """`GET /`: state, models, a box to try a prompt."""
        headers = {"content-security-policy": POLICY, "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
        await call.reply_bytes(
            PAGE.encode(), "text/html; charset=utf-8", headers={**headers, "cache-control": "no-store"}
        )


def headers_of(piece: Piece) -> dict[str, str]:
    """What the headers of an answer tell."""
    release = piece.model.release or piece.model.adapter[:16]
    return {"x-tuneloop-request": piece.id, "x-tuneloop-release": release, "x-request-id": piece.id}


async def whole(pieces: AsyncGenerator[Piece, None]) -> tuple[Piece, list[Completion]]:
    """The last piece of an answer, and the completions of its choices in order."""
    done: dict[int, Completion] = {}
    last: Piece | None = None
    async with aclosing(pieces):
        async for piece in pieces:
            last = piece
            if piece.completion is not None:
                done[piece.index] = piece.completion
    if last is None:
        raise ApiError(503, "The engine gave no answer", code="engine")
    return last, [done[index] for index in sorted(done)]


def _probabilities(completion: Completion, model: ServedModel, top: int) -> dict[str, float] | None:
    """Probabilities of the labels, or of the likeliest ones, the answer first; None where the engine tells no scores."""
    if not completion.label_scores or not model.label_tokens:
        return None
    return label_distribution(completion, model.label_tokens, top or len(model.labels))


def gauges(gateway: Gateway) -> dict[str, float]:
    """The state of a server in numbers; those of `/metrics` are set to it."""
    admission, counts = gateway.admission, gateway.store.counts
    known = [times.calibration for times in admission.models.values() if times.calibration.n]
    n = sum(each.n for each in known) or 1
    values: dict[str, float] = {
        "active": len(admission.active), "waiting": admission.waiting, "giving_way": admission.giving_way,
        "store_waiting": gateway.store.waiting,
        "store_written": counts.written, "store_spilled": counts.spilled, "store_lost": counts.lost, "store_dead": counts.dead,
        "prediction_error": sum(each.error * each.n for each in known) / n,
        "prediction_coverage": sum(each.coverage * each.n for each in known) / n,
        "predictions": sum(each.n for each in known),
        "on_time": admission.tally.on_time, "late": admission.tally.late, "refused": admission.tally.refused,
        "downgraded": admission.tally.downgraded,
    }  # fmt: skip
    values |= {
        "store_unsafe": gateway.store.unsafe, "shadow_waiting": len(gateway.copies.waiting),
        "shadow_dropped": gateway.copies.dropped,
        "engines_out": sum(bool(member.out) for member in getattr(gateway.engine, "members", ())),
    }  # fmt: skip
    for name, value in values.items():
        gateway.metrics.gauges[name].set(value)
    return values
