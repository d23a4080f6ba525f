"""Services that train a model on their machines: a file each, with the record `SERVICE`, which says how they differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tuneloop.core.http.service import Item, Service

LOOKS = 60  # at a file that a service makes ready
Send = Callable[[Service, str, Path], Awaitable[str]]
State = Literal["waiting", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True)
class Order:
    """What a service is to train."""

    key: str  # of the run: a job that carries it is not started again
    base: str  # as the service names it
    train: str  # and `val`: files at the service, by id; empty: none
    val: str
    epochs: int
    seed: int


@dataclass(frozen=True)
class HostedState:
    """How far a job is."""

    state: State
    model: str = ""  # as the service names what was trained
    error: str = ""
    tokens: int = 0  # that are billed
    usd: float = 0.0  # by the service's own account; 0: it says nothing
    steps: list[dict[str, Any]] = field(default_factory=list)  # as lines of `metrics.jsonl`


@dataclass(frozen=True, kw_only=True)
class TrainingService:
    """A service: where its API has files and jobs, and what they look like there."""

    title: str
    url: str  # of its API
    root: str = ""  # of the paths of files and jobs, with `{account}`; `answers`: of those of answers
    answers: str = ""
    key: str  # variable of the environment that holds its key; `account`: one that holds the account, part of the paths
    account: str = ""
    source: str  # what the requests follow, and the day on which it was read
    send: Send  # a file of the run of a key: what jobs call it
    jobs: str  # path of jobs, to which `body` is sent
    body: Callable[[Order], Mapping[str, Any]]
    states: Mapping[str, State]  # its words for them; others: waiting
    state: str = "status"  # field of a job that holds one of these words
    mark: Callable[[Item], str]  # the part of a job that holds the key of its run
    listed: Callable[[Service], Awaitable[list[Item]]] | None = None  # its jobs; None: a list of OpenAI's form
    cancel: str = "/cancel"  # after a job's path
    look: Callable[[Service, str], Awaitable[HostedState]]  # at the job of a path
    priced: bool = False  # it says what a job costs, at the latest when it runs
    # Dollars that it would take, 0: it does not say. Raises UserError: more than the account may spend.
    estimate: Callable[[Service, Order], Awaitable[float]] | None = None
    # Path or URL of each file of weights, by job and model; None: it gives none out.
    weights: Callable[[Service, str, str], Awaitable[Mapping[str, str]]] | None = None
    served: Callable[[Service, str], Awaitable[str]] | None = None  # a model's name for requests; empty: not deployed
    deploy: str = ""  # what makes a `{model}` answer, where it does not do so at once


def uploads(path: str, **form: str) -> Send:
    """How files are sent in one request.

    Args:
        form: fields next to the file; their values may hold `{file}`, its name.
    """

    async def send(service: Service, key: str, file: Path) -> str:
        fields = {name: value.format(file=file.name) for name, value in form.items()}
        return str((await service.upload(path, fields, file))["id"])

    return send
