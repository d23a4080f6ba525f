"""Changes of what a running server serves: aliases that moved, `tuneloop deploy NAME@2`, candidates of experiments.

The new engine is started and proved next to the old one, the next request goes to it, and the old one ends when its last
request has its answer. What can't be started or proved changes nothing; it is said, and stands in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.files import lock_folder
from tuneloop.core.ids import utc_now, uuid7
from tuneloop.core.ui import bound_say
from tuneloop.inference.answer import ServingEngine
from tuneloop.records.decision import Decision
from tuneloop.records.record import read_record
from tuneloop.records.server import ServerState
from tuneloop.registry.registered import local_name, open_registry, registered_name, registry_uri, version_of
from tuneloop.serving.companions import Experiments
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.garbage_collection import short_pauses
from tuneloop.serving.gateway import Gateway
from tuneloop.serving.models import deployment_of, prove_models
from tuneloop.serving.router import name_of, served_by
from tuneloop.serving.store.database import Database, DatabaseError
from tuneloop.serving.store.store import connect, insert, is_store, opened, read_decisions

PIN, SWAP, REFUSED = "deployment.pin", "deployment.swap", "deployment.refused"
EVERY = 1.0  # seconds between two looks
RESTART_PAUSE = 5.0  # seconds before it is tried again to start an engine that has ended
SWAP_SECONDS = 300.0  # that a command waits for a server to swap
REMOTE_EVERY = 15.0  # seconds between two looks into a registry that is not a file here

Wanted = Mapping[str, str]  # name of a model or experiment -> what answers for it, with its version


def pinned(config: ServeConfig) -> ServeConfig:
    """The settings with the sources that `tuneloop deploy` named last."""
    if not is_store(config.store):
        return config
    with opened(config.store, create=True) as store:
        return _with_pins(config, store)


def _with_pins(config: ServeConfig, store: Database) -> ServeConfig:
    pins = {event.subject: str(event.data["source"]) for event in read_decisions(store, where=f"kind = '{PIN}'")}
    adapters = {name: pins.get(name, source) for name, source in config.adapters.items()}
    return config.model_copy(update={"adapters": adapters})


@dataclass
class Swaps:
    """Follows what a server should serve, and swaps engines.

    Args:
        config: of the server, without what was pinned.
        swapped: called with the gateway after each swap.
        current: what is served; `refused`: what could not be started or proved, which is not tried again.
    """

    config: ServeConfig
    experiments: Experiments
    swapped: Callable[[Gateway], None] = lambda gateway: None
    say: Callable[[str], None] = field(default_factory=bound_say)
    current: Wanted = field(default_factory=dict)
    refused: Wanted = field(default_factory=dict)
    _stamp: tuple[Any, ...] = ()
    _versions: dict[str, str] = field(default_factory=dict)
    _store: Database | None = None
    _known: ServeConfig | None = None
    _ending: set[asyncio.Task[None]] = field(default_factory=set)

    def wanted(self) -> Wanted:
        """What should be served now.

        Raises:
            UserError: a name is not registered any more, or the registry can't be read.
        """
        stamp = _stamp()
        if stamp != self._stamp:
            self._stamp, self._versions = stamp, {}
        found = {}
        for each in served_by(self._pinned())[1]:
            if registered_name(each.source) is None:
                found[each.name] = each.source
                continue
            if each.source not in self._versions:
                self._versions[each.source] = version_of(open_registry(), each.source).version
            found[each.name] = f"{each.source}, version {self._versions[each.source]}"
        candidates = self.experiments.wanted.items()
        return found | {f"candidate of {name}": candidate.source for name, candidate in candidates}

    def _pinned(self) -> ServeConfig:
        """The settings with what was pinned, as far as is known: a store that is away changes nothing."""
        with contextlib.suppress(UserError, DatabaseError):
            if self._store is None and is_store(self.config.store):
                self._store = connect(self.config.store, create=True)
            if self._store is not None:
                self._known = _with_pins(self.config, self._store)
        return self._known or self.config

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
                    await self._restart(gateway)
                    continue
                wanted = await asyncio.to_thread(self.wanted)
                if wanted != self.current and wanted != self.refused:
                    await self.swap(gateway, wanted)
            except (UserError, DatabaseError, OSError):
                continue  # a registry or store that can't be read at present changes nothing

    async def _restart(self, gateway: Gateway) -> None:
        """Start the engine anew that has ended by itself; its memory is given back first."""
        self.say("engine    has ended by itself and is started anew")
        await gateway.engine.stop()
        while not await self.swap(gateway, self.current):
            await asyncio.sleep(RESTART_PAUSE)

    async def swap(self, gateway: Gateway, wanted: Wanted) -> bool:
        """Serve something else; returns whether it could be started and proved."""
        changed = {name: source for name, source in wanted.items() if self.current.get(name) != source}
        self.say(f"swap      begins: {_words(changed) or 'what has ended is left out'}")
        began = time.perf_counter()
        config = await asyncio.to_thread(self._pinned)
        engine: ServingEngine | None = None
        try:
            deployment = await asyncio.to_thread(deployment_of, config, self.experiments.candidates())
            engine = deployment.engine
            await engine.start()
            await prove_models(config, deployment)
            models = await asyncio.to_thread(deployment.models)
            candidates = await asyncio.to_thread(deployment.candidate_models)
        except Exception as error:
            if engine is not None:
                await engine.stop()
            why = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.refused = wanted
            self._log(gateway, REFUSED, wanted, why)
            self.say(f"swap      is refused, all stays as it was: {why}")
            return False
        except BaseException:
            if engine is not None:
                await engine.stop()
            raise
        old = gateway.swap(engine, models, candidates)
        self._log(gateway, SWAP, wanted, "")
        self.current, self.refused = wanted, {}
        self.swapped(gateway)
        self.say(f"swap      is done after {time.perf_counter() - began:.1f} s; the old engine ends its requests")
        task = asyncio.create_task(self._end(gateway, old))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return True

    async def _end(self, gateway: Gateway, engine: ServingEngine) -> None:
        try:
            await gateway.drained(engine, gateway.config.limits.request_seconds)
        finally:
            await engine.stop()
            short_pauses()  # what the old engine was made of goes, the new one stays

    def _log(self, gateway: Gateway, kind: str, wanted: Wanted, why: str) -> None:
        data = {"before": dict(self.current), "wanted": dict(wanted), "why": why}
        gateway.store.add(Decision(id=uuid7(), time=utc_now(), kind=kind, subject="serve", data=data))


def _words(found: Wanted) -> str:
    return "; ".join(f"{name}: {source}" for name, source in found.items())


def _stamp() -> tuple[Any, ...]:
    """What changes when the registry does: of a file its size and time, else the time."""
    uri = registry_uri()
    if not uri.startswith("sqlite:///"):
        return (int(time.monotonic() / REMOTE_EVERY),)
    found = []
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            facts = Path(uri.removeprefix("sqlite:///") + end).stat()
            found += [facts.st_size, facts.st_mtime_ns]
    return tuple(found)


# --- from outside ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployed:
    """What became of a wish.

    Args:
        name: of the model.
        source: that it is to be served from.
        running: whether a server runs in the folder; else it holds from the next start.
        swapped: whether the server has swapped; None: no server, or it was not ready in time.
        why: it refused.
    """

    name: str
    source: str
    running: bool
    swapped: bool | None = None
    why: str = ""


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
        raise UserError(
            "No server was started here", where=str(folder), next_step="tuneloop serve ... folder=" + str(folder)
        )
    local_name(source)  # refuses what is not there
    adapters = read_record(ServerState, folder).adapters
    own = (registered_name(source) or ("", ""))[0]
    same = [each for each, from_ in adapters.items() if own and (registered_name(from_) or ("",))[0] == own]
    name = name or (same[0] if same else name_of(source))
    if name not in adapters:
        raise UserError(
            f"The server has no model {name!r}", where=str(folder),
            next_step=f"say which it replaces with --name: {', '.join(adapters) or 'it has no adapters'}",
        )  # fmt: skip
    pin = Decision(id=uuid7(), time=utc_now(), kind=PIN, subject=name, data={"source": source})
    with opened(folder) as store:
        insert(store, [pin])
        running = _held(folder)
        until = time.monotonic() + SWAP_SECONDS
        while running and time.monotonic() < until:
            where = f"kind IN ('{SWAP}', '{REFUSED}') AND id > ?"
            for event in read_decisions(store, where=where, values=[pin.id]):
                if str(event.data["wanted"].get(name, "")).partition(", version")[0] == source:
                    return Deployed(name, source, True, event.kind == SWAP, str(event.data["why"]))
            time.sleep(0.2)
    return Deployed(name, source, running)


def _held(folder: Path) -> bool:
    """Whether a server works in a folder."""
    try:
        with lock_folder(folder):
            return False
    except UserError:
        return True
