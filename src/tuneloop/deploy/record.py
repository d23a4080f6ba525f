"""What was made for a host or a cluster: `deploy.json`, `remote.json`."""

from __future__ import annotations

from tuneloop.records.record import Record


class HostedDeployment(Record, noun="a deployment", file="deploy.json", again="run `tuneloop deploy` again"):
    """`deploy.json`: a project that serves an artifact on a host, and what it was planned to cost.

    Args:
        host, name: where, and the service's name there.
        artifact, format, base, hub: what is served, its base, and `ORG/NAME` on the hub.
        gpu, gpus: card of the planner and how many a replica has; empty and 0: the host needs none.
        context: most tokens of a prompt and its answer.
        need_gib: planned GPU memory of a replica, GiB.
        replicas: least and most.
        queries_per_day, replicas_needed: stated requests, and replicas that their busiest hour needs; None: not stated.
        usd_per_hour: of a replica; None: not known.
        usd_per_month: for the least and the most replicas all the time; None: not known.
        created: ISO 8601 in UTC.
        files: of the project.
    """

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
    queries_per_day: float | None = None
    replicas_needed: int | None = None
    usd_per_hour: float | None = None
    usd_per_month: tuple[float, float] | None = None
    created: str = ""
    files: list[str] = []


class RemoteJob(Record, noun="a run elsewhere", file="remote.json", again="run `tuneloop run --on` again"):
    """`remote.json`: a project that trains a recipe elsewhere, and what it was planned to cost.

    Args:
        name, on: of the job, and where.
        gpu, gpus, nodes: card of the planner, how many a machine has, and machines.
        spot: whether machines may be taken away.
        minutes: of training, as planned.
        usd, p90: dollars that training is expected to cost, and what one time in ten is more; None: own machines.
        usd_per_hour: of a card, at the time of planning; None: own machines.
        created: ISO 8601 in UTC.
    """

    name: str
    on: str
    gpu: str
    gpus: int
    nodes: int = 1
    spot: bool = False
    minutes: float
    usd: float | None = None
    p90: float | None = None
    usd_per_hour: float | None = None
    created: str = ""
