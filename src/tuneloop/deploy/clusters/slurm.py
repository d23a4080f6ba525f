"""Slurm: a batch script."""

from __future__ import annotations

from tuneloop.deploy.clusters import Cluster, ClusterJob
from tuneloop.deploy.hosts import Steps


def project(job: ClusterJob) -> dict[str, str]:
    rendezvous = "--nnodes $SLURM_NNODES --node-rank $SLURM_NODEID --master-addr $HEAD --master-port 29500"
    command = job.command(f'"$SLURM_SUBMIT_DIR/runs/{job.name}"', rendezvous if job.nodes > 1 else "")
    return {
        "job.sbatch": f"""#!/usr/bin/env bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.gpus}
#SBATCH --cpus-per-task=16
#SBATCH --output=%x-%j.log
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Two minutes before its time is over the run saves a checkpoint; the same script continues from there.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
test -d .venv || {{ python3 -m venv .venv && .venv/bin/pip install {job.package!r}; }}
source .venv/bin/activate
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
export HEAD
srun bash -c {command!r}
"""
    }


def commands(job: ClusterJob) -> Steps:
    return (
        ("sbatch job.sbatch", "Start it, from this folder on a disk that all nodes see"),
        (f"squeue --name {job.name}", "Watch it; the run is in runs/"),
        (f"scancel --name {job.name}", "Take it down"),
    )


CLUSTER = Cluster(
    title="Slurm",
    source="https://slurm.schedmd.com/sbatch.html, read on 2026-11-27",
    unchecked="partitions and accounts, which your site wants to be named (sbatch --partition ... --account ...).",
    limits=("Set HF_TOKEN in the shell that calls sbatch; with --bucket, the bucket's credentials as well.",),
)
