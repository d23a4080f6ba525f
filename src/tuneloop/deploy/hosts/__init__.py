"""Hosts that serve a model: a file each, with the functions `project` and `commands` and the record `HOST`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.deploy.deployment import Form, ServingJob
from tuneloop.deploy.skypilot_sdk import SkyJob

Steps = tuple[tuple[str, str], ...]  # commands for a shell, each with what it does
HF_SECRET = ("HF_TOKEN", "in your shell, reads the model and a gated base")

J = TypeVar("J")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobSite(Generic[J]):
    """Where jobs of a kind are done: an artifact is served, or a recipe trained.

    `name` is its file's, `project` and `commands` are the functions there: see `records_of`.
    """

    name: str = ""  # on the command line
    title: str  # in words
    project: Callable[[J], dict[str, str]] = lambda job: {}  # makes the files of its folder, name -> text
    commands: Callable[[J], Steps] = lambda job: ()  # start, use, end; each with what it does
    source: str  # definition that the files follow, and the day on which it was read, ISO 8601
    unchecked: str  # what can't be checked without one
    limits: tuple[str, ...] = ()  # what one should know before paying
    gpus: Mapping[str, str] = field(default_factory=dict)  # the planner's cards there; empty: none, or any
    providers: tuple[str, ...] = ()  # whose prices in the planner's table are paid there; empty: any
    own_machines: bool = False  # whether they are the user's: a price of the table is what a rented one would cost
    variables: tuple[str, ...] = ()  # of the environment, which the start needs
    sky: Callable[[J], SkyJob] | None = None  # what SkyPilot's package starts in place of the commands


@dataclass(frozen=True, kw_only=True)
class Host(JobSite[ServingJob]):
    """A place where an artifact can be served."""

    forms: tuple[Form, ...]  # formats of artifacts that it serves, the preferred one first
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # cards of a machine; default: 1, 2, 4, 8
    least: int = 1  # replicas that are always on where the user names no number; 0: a request starts one
    vllm: bool = True  # whether vLLM answers; False: the host's own engine, or llama.cpp
    pulls: bool = True  # whether it loads the artifact from the Hugging Face hub, so that it has to be there
    secrets: tuple[tuple[str, str], ...] = ()  # names of what must be known there, and for what
    # the model's name in a request; empty: a request names none; None: its requests are not OpenAI's
    request_model: Callable[[ServingJob], str | None] = lambda job: job.name


def steps(
    up: str,
    ask: str,
    down: str,
    *,
    up_words: str = "Deploy it",
    ask_words: str = "Ask it",
    down_words: str = "Take it down",
) -> Steps:
    """The commands of a deployment."""
    return (up, up_words), (ask, ask_words), (down, down_words)


def callers_key(name: str) -> tuple[str, str]:
    """The secret that callers of a service send, in a variable of this name."""
    return name, f"in your shell, the key that callers send: `export {name}=$(openssl rand -hex 24)`"


@functools.cache
def hosts() -> dict[str, Host]:
    """All hosts by name."""
    return records_of(__name__, __path__, "HOST")


def find_host(name: str) -> Host:
    """A host by its name; a UserError names the nearest where there is none."""
    return find_named(hosts(), name, f"No host {name!r}", "--to")


def refuse_form(host: Host, form: str) -> None:
    """Refuse an artifact whose format a host can't serve, by a UserError with the format that it can."""
    if form not in host.forms:
        message = f"{host.title} does not serve the format {form!r}; it serves {', '.join(host.forms)}"
        step = f"tuneloop export RUN --format {host.forms[0]}, and deploy that"
        raise UserError(message, where="ARTIFACT", next_step=step)


def records_of(package: str, path: Iterable[str], constant: str) -> dict[str, Any]:
    """The record `constant` of every module of a package, by its name, with the module's functions."""
    records = {}
    for file in pkgutil.iter_modules(path):
        module, name = importlib.import_module(f"{package}.{file.name}"), file.name.replace("_", "-")
        functions = {"project": module.project, "commands": module.commands}
        records[name] = replace(getattr(module, constant), name=name, **functions)
    return records


def find_named(records: Mapping[str, T], name: str, message: str, option: str, more: Sequence[str] = ()) -> T:
    """A record by its name.

    Args:
        message: the sentence that refuses an unknown name; the UserError offers the nearest one, of `more` too.
    """
    if name in records:
        return records[name]
    names = [*records, *more]
    raise UserError(message, where=option, next_step=did_you_mean(name, names, f"known: {', '.join(names)}"))
