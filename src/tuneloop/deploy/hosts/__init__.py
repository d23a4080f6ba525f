"""Hosts that serve a model: a file each. A new host is one file here with a `HOST`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tuneloop.core.errors import UserError
from tuneloop.deploy.deployment import Deployment, Form
from tuneloop.deploy.discovery import find_named, records_of
from tuneloop.deploy.skypilot_sdk import SkyJob


def _by_name(job: Deployment) -> str:
    return job.name


@dataclass(frozen=True)
class Host:
    """A place where an artifact can be served.

    Args:
        name: on the command line.
        title: in words.
        forms: formats of artifacts that it serves, the preferred one first.
        project: makes the files of the project's folder, name -> text.
        commands: the commands that put it up, ask it and take it down, each with what it does.
        source: address of the definition that the files follow.
        as_of: day on which that was read, ISO 8601.
        checked: how the files are checked without an account.
        unchecked: what can't be checked without one.
        limits: what one should know before paying.
        gpus: names of the planner's cards there; empty: it needs none, or takes what the machine has.
        counts: how many cards of a kind a machine there has; default: 1, 2, 4 or 8.
        providers: whose prices in the planner's table are this host's.
        own: whether it runs on machines of one's own, so that no price of the planner's table is paid for it.
        pulls: whether it loads the artifact from the Hugging Face hub, so that it has to lie there.
        variables: of the environment, which the commands that put it up need.
        secrets: names of what must be known there, and for what.
        asked_as: the model's name in a request; empty: a request names none; None: its requests are not OpenAI's.
        sky: what SkyPilot's own package starts in place of the commands; None: nothing.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    project: Callable[[Deployment], dict[str, str]]
    commands: Callable[[Deployment], tuple[tuple[str, str], ...]]
    source: str
    as_of: str
    checked: str
    unchecked: str
    limits: tuple[str, ...] = ()
    gpus: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    providers: tuple[str, ...] = ()
    own: bool = False
    pulls: bool = True
    variables: tuple[str, ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()
    asked_as: Callable[[Deployment], str | None] = _by_name
    sky: Callable[[Deployment], SkyJob] | None = None


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
            f"{host.title} does not serve the format {form!r}; it serves {', '.join(host.forms)}",
            where="ARTIFACT",
            next_step=f"tuneloop export RUN --format {host.forms[0]}, and deploy that",
        )
