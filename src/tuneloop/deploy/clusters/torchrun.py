"""torchrun on machines of one's own: the same command on each."""

from __future__ import annotations

from tuneloop.deploy.clusters import Cluster, TrainingJob


def project(job: TrainingJob) -> dict[str, str]:
    many = job.nodes > 1
    rendezvous = f"--nnodes {job.nodes} --node-rank $RANK --master-addr $HEAD --master-port 29500" if many else ""
    variables = ': "${RANK:?0 on the first machine, 1 on the second, ...}" "${HEAD:?address of the first machine}"\n'
    needs = variables if many else ""
    return {
        "run.sh": f"""#!/usr/bin/env bash
# Run this on each machine{", with RANK and HEAD set" if many else ""}; the folder has to lie on a disk that all of them see.
set -euo pipefail
cd "$(dirname "$0")"
{needs}test -d .venv || {{ python3 -m venv .venv && .venv/bin/pip install {job.package!r}; }}
source .venv/bin/activate
exec {job.command(f"runs/{job.name}", rendezvous)}
"""
    }


def commands(job: TrainingJob) -> tuple[tuple[str, str], ...]:
    up = "bash run.sh" if job.nodes == 1 else "RANK=0 HEAD=10.0.0.1 bash run.sh   # RANK=1, 2, ... on the others"
    return (
        (up, "Start it on each machine"),
        (f"tuneloop compare runs/{job.name}", "Look at it"),
        ("pkill -TERM -f 'tuneloop run'", "End it; the same command goes on from its checkpoint"),
    )


CLUSTER = Cluster(
    name="torchrun", title="torchrun", project=project, commands=commands,
    source="https://docs.pytorch.org/docs/stable/elastic/run.html", as_of="2026-11-27",
    checked="The shell reads the script; training by torchrun is tested with two processes.",
    unchecked="several machines.",
)  # fmt: skip
