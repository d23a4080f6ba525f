"""`tuneloop serve`: an engine, the models on it as they were trained, and the server before them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.core import machine
from tuneloop.core.errors import UserError
from tuneloop.core.files import build_config, lock_folder, make_private, read_yaml
from tuneloop.core.ids import ClockWatch, utc, utc_now
from tuneloop.core.ui import reporting, say
from tuneloop.core.units import counted, verb
from tuneloop.core.urls import masked
from tuneloop.data.pii import PersonalConfig, Redactor
from tuneloop.planning.catalogue import this_cpu
from tuneloop.records.record import write_record
from tuneloop.records.server import ServedName, ServerState
from tuneloop.registry import registered_name
from tuneloop.serving.admission import Keyring
from tuneloop.serving.batch.api import Batches
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.embeddings import open_encoder
from tuneloop.serving.gateway import Gateway
from tuneloop.serving.http.app import App, make_app
from tuneloop.serving.http.lines import LogLines
from tuneloop.serving.keys import ApiKey, add_key, read_keys, refuse_budget_without_prices
from tuneloop.serving.models import (
    Candidate,
    Sameness,
    ServerDeployment,
    deployment_of,
    prove_models,
    same_answers,
    started,
)
from tuneloop.serving.router import name_of, served_by, split_targets, use_router
from tuneloop.serving.store.database import Database, DatabaseError, is_database_url, keep_password
from tuneloop.serving.store.erase import expire, spent_by_erased
from tuneloop.serving.store.erase_files import PENDING, expire_files
from tuneloop.serving.store.forget import finish_forgetting, refuse_spilled
from tuneloop.serving.store.store import decision_log, is_store, opened
from tuneloop.serving.store.writer import StoreWriter
from tuneloop.serving.swap import Companions, Swaps, freeze_heap, pinned

if TYPE_CHECKING:
    from tuneloop.core.http_server import GuardedServer

Pages = Callable[[ServeConfig, Gateway], Sequence[Any]]  # makes further routes of a server
LOOK_AT_KEYS = 0.02  # seconds in which a key that is revoked is refused
CLOCK_JUMP = 600.0  # seconds that the clock may go ahead in an hour before what it says is doubted
LOOK_FOR_ERASURES = 0.5  # seconds between two looks whether `tuneloop data forget` has begun one


def serve_config(targets: Sequence[str], settings: Sequence[str]) -> ServeConfig:
    """The settings of a server, by a `serve.yaml` or what is to be served, and `key=value`; UserError: a bad value."""
    targets, special = split_targets(targets)
    files = [name for name in targets if name.endswith((".yaml", ".yml"))]
    if len(files) > 1 or (files and len(targets) > 1):
        raise UserError("Give one serve.yaml, or what is to be served", where=", ".join(targets))
    values = read_yaml(files[0], "serve.yaml") if files else {}
    urls = [target for target in targets if target.startswith(("http://", "https://"))]
    targets = [target for target in targets if target not in urls]
    if urls:
        special["engine"] = ",".join(urls)
    config = build_config(ServeConfig, {**values, **special}, settings, where=files[0] if files else "")
    adapters, base, log = dict(config.adapters), config.base, config.log
    for target in [] if files else targets:
        if registered_name(target) is None and not Path(target).expanduser().exists():  # on the hub or in the package
            if base and base != target:
                raise UserError(f"Two base models: {base} and {target}", next_step="start a server for each of them")
            base = target
        else:
            adapters[name_of(target, list(adapters))] = target
    if not (adapters or base or config.tasks or config.router or config.urls):
        step = "tuneloop serve RUN, ARTIFACT, NAME@champion, MODEL, tasks.json, a router or serve.yaml"
        raise UserError("Nothing to serve", next_step=step)
    if log.store:
        if not is_database_url(log.store):
            step = "write postgresql://USER@HOST/DATABASE; a file's place follows from folder=NAME"
            raise UserError("Not a URL of a Postgres database", where="log.store", next_step=step)
        log = log.model_copy(update={"store": keep_password(log.store)})
    return config.model_copy(update={"adapters": adapters, "base": base, "log": log})


def gateway_of(config: ServeConfig, deployment: ServerDeployment) -> Gateway:
    """The gateway before a started engine; UserError: the store can't be opened, or a name is there twice."""
    folder, content = Path(config.folder), config.log.content
    if content == "redacted" or content == "pseudonyms":
        store = StoreWriter(folder, "redacted", redactor_of(content), store=config.store)
    else:
        store = StoreWriter(folder, content, store=config.store)
    store.start()
    spent, keys_used = _spent(config.store, read_keys(folder))
    keyring = Keyring(folder, LOOK_AT_KEYS, keys_used)
    gateway = Gateway(deployment.engine, deployment.models(), config, store, keyring, spent)
    gateway.candidates, gateway.left_out = deployment.candidate_models(), dict(deployment.left_out)
    gateway.encoder = open_encoder()
    if config.router:
        use_router(gateway)
    return gateway


def redactor_of(content: str) -> Callable[[Any], Any]:
    """What replaces personal data, ready to work; UserError: there is no key for pseudonyms."""
    redactor = Redactor(PersonalConfig(mode="pseudonym" if content == "pseudonyms" else "placeholder"))
    redactor("call +1 202 555 0143")  # reads its lists now, and not while the first requests are answered
    return redactor


def _spent(store_path: str, keys: Sequence[ApiKey]) -> tuple[dict[str, float], bool]:
    """Dollars by the id of each key with a budget, and whether any request or erasure names a key.

    What came before a key was made was another one's of its name. Of an erasure after that, all counts.
    """
    budgets = {key.name: key for key in keys if key.revoked is None and key.limits.budget_usd is not None}
    with opened(store_path) as store:
        days = store.execute("SELECT key, day, SUM(usd) FROM costs WHERE key != '' GROUP BY key, day").fetchall()
        spent = {key.id: spent_by_erased(store, key.created).get(name, 0.0) for name, key in budgets.items()}
        used = bool(days or spent_by_erased(store))
        for name, day, usd in days:
            if name in budgets and day > budgets[name].created[:10]:
                spent[budgets[name].id] += usd or 0.0
        first_day = "SELECT SUM(usd) FROM requests WHERE key = ? AND time >= ? AND time < ?"
        for name, key in budgets.items():
            (usd,) = store.execute(first_day, [name, key.created, f"{key.created[:10]}~"]).fetchone()
            spent[key.id] += usd or 0.0
    return spent, used


async def _expire(config: ServeConfig) -> None:
    """Once an hour, take from the store what is older than it may be, unless the clock has jumped in that hour."""
    watch = ClockWatch()

    def work() -> int:
        keys, now = read_keys(config.folder), time.time()
        days_of = _own_days(keys)

        def before(name: str) -> float | None:
            days = days_of.get(name, config.log.keep_days)
            return None if days is None else now - 86_400 * days

        expire_files(Path(config.folder), before, config.log.content)
        with opened(config.store) as store:
            return expire_all(store, config.log.keep_days, keys, now)

    while True:
        with contextlib.suppress(DatabaseError, UserError, OSError):  # it is locked; an hour later it is not
            if count := await asyncio.to_thread(work):
                requests = counted(count, "request")
                say(f"store     texts and users of {requests} are erased, which were kept as long as they may be")
        await asyncio.sleep(3600)
        while (ahead := watch.ahead()) > CLOCK_JUMP:  # what is erased does not come back when it is set right
            hours = f"{ahead / 3600:,.1f} hours"
            say(f"WARNING   the clock went {hours} ahead: nothing expires for an hour. If it is wrong, correct it")
            await asyncio.sleep(3600)


def expire_all(store: Database, days: float | None, keys: Sequence[ApiKey], now: float) -> int:
    """Take from a store what is older than its key or the server's settings say; returns how many requests that were.

    Args:
        days: that requests are kept whose key says nothing; None: for ever.
        keys: of the server, revoked ones too.
    """
    days_of = _own_days(keys)
    count = sum(expire(store, utc(now - 86_400 * of_key), [name]) for name, of_key in days_of.items())
    return count if days is None else count + expire(store, utc(now - 86_400 * days), [*days_of], others=True)


def _own_days(keys: Sequence[ApiKey]) -> dict[str, float]:
    """Days that requests are kept, by the names of keys that say it."""
    days_of: dict[str, float] = {}
    for key in keys:
        if (days := key.limits.keep_days) is not None:
            days_of[key.name] = min(days, days_of.get(key.name, days))
    return days_of


async def _forget(config: ServeConfig, gateway: Gateway, batches: Batches | None) -> bool:
    """Do the erasures that have begun in the server's folder, while batches pause; returns whether all is done."""
    folder = Path(config.folder)
    if not any(folder.glob(PENDING)):
        return True

    def work() -> list[str]:
        if not gateway.store.settle(30):
            refuse_spilled(folder)
        return finish_forgetting(folder, config.store, alone=False, appending=gateway.store.appending)

    if batches is not None:
        await batches.stop()
    try:
        ids = set(await asyncio.to_thread(work))
        for copy in [copy for copy in gateway.copies.waiting if copy.of in ids]:
            gateway.copies.waiting.remove(copy)
    except (UserError, DatabaseError, OSError) as error:
        say(f"forget    not everything is erased yet: {error}")
        return False
    finally:
        if batches is not None:
            batches.resume()
    return True


def serve(
    config: ServeConfig,
    companions: Companions,
    *,
    ready: Callable[[str, Gateway], None] | None = None,
    pages: Pages | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, with companions; `ready` gets the address once requests are taken.

    `pages`: makes further routes, as those of `tuneloop ui`.

    Raises:
        UserError: something is missing, the port is taken, or another server works in the folder.
    """
    with _listening(config) as listening:
        if config.log.lines == "text":
            _run(_serve(config, listening, companions, ready, pages))
            return
        lines = LogLines(sys.stderr)

        def follow(address: str, gateway: Gateway) -> None:
            gateway.ended = lines.ended
            say(first_steps(address, gateway)[0])
            if ready is not None:
                ready(address, gateway)

        with lines.writing(), reporting(say=lines.say):
            _run(_serve(config, listening, companions, follow, pages))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a server in uvloop where it is installed: its answers are through sooner."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def check_served(config: ServeConfig) -> list[Sameness]:
    """Answer all test rows of each model and compare with its evaluation; UserError: something is missing."""

    async def work() -> list[Sameness]:
        deployment = deployment_of(pinned(config), {})
        await deployment.engine.start()
        try:
            return await same_answers(deployment)
        finally:
            await deployment.engine.stop()

    return asyncio.run(work())


@contextlib.contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    """The socket of a server, which holds its folder alone."""
    from tuneloop.core.http_server import listen

    folder = Path(config.folder)
    is_new = not folder.is_dir()
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(folder, instead="folder=NAME"))
        if is_new:
            make_private(folder, (".lock",))
        try:
            listening = stack.enter_context(listen(config.host, config.port))
        except OSError as error:
            message = f"Can't listen on {config.host}:{config.port}: {error.strerror or error}"
            step = "choose another port: port=8101, or port=0 for a free one"
            raise UserError(message, where="host, port", next_step=step) from None
        yield listening


def _check_folder(config: ServeConfig) -> None:
    """Refuse keys whose budget can't be kept; warn of an open address and of a log of decisions that was changed."""
    keys = read_keys(config.folder)
    budgets = [key.name for key in keys if key.revoked is None and key.limits.budget_usd is not None]
    refuse_budget_without_prices(budgets, config.priced, config.folder)
    if config.keys.required is False and not config.loopback:
        say(f"warning   keys.required=false: all who reach {config.host} may send requests, feedback and batches")
    if config.ui and "ui" in config.keys.open_rights and not config.loopback:
        say(f"warning   keys.open_rights has ui: all who reach {config.host} may read runs, data and traffic at /ui")
    if fault := decision_log(config.store).fault if is_store(config.store) else "":
        say(f"WARNING   the log of decisions was changed: {fault} (tuneloop ab replay)")


async def _serve(
    config: ServeConfig,
    listening: socket.socket,
    companions: Companions,
    ready: Callable[[str, Gateway], None] | None,
    pages: Pages | None,
) -> None:
    experiments = companions.experiments(config.store)
    candidates = experiments.candidates()
    swaps = Swaps(config, experiments)
    _check_folder(config)
    swaps.current = swaps.wanted()
    as_named, config = config, pinned(config)
    companions.check(config, [named.name for named in served_by(config)[1]])
    async with _started(config, candidates) as gateway, experiments.followed_by(gateway), swaps.followed_by(gateway):
        batches = Batches(gateway, Path(config.folder) / "batch") if config.batch.enabled else None
        routes = [*(batches.routes() if batches else ()), *(pages(config, gateway) if pages else ())]
        server = _http_server(make_app(gateway, routes), config)
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        port = listening.getsockname()[1]
        address = f"http://{'[::1]' if config.host == '::' else config.host}:{port}"
        swaps.leave_out(gateway, gateway.left_out)
        swaps.changed = lambda gateway: _write_state(as_named, gateway, address)
        swaps.changed(gateway)
        running = asyncio.create_task(server._serve([listening]))
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        await _forget(config, gateway, batches)  # begun when no server was there, or an earlier one was killed
        if batches is not None and (left := batches.resume() or len(batches.running)):
            say(f"batch     continues with {left} of an earlier server")
        expiring = asyncio.create_task(_expire(config))

        async def erase() -> None:
            while True:
                complete = await _forget(config, gateway, batches)
                await asyncio.sleep(LOOK_FOR_ERASURES if complete else 60 * LOOK_FOR_ERASURES)

        erasing = asyncio.create_task(erase())
        if ready is not None:
            ready(address, gateway)
        freeze_heap()
        async with companions.running(config, gateway):
            await asyncio.wait((running, asyncio.create_task(stopping.wait())), return_when=asyncio.FIRST_COMPLETED)
        gateway.admission.close()
        if count := len(gateway.admission.active):
            gets = verb(count, "gets", "get")
            say(f"stopping  {counted(count, 'request')} {gets} {config.limits.drain_seconds:g} s to end")
        if batches is not None:
            await batches.stop()
        await gateway.copies.stop()
        expiring.cancel()
        erasing.cancel()
        server.should_exit = True
        await running


def _http_server(app: App, config: ServeConfig) -> GuardedServer:
    from uvicorn.config import LOGGING_CONFIG

    from tuneloop.core.http_server import GuardedServer

    limits = config.limits
    return GuardedServer(
        app,
        seconds=limits.silent_seconds,
        log_level="warning",
        log_config=None if config.log.lines == "json" else LOGGING_CONFIG,
        proxy_headers=bool(limits.proxies),
        forwarded_allow_ips=limits.proxies,
        timeout_graceful_shutdown=max(int(limits.drain_seconds), 1),
    )


@contextlib.asynccontextmanager
async def _started(config: ServeConfig, candidates: Mapping[str, Candidate]) -> AsyncIterator[Gateway]:
    """A gateway whose engine is started; both end with the block."""
    deployment = await started(config, candidates)
    gateway: Gateway | None = None
    try:
        await prove_models(config, deployment)
        gateway = gateway_of(config, deployment)
        try:
            yield gateway
        finally:
            await asyncio.to_thread(gateway.store.stop)
    finally:
        await (gateway.engine if gateway is not None else deployment.engine).stop()


def _write_state(config: ServeConfig, gateway: Gateway, address: str) -> None:
    models = [
        ServedName(name=model.name, adapter=model.adapter, release=model.release or None, source=model.source)
        for model in gateway.models.values()
    ]
    urls = masked(config.engine) if isinstance(config.engine, str) else [masked(url) for url in config.engine]
    engine, settings = gateway.engine, config.model_dump(mode="json") | {"engine": urls}
    facts = {"pid": os.getpid(), "address": address, "started": utc_now(), "base": engine.base, "engine": engine.name}
    candidates = dict.fromkeys(gateway.candidates, "") | gateway.left_out
    facts |= {"devices": [] if config.urls else machine.cards() or [this_cpu().name]}
    state = ServerState.model_validate(facts | {"models": models, "candidates": candidates, "config": settings})
    write_record(Path(config.folder) / ServerState.file, state)


def first_steps(address: str, gateway: Gateway, *, with_key: bool = False) -> list[str]:
    """What is printed when a server is ready: address, models, a line to try it.

    `with_key`: where a key is needed and there is none, one is made and shown this once.
    """
    name, key = next(iter(gateway.models)), ""
    if with_key and gateway.key_required and not gateway.keyring.used:
        key, _ = add_key(gateway.config.folder, "first")
    header = f' -H "Authorization: Bearer {key or "$KEY"}"' if gateway.key_required else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    lines = [
        f"serving   {', '.join(gateway.models)} on {gateway.engine.name}: {address}",
        f"try       curl {address}/v1/chat/completions{header} -H 'Content-Type: application/json' -d '{body}'",
    ]
    if key:
        lines.append("key       the one above is shown this once; `tuneloop keys` makes others and revokes it")
    elif gateway.key_required and not gateway.keyring.used:
        lines.append(f"key       a key is needed and there is none: tuneloop keys add NAME -f {gateway.config.folder}")
    if gateway.config.ui:
        lines.append(f"pages     {address}/ui/ for keys that read (--rights ui) or act (--rights steer)")
    return lines
