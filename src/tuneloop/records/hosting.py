"""What was made for a host: `deploy.json`."""

from __future__ import annotations

from typing import ClassVar

from tuneloop.records.record import Record


class HostedDeployment(Record):
    """`deploy.json`: a project that serves an artifact on a host, and what it was planned to cost.

    Args:
        host, name: where, and the service's name there.
        artifact, format, base, hub: what is served, its base, and `ORG/NAME` on the hub.
        gpu, gpus: card of the planner and how many a replica has; empty and 0: the host needs none.
        context: most tokens of a prompt and its answer.
        need_gib: planned GPU memory of a replica, GiB.
        replicas: least and most.
        usd_per_hour: of a replica; None: not known.
        usd_per_month: for the least and the most replicas all the time; None: not known.
        created: ISO 8601 in UTC.
        files: of the project.
    """

    title: ClassVar[str] = "a deployment"
    file: ClassVar[str] = "deploy.json"
    again: ClassVar[str] = "run `tuneloop deploy` again"

    host: str
    name: str
    artifact: str
    format: str
    base: str
    hub: str = ""
    gpu: str = ""
    gpus: int = 0
    context: int
    need_gib: float
    replicas: tuple[int, int]
    usd_per_hour: float | None = None
    usd_per_month: tuple[float, float] | None = None
    created: str = ""
    files: list[str] = []
