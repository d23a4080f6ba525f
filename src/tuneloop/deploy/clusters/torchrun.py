"""torchrun on own machines: the same command on each."""

from __future__ import annotations

from tuneloop.deploy.clusters import Cluster, ClusterJob
from tuneloop.deploy.hosts import Steps


def project(job: ClusterJob) -> dict[str, str]:
    rendezvous = needs = condition = ""
    if job.nodes > 1:
        rendezvous = f"--nnodes {job.nodes} --node-rank $RANK --master-addr $HEAD --master-port 29500"
        needs = ': "${RANK:?0 on the first machine, 1 on the second, ...}" "${HEAD:?address of the first machine}"\n'
        condition = ", with RANK and HEAD set"
    return {
        "run.sh": f"""#!/usr/bin/env bash
# Run this on each machine{condition}; the folder has to be on a disk that all of them see.
set -euo pipefail
cd "$(dirname "$0")"
{needs}test -d .venv || {{ python3 -m venv .venv && .venv/bin/pip install {job.package!r}; }}
source .venv/bin/activate
exec {job.command(f"runs/{job.name}", rendezvous)}
"""
    }


def commands(job: ClusterJob) -> Steps:
    up = "bash run.sh" if job.nodes == 1 else "RANK=0 HEAD=10.0.0.1 bash run.sh   # RANK=1, 2, ... on the others"
    return (
        (up, "Start it on each machine"),
        (f"tuneloop compare runs/{job.name}", "Look at it"),
        ("pkill -TERM -f 'tuneloop run'", "End it; the same command continues from its checkpoint"),
    )


CLUSTER = Cluster(
    title="torchrun",
    source="https://docs.pytorch.org/docs/stable/elastic/run.html, read on 2026-11-27",
    unchecked="several machines.",
)
