"""SkyPilot: a machine of any cloud at the lowest price, taken down when the run is over."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.clusters import Cluster, ClusterJob
from tuneloop.deploy.hosts import Steps
from tuneloop.deploy.project_text import yaml_text
from tuneloop.deploy.skypilot_sdk import SkyJob

GPUS = {
    "t4": "T4", "l4": "L4", "a10g": "A10G", "a10": "A10", "l40s": "L40S", "a100-40gb": "A100", "a100-80gb": "A100-80GB",
    "h100-pcie": "H100", "h100-sxm": "H100", "h200": "H200", "b200": "B200",
}  # fmt: skip
# Clouds of its catalogue, as the planner's table of prices names them.
PROVIDERS = ("AWS us-east-1", "Lambda", "Nebius", "RunPod Secure", "RunPod Community", "Vast.ai", "Verda")
HEAD = '$(echo "$SKYPILOT_NODE_IPS" | head -n1)'
RENDEZVOUS = f"--nnodes $SKYPILOT_NUM_NODES --node-rank $SKYPILOT_NODE_RANK --master-addr {HEAD}"


def project(job: ClusterJob) -> dict[str, str]:
    resources: dict[str, Any] = {"accelerators": f"{GPUS[job.gpu]}:{job.gpus}", "disk_size": 256}
    if job.spot:
        resources["use_spot"] = True
    else:
        resources["autostop"] = {"idle_minutes": 5, "down": True}
    if job.max_usd_per_hour:
        resources["max_hourly_cost"] = job.max_usd_per_hour
    task: dict[str, Any] = {"name": job.name, "resources": resources, "num_nodes": job.nodes, "workdir": "."}
    if job.bucket:
        task["file_mounts"] = {"/runs": {"source": job.bucket, "mode": "MOUNT"}}
    if job.gated:
        task["secrets"] = {"HF_TOKEN": None}
    out = f"/runs/{job.name}" if job.bucket else f"$HOME/runs/{job.name}"
    task |= {"envs": {"TUNELOOP": job.package}, "setup": 'pip install "$TUNELOOP"'}
    task["run"] = job.command(out, RENDEZVOUS if job.nodes > 1 else "")
    return {"sky.yaml": yaml_text("SkyPilot: a training run. README.md has the commands.", task)}


def commands(job: ClusterJob) -> Steps:
    secret = " --secret HF_TOKEN" if job.gated else ""
    if job.spot:
        note = "a machine that is taken away is replaced, and the run continues from its checkpoint"
        return (
            (f"sky jobs launch -n {job.name} sky.yaml{secret}", f"Start it as a managed job: {note}"),
            ("sky jobs queue", "Watch it; the run's folder is in the bucket"),
            (f"sky jobs cancel -n {job.name}", "Take it down"),
        )
    fetch = f"rsync -a {job.name}:runs/{job.name} runs/\nsky cost-report" if not job.bucket else "sky cost-report"
    return (
        (f"sky launch -c {job.name} sky.yaml{secret}", "Start it; it shows the price first and asks"),
        (fetch, "Fetch the run, and see what it cost"),
        (f"sky down {job.name}", "Take it down; five idle minutes after the run it ends"),
    )


CLUSTER = Cluster(
    title="SkyPilot",
    source="SkyPilot's own schemas (sky/utils/schemas.py), read on 2026-11-27",
    unchecked="that a cloud has the card, quotas, the prices.",
    gpus=GPUS,
    providers=PROVIDERS,
    spot=True,
    bucket="mounted",
    variables=("HF_TOKEN",),
    limits=(
        "A spot run needs --bucket: a machine that is taken away takes its disk with it. The jobs controller is a "
        "small machine too; it stops ten minutes after its last job.",
        "Where the package `skypilot` is installed, `tuneloop run --on skypilot` starts the run, after SkyPilot's "
        "price of this minute and a yes. With --max-usd, `max_hourly_cost` keeps SkyPilot from dearer machines, "
        "also when it moves.",
    ),
    sky=lambda job: SkyJob("sky.yaml", job.name, "job" if job.spot else "cluster", ("HF_TOKEN",) if job.gated else ()),
)
