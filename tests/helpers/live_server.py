"""A server in a thread, on a free port, with any engine; and an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn.server

from patience import HANG
from tuneloop.core import http_server
from tuneloop.core.http_server import GuardedServer, listen
from tuneloop.core.ui import quiet, reporting
from tuneloop.imports.endpoint import trace_routes
from tuneloop.inference.protocol import AdapterFacts
from tuneloop.inference.request import Request, Update
from tuneloop.records.completion import Completion
from tuneloop.serving.admission import Keyring
from tuneloop.serving.batch.api import Batches
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway, ServedModel
from tuneloop.serving.http.app import make_app
from tuneloop.serving.store.writer import StoreWriter


class QuickAsyncio:
    """asyncio as uvicorn sees it, which looks ten times a second whether it is to end: here a hundred times."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 10)


uvicorn.server.asyncio = QuickAsyncio()  # type: ignore[assignment]
http_server.LINGER = 0.5  # senders of too much are on this machine, too


@dataclass
class StubEngine:
    """Answers every request with the same words, one at a time.

    Args:
        words: of an answer.
        pause: seconds before each.
        fail_after: words after which the answer breaks off with an error; None: never.
    """

    words: Sequence[str] = ("Hello", " there", ".")
    pause: float = 0.0
    fail_after: int | None = None
    gives_way = False
    name: str = "stub"
    base: str = "stub-model"
    context: int = 1000
    slots: int = 8
    asked: list[Request] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # how each stream was left

    @property
    def adapters(self) -> Mapping[str, AdapterFacts]:
        return {}

    async def start(self) -> None:
        pass

    async def healthy(self) -> bool:
        return True

    async def tokenize(self, text: str, *, adapter: str = "base") -> Sequence[int]:
        return list(range(len(text.split())))

    async def render(self, messages: Any, tools: Any = (), *, adapter: str = "base") -> Sequence[int]:
        return list(range(sum(len(turn["content"].split()) for turn in messages) or 1))

    def renders(self, adapter: str) -> bool:
        return True

    async def stop(self) -> None:
        pass

    async def stream(self, request: Request) -> AsyncIterator[Update]:
        self.asked.append(request)
        if len(request.ids) > self.context:
            yield Update(completion=Completion(finish="error", error="too_long: more than 1,000 tokens"))
            return
        how = "cancelled"
        try:
            for i, word in enumerate(self.words[: request.max_new_tokens]):
                if self.fail_after == i:
                    yield Update(completion=Completion(finish="error", error="engine: it died"))
                    return
                await asyncio.sleep(self.pause)
                yield Update(word)
            written = self.words[: request.max_new_tokens]
            finish: Any = "length" if len(written) < len(self.words) else "stop"
            text = "".join(written)
            if request.choices:
                text, finish = request.choices[0], "choice"
            done = Completion(text, (), finish, len(request.ids), len(written), label_probability=0.9)
            how = "done"
            yield Update(completion=done)
        finally:
            self.ended.append(how)


@contextmanager
def live(
    folder: Path,
    engine: Any = None,
    models: Any = None,
    lines: list[str] | None = None,
    encoder: Any = None,
    **settings: Any,
) -> Iterator[tuple[str, Gateway]]:
    """Address and gateway of a running server.

    Args:
        lines: gets what it says of its connections.
        encoder: makes embeddings; None: there are none.
        models: of the gateway, or a function that makes them when the engine is started.
        settings: of `ServeConfig`.
    """
    engine = engine or StubEngine()
    config = ServeConfig.model_validate({"port": 0, "folder": str(folder), **settings})
    begun: dict[str, Any] = {}
    lines = [] if lines is None else lines
    listening = listen(config.host, 0)
    started = threading.Event()

    async def main() -> None:
        await engine.start()
        with quiet():
            store = StoreWriter(folder, config.log.content, lambda value: value, store=config.log.store)
        store.start()
        found = models(engine) if callable(models) else models or {"stub": ServedModel("stub")}
        gateway = Gateway(engine, found, config, store, Keyring(folder))
        gateway.encoder = encoder
        batches = Batches(gateway, folder / "batch")
        with reporting(say=lines.append):
            server = GuardedServer(
                make_app(gateway, [*trace_routes(gateway), *batches.routes()]), seconds=config.limits.silent_seconds,
                log_level="warning", timeout_graceful_shutdown=1,
                proxy_headers=bool(config.limits.proxies), forwarded_allow_ips=config.limits.proxies,
            )  # fmt: skip
        batches.resume()
        task = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        port = listening.getsockname()[1]
        begun.update(address=f"http://127.0.0.1:{port}", gateway=gateway, server=server)
        started.set()
        await task
        await batches.stop()
        store.stop()
        await engine.stop()

    def run() -> None:
        try:
            with reporting(say=print):
                asyncio.run(main())
        except BaseException as error:
            begun["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(HANG)
    if "error" in begun:
        raise begun["error"]
    try:
        yield begun["address"], begun["gateway"]
    finally:
        begun["server"].should_exit = True
        thread.join(30)
