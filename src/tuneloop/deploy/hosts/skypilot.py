"""SkyServe: SkyPilot's services on any cloud, by the cheapest offer."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import VLLM_VERSION, ServingJob, chat_call, vllm_command
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, callers_key, steps
from tuneloop.deploy.project_text import shell, yaml_text
from tuneloop.deploy.skypilot_sdk import SkyJob


def project(job: ServingJob) -> dict[str, str]:
    gpu = GPUS[job.machine.card.key] if job.machine else "L4"
    policy: dict[str, Any] = {"min_replicas": job.traffic.least}
    if job.traffic.most > job.traffic.least:
        policy |= {"max_replicas": job.traffic.most, "target_qps_per_replica": 2}
    task = {
        "name": job.name,
        "service": {"readiness_probe": {"path": "/health", "initial_delay_seconds": 1800}, "replica_policy": policy},
        "resources": {"accelerators": f"{gpu}:{job.cards}", "ports": 8000, "disk_size": 128},
        "secrets": {"HF_TOKEN": None, "VLLM_API_KEY": None},
        "setup": f"pip install vllm=={VLLM_VERSION}",
        "run": shell(vllm_command(job)),
    }
    return {"service.yaml": yaml_text(f"SkyServe: {job.artifact} behind vLLM. `sky serve up service.yaml`.", task)}


def commands(job: ServingJob) -> Steps:
    url = f'"http://$(sky serve status --endpoint {job.name})/v1/chat/completions"'
    ask = chat_call(url, "Bearer $VLLM_API_KEY")
    up = f"sky serve up service.yaml -n {job.name} --secret HF_TOKEN --secret VLLM_API_KEY"
    return steps(up, ask, f"sky serve down {job.name}", up_words="Deploy it; it shows the price first and asks")


GPUS = {
    "t4": "T4", "l4": "L4", "a10g": "A10G", "a10": "A10", "l40s": "L40S", "a100-40gb": "A100", "a100-80gb": "A100-80GB",
    "h100-pcie": "H100", "h100-sxm": "H100", "h200": "H200", "b200": "B200",
}  # fmt: skip
# Clouds of its catalogue, as the planner's table of prices names them.
PROVIDERS = ("AWS us-east-1", "Lambda", "Nebius", "RunPod Secure", "RunPod Community", "Vast.ai", "Verda")

HOST = Host(
    title="SkyServe (SkyPilot)",
    forms=("merged", "adapter"),
    source="SkyPilot's own schemas (sky/utils/schemas.py), read on 2026-11-27",
    checked="SkyPilot's strict schemas of tasks and services accept service.yaml; its calls fit the signatures of "
    "skypilot 0.14.1, and start and end a service before a stand-in of that package.",
    unchecked="that a cloud has the card, quotas, the prices.",
    limits=(
        "The controller is a small machine that costs something too. `sky down sky-serve-controller-...` ends it when "
        "no service is left (`sky status` names it).",
        "Where the package `skypilot` is installed, `tuneloop deploy --to skypilot` starts the service, after "
        "SkyPilot's price of this minute and a yes.",
    ),
    sky=lambda job: SkyJob("service.yaml", job.name, "service", ("HF_TOKEN", "VLLM_API_KEY")),
    gpus=GPUS,
    providers=PROVIDERS,
    variables=("HF_TOKEN", "VLLM_API_KEY"),
    secrets=(HF_SECRET, callers_key("VLLM_API_KEY")),
)
