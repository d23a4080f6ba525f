"""Hosts that serve a model: a file each. A new host is one file here with a `HOST`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tuneloop.core.errors import UserError, did_you_mean
from tuneloop.deploy.deployment import Deployment, Form
from tuneloop.deploy.skypilot_sdk import SkyJob

HF_SECRET = ("HF_TOKEN", "in your shell, reads the model and a gated base")


@dataclass(frozen=True)
class Host:
    """A place where an artifact can be served."""

    name: str  # on the command line
    title: str  # in words
    forms: tuple[Form, ...]  # formats of artifacts that it serves, the preferred one first
    project: Callable[[Deployment], dict[str, str]]  # makes the files of the project's folder, name -> text
    commands: Callable[[Deployment], tuple[tuple[str, str], ...]]  # deploy, ask, take down; each with what it does
    source: str  # address of the definition that the files follow
    as_of: str  # day on which that was read, ISO 8601
    checked: str  # how the files are checked without an account
    unchecked: str  # what can't be checked without one
    limits: tuple[str, ...] = ()  # what one should know before paying
    gpus: Mapping[str, str] = field(default_factory=dict)  # the planner's cards there; empty: none, or any
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # cards of a machine; default: 1, 2, 4, 8
    providers: tuple[str, ...] = ()  # whose prices in the planner's table are this host's
    own: bool = False  # whether the machines are the user's: no price of the planner's table is paid
    pulls: bool = True  # whether it loads the artifact from the Hugging Face hub, so that it has to lie there
    variables: tuple[str, ...] = ()  # of the environment, which the commands that put it up need
    secrets: tuple[tuple[str, str], ...] = ()  # names of what must be known there, and for what
    # the model's name in a request; empty: a request names none; None: its requests are not OpenAI's
    asked_as: Callable[[Deployment], str | None] = lambda job: job.name
    sky: Callable[[Deployment], SkyJob] | None = None  # what SkyPilot's package starts in place of the commands


@functools.cache
def hosts() -> dict[str, Host]:
    """All hosts by name."""
    return records_of(__name__, __path__, "HOST", Host)


def find_host(name: str) -> Host:
    """A host by its name.

    Raises:
        UserError: none of that name; the nearest is named.
    """
    return find_named(hosts(), name, f"No host {name!r}", "--to")


def refuse_form(host: Host, form: str) -> None:
    """Refuse an artifact whose format a host can't serve, with the format that it can.

    Raises:
        UserError: it can't.
    """
    if form not in host.forms:
        raise UserError(
            f"{host.title} does not serve the format {form!r}; it serves {', '.join(host.forms)}", where="ARTIFACT",
            next_step=f"tuneloop export RUN --format {host.forms[0]}, and deploy that",
        )  # fmt: skip


T = TypeVar("T")


def records_of(package: str, path: Iterable[str], constant: str, kind: type[T]) -> dict[str, T]:
    """The record `constant` of every module of a package, by its name."""
    modules = (importlib.import_module(f"{package}.{module.name}") for module in pkgutil.iter_modules(path))
    records = (getattr(module, constant, None) for module in modules)
    return {str(vars(one)["name"]): one for one in records if isinstance(one, kind)}


def find_named(known: Mapping[str, T], name: str, what: str, option: str, more: Sequence[str] = ()) -> T:
    """One by its name.

    Args:
        what: the sentence that refuses an unknown name.

    Raises:
        UserError: none of that name; the nearest is named.
    """
    if name in known:
        return known[name]
    names = [*known, *more]
    raise UserError(what, where=option, next_step=did_you_mean(name, names, f"known: {', '.join(names)}"))
