"""What `tuneloop merge` and `tuneloop route fit` write, for a server: models by task, and the model `router`."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.core.errors import UserError
from tuneloop.core.foreign import parse_json
from tuneloop.core.ui import say
from tuneloop.models.adapters import BASE
from tuneloop.records.merge import TaskDeployment
from tuneloop.records.record import read_record
from tuneloop.records.router import RouterRecord
from tuneloop.registry import registered_name
from tuneloop.serving.config import ServeConfig
from tuneloop.serving.gateway import ROUTER, Gateway, Route, Routed, ServedModel
from tuneloop.serving.store.store import last_routes, opened

if TYPE_CHECKING:
    from tuneloop.combine import RouteJob, Router

QUICK_MS = 2.0  # that a router may take


@dataclass(frozen=True)
class Named:
    """A model that a server has."""

    name: str  # as clients ask for it
    source: str  # run, artifact or registered version
    task: str = ""  # a run whose task it answers; empty: that of `source`


def split_targets(targets: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Targets without `tasks.json` and router's folder, and these as settings; UserError: two of a kind."""
    rest: list[str] = []
    settings: dict[str, str] = {}
    for target in targets:
        kind = "tasks" if target.endswith(".json") else "router" if (Path(target) / RouterRecord.file).is_file() else ""
        if not kind:
            rest.append(target)
        elif kind in settings:
            raise UserError(f"Two of {kind}: {settings[kind]} and {target}", next_step="name one of them")
        else:
            settings[kind] = target
    return rest, settings


def name_of(target: str, others: Sequence[str] = ()) -> str:
    """The name of a target for clients, none of `others`: of a registered version the model's, else the folder's."""
    registered = registered_name(target)
    path = Path(target).expanduser().resolve()
    name = registered[0] if registered else path.parent.name if path.name in ("adapter", "model") else path.name
    name = re.sub(r"[^A-Za-z0-9._:-]+", "-", name).strip("-") or "model"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(name for name in names if name not in others)


def served_by(config: ServeConfig) -> tuple[str, list[Named]]:
    """The base (empty: that of the adapters) and the models of a server, from its settings and the files in them.

    Raises:
        UserError: a file is missing or damaged, or it names another base.
    """
    base, models = config.base, {name: Named(name, source) for name, source in config.adapters.items()}

    def add(target: str, source: str, task: str = "") -> None:
        name = name_of(target, list(models))
        models[name] = Named(name, source, task)

    if config.tasks:
        tasks = read_record(TaskDeployment, Path(config.tasks))
        if base and base != tasks.base:
            step = "name one of them"
            raise UserError(f"Two base models: {base} and {tasks.base}", where=config.tasks, next_step=step)
        base = tasks.base
        for route in tasks.routes:
            add(route.task, route.target, route.task)
    if config.router and not models:
        for target in read_record(RouterRecord, Path(config.router)).routes:
            add(target.name, target.name)
    if ROUTER in models and config.router:
        step = "name this model otherwise"
        raise UserError(f"{ROUTER!r} is the name of the router", where="adapters", next_step=step)
    return base, list(models.values())


def use_router(gateway: Gateway) -> None:
    """Let a gateway's router choose who answers the model `router`; UserError: no router, or a model is not served."""
    from tuneloop.combine import RouteJob, load_router

    config = gateway.config
    router = load_router(Path(config.router))
    record = router.record
    names = [_served_name(target, config, gateway) for target in router.names]
    base = next((name for name, model in gateway.models.items() if model.adapter == BASE), "")
    decide = decider(router, RouteJob(record.features, record.base), names, base or names[0])
    gateway.models = {ROUTER: ServedModel(ROUTER, source=config.router), **gateway.models}
    gateway.route = decide
    with opened(config.store, create=True) as store:
        gateway.conversations = last_routes(store)
    decide("The first one loads what is needed.")
    milliseconds = []
    for number in range(9):
        began = time.perf_counter()
        decide(f"Where is parcel {number}, which I ordered two weeks ago?")
        milliseconds.append(1000 * (time.perf_counter() - began))
    took = statistics.median(milliseconds)
    slow = took > QUICK_MS and record.features not in ("static", "words")
    more = "; `route fit --features static` gives a quicker one" if slow else ""
    say(f"router    chooses between {', '.join(names)} in {took:.1f} ms ({record.features}){more}")


def _served_name(target: str, config: ServeConfig, gateway: Gateway) -> str:
    """The name under which a router's target is served."""
    served = served_by(config)[1]
    by_source = {named.source: named.name for named in reversed(served)}
    by_task = {named.task: named.name for named in served if named.task}
    for name in (by_task.get(target), by_source.get(target), target, name_of(target)):
        if name in gateway.models:
            return name
    step = f"serve {target} as well; served are {', '.join(gateway.models)}"
    raise UserError(f"The router chooses {target}, which is not served", where=config.router, next_step=step)


def decider(router: Router, job: RouteJob, names: Sequence[str], base: str) -> Route:
    """The function from a text to who answers it: one of the router's models as they are served, or else the base."""
    import numpy as np

    costs = np.array([route.cost for route in router.record.routes])

    def decide(text: str) -> Routed:
        features = job.embed([_plain(text)])
        quality = router.quality(features)[0]
        scores = {name: round(float(value), 4) for name, value in zip(names, quality, strict=True)}
        similarity = None
        if router.record.threshold is not None:
            similarity = round(float(router.similarity(features)[0]), 4)
            if similarity < router.record.threshold:
                return Routed(base, "none of these", scores, similarity)
        best = int((quality - router.record.price * costs).argmax())
        return Routed(names[best], "best", scores, similarity)

    return decide


def _plain(text: str) -> str:
    """The values of a JSON object as text, as a row of several columns becomes a prompt; other texts as they are."""
    if text[:1] == "{":
        try:
            value = parse_json(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, dict):
            return "\n".join(map(str, value.values()))
    return text
