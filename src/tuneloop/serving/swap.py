"""Changes of what a running server serves: aliases that moved, `tuneloop deploy NAME@2`, candidates of experiments.

The new engine is started and proved next to the old one, the next request goes to it, and the old one ends with its
last answer. What can't be started or proved changes nothing; it is reported, and stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tuneloop.core.errors import UserError
from tuneloop.core.files import folder_holder
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.ui import bound_say
from tuneloop.inference import ServingEngine
from tuneloop.records.record import read_record
from tuneloop.records.server import Decision, ServerState
from tuneloop.registry import local_name, open_registry, registered_name, registry_file, version_of
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import Gateway
from tuneloop.serving.models import Candidate, deployment_of, prove_models
from tuneloop.serving.router import name_of, served_by
from tuneloop.serving.store.database import Database, DatabaseError, insert
from tuneloop.serving.store.store import connect, is_store, opened, read_decisions

PIN, SWAP, REFUSED = "deployment.pin", "deployment.swap", "deployment.refused"
EVERY = 1.0  # seconds between two looks
RESTART_PAUSE = 5.0  # seconds before it is tried again to start an engine that has ended
SWAP_SECONDS = 300.0  # that a command waits for a server to swap
REMOTE_EVERY = 15.0  # seconds between two looks into a registry that is not a file here

Sources = Mapping[str, str]  # name of a model or experiment -> what answers for it, with its version


class ServedExperiments(Protocol):
    """The experiments of a server's store, as far as the server has to know of them."""

    @property
    def wanted(self) -> Mapping[str, Candidate]:
        """Their candidates, by the experiments' names, as last read."""

    def candidates(self) -> Mapping[str, Candidate]:
        """The same, read again."""

    def followed_by(self, gateway: Gateway) -> AbstractAsyncContextManager[None]:
        """Keep a gateway up to date for the time of a block."""


@dataclass(frozen=True)
class Companions:
    """What runs next to the answers of a server: experiments, monitoring, retraining. `improve.serve` has all of it."""

    experiments: Callable[[str], ServedExperiments]  # from the store's place
    # Refuses settings of the rest before anything is loaded; gets the names of the tuned models.
    check: Callable[[ServeConfig, Collection[str]], None]
    running: Callable[[ServeConfig, Gateway], AbstractAsyncContextManager[None]]  # the rest, for the time of a block


def freeze_heap() -> None:
    """Keep the interpreter's pauses short: call it when all is loaded, and again when much of that has gone.

    A full search for garbage takes some 30 ms over the objects of a server with its libraries. What is there now is
    left out of it. Threads that compute or write are interrupted after half a millisecond in place of five.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


def pinned(config: ServeConfig) -> ServeConfig:
    """The settings with the sources that `tuneloop deploy` named last."""
    if not is_store(config.store):
        return config
    with opened(config.store, create=True) as store:
        return _with_pins(config, store)


def _with_pins(config: ServeConfig, store: Database) -> ServeConfig:
    pins = pins_of(store)
    adapters = {name: pins.get(name, source) for name, source in config.adapters.items()}
    return config.model_copy(update={"adapters": adapters})


def pins_of(store: Database) -> dict[str, str]:
    """What `tuneloop deploy` named last, by the names of the models."""
    return {event.subject: str(event.data["source"]) for event in read_decisions(store, where=f"kind = '{PIN}'")}


@dataclass
class Swaps:
    """Follows what a server should serve, and swaps engines."""

    config: ServeConfig  # of the server, without what was pinned
    experiments: ServedExperiments
    changed: Callable[[Gateway], None] = lambda gateway: None  # called after each swap, and each that is refused
    say: Callable[[str], None] = field(default_factory=bound_say)
    # what is served; `refused`: what could not be started or proved, which is not tried again
    current: Sources = field(default_factory=dict)
    refused: Sources = field(default_factory=dict)
    # experiments whose candidates can't be served, and why: they don't keep the server from other swaps
    left_out: dict[str, str] = field(default_factory=dict)
    _stamp: tuple[Any, ...] = ()
    _versions: dict[str, str] = field(default_factory=dict)
    _store: Database | None = None
    _latest: ServeConfig | None = None
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def wanted(self) -> Sources:
        """What should be served now; UserError: a name is not registered any more, or the registry can't be read."""
        stamp = _stamp()
        if stamp != self._stamp:
            self._stamp, self._versions = stamp, {}
        sources = {served.name: served.source for served in served_by(self._pinned())[1]}
        for name, source in sources.items():
            if registered_name(source) is not None:
                if source not in self._versions:
                    self._versions[source] = version_of(open_registry(), source).version
                sources[name] = f"{source}, version {self._versions[source]}"
        candidates = self.experiments.wanted.items()
        wanted = {name: candidate for name, candidate in candidates if name not in self.left_out}
        return sources | {f"candidate of {name}": candidate.source for name, candidate in wanted.items()}

    def _pinned(self) -> ServeConfig:
        """The settings with what was pinned, as far as is known: a store that is away changes nothing."""
        with contextlib.suppress(UserError, DatabaseError):
            if self._store is None and is_store(self.config.store):
                self._store = connect(self.config.store, create=True)
            if self._store is not None:
                self._latest = _with_pins(self.config, self._store)
        return self._latest or self.config

    @contextlib.asynccontextmanager
    async def followed_by(self, gateway: Gateway) -> AsyncIterator[None]:
        """Keep a gateway up to date for the time of a block."""
        task = asyncio.create_task(self._follow(gateway))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, *self._ending, return_exceptions=True)
            if self._store is not None:
                self._store.close()
                self._store = None

    async def _follow(self, gateway: Gateway) -> None:
        while True:
            await asyncio.sleep(EVERY)
            try:
                if getattr(gateway.engine, "ended", False):
                    self.say("engine    has ended unexpectedly and is restarted")
                    await gateway.engine.stop()  # its memory is given back first
                    while not await self.swap(gateway, self.current):
                        await asyncio.sleep(RESTART_PAUSE)
                    continue
                sources = await asyncio.to_thread(self.wanted)
                if sources not in (self.current, self.refused):
                    await self.swap(gateway, sources)
            except (UserError, DatabaseError, OSError):
                continue  # a registry or store that can't be read at present changes nothing

    async def swap(self, gateway: Gateway, sources: Sources) -> bool:
        """Serve something else; returns whether it could be started and proved."""
        changed = [f"{name}: {source}" for name, source in sources.items() if self.current.get(name) != source]
        self.say(f"swap      begins: {'; '.join(changed) or 'what has ended is left out'}")
        began = time.perf_counter()
        config = await asyncio.to_thread(self._pinned)
        wanted = {
            name: candidate for name, candidate in self.experiments.candidates().items() if name not in self.left_out
        }
        engine: ServingEngine | None = None
        try:
            deployment = await asyncio.to_thread(deployment_of, config, wanted)
            engine = deployment.engine
            without = {f"candidate of {name}" for name in deployment.left_out}
            if without and {name: source for name, source in sources.items() if name not in without} == self.current:
                raise UserError("; ".join(deployment.left_out.values()))  # nothing else is new
            await engine.start()
            await prove_models(config, deployment)
            models = await asyncio.to_thread(deployment.models)
            candidates = await asyncio.to_thread(deployment.candidate_models)
        except BaseException as error:
            if engine is not None:
                await engine.stop()
            if not isinstance(error, Exception):
                raise
            self._refuse(gateway, sources, wanted, error)
            return False
        old = gateway.swap(engine, models, candidates)
        self._log(gateway, SWAP, sources, "")
        self.current, self.refused = sources, {}
        self.leave_out(gateway, deployment.left_out)
        self.changed(gateway)
        self.say(f"swap      is done after {time.perf_counter() - began:.1f} s; the old engine ends its requests")
        task = asyncio.create_task(self._end(gateway, old))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return True

    def leave_out(self, gateway: Gateway, experiments: Mapping[str, str]) -> None:
        """Want the candidates of these experiments no more, which can't be served; each with the reason."""
        self.left_out |= experiments
        gateway.left_out = dict(self.left_out)
        names = {f"candidate of {name}" for name in self.left_out}
        self.current = {name: source for name, source in self.current.items() if name not in names}

    def _refuse(
        self, gateway: Gateway, sources: Sources, candidates: Mapping[str, Candidate], error: Exception
    ) -> None:
        """Leave all as it is; a candidate that came with this swap is not tried again."""
        reason = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        new = [name for name in candidates if f"candidate of {name}" not in self.current]
        self.leave_out(gateway, dict.fromkeys(new, reason))
        self.refused = sources
        self._log(gateway, REFUSED, sources, reason)
        self.changed(gateway)
        self.say(f"swap      is refused, all stays as it was: {reason}")

    async def _end(self, gateway: Gateway, engine: ServingEngine) -> None:
        try:
            await gateway.drained(engine, gateway.config.limits.request_seconds)
        finally:
            await engine.stop()
            freeze_heap()  # what the old engine was made of goes, the new one stays

    def _log(self, gateway: Gateway, kind: str, sources: Sources, reason: str) -> None:
        data = {"before": dict(self.current), "wanted": dict(sources), "why": reason}
        gateway.store.add(Decision(id=uuid7(), time=utc_now(), kind=kind, subject="serve", data=data))


def _stamp() -> tuple[Any, ...]:
    """What changes when the registry does: of a file its size and time, else the time."""
    file = registry_file()
    if file is None:
        return (int(time.monotonic() / REMOTE_EVERY),)
    stamp = []
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            facts = Path(f"{file}{end}").stat()
            stamp += [facts.st_size, facts.st_mtime_ns]
    return tuple(stamp)


@dataclass(frozen=True)
class Deployed:
    """What became of a request to serve another source."""

    name: str  # of the model
    source: str  # that it is to be served from
    running: bool  # whether a server runs in the folder; else it holds from the next start
    swapped: bool | None = None  # whether the server has swapped; None: no server, or it was not ready in time
    why: str = ""  # it refused


def _pin(name: str, source: str) -> Decision:
    return Decision(id=uuid7(), time=utc_now(), kind=PIN, subject=name, data={"source": source})


def deploy_to_server(folder: Path, source: str, *, name: str = "") -> Deployed:
    """Have a running server serve another source under a name, and wait until it does.

    Args:
        folder: of the server.
        source: `NAME@2`, `NAME@champion`, a run or an artifact.
        name: as clients ask for it; default: the model that is served from another version of it, or that has its name.

    Raises:
        UserError: no server was ever started in the folder, it serves no such model, or there is no such version.
    """
    if not (folder / ServerState.file).is_file():
        step = f"tuneloop serve ... folder={folder}"
        raise UserError("No server was started here", where=str(folder), next_step=step)
    local_name(source)  # refuses what is not there
    adapters = read_record(ServerState, folder).adapters
    model = (registered_name(source) or ("", ""))[0]
    same = [name for name, from_ in adapters.items() if model and (registered_name(from_) or ("",))[0] == model]
    name = name or (same[0] if same else name_of(source))
    if name not in adapters:
        step = f"say which it replaces with --name: {', '.join(adapters) or 'it has no adapters'}"
        raise UserError(f"The server has no model {name!r}", where=str(folder), next_step=step)
    pin = _pin(name, source)
    with opened(folder) as store:
        before = pins_of(store).get(name, adapters[name])
        insert(store, [pin])
        running = bool(folder_holder(folder))
        until = time.monotonic() + SWAP_SECONDS
        while running and time.monotonic() < until:
            where = f"kind IN ('{SWAP}', '{REFUSED}') AND number > (SELECT number FROM decisions WHERE id = ?)"
            for event in read_decisions(store, where=where, values=[pin.id]):
                if str(event.data["wanted"].get(name, "")).partition(", version")[0] == source:
                    if event.kind == REFUSED:  # else the next start would fail by it
                        insert(store, [_pin(name, before)])
                    return Deployed(name, source, True, event.kind == SWAP, str(event.data["why"]))
            time.sleep(0.2)
    return Deployed(name, source, running)
