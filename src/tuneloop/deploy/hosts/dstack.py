"""dstack: a service on clouds, Kubernetes or one's own machines."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import VLLM_IMAGE, ServingJob, chat_call, vllm_command
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, steps
from tuneloop.deploy.project_text import shell, yaml_text


def project(job: ServingJob) -> dict[str, str]:
    gpu: dict[str, Any] = {"count": job.cards}
    gpu |= {"name": [GPUS[job.machine.card.key]]} if job.machine else {"memory": f"{job.size.need_gib:.0f}GB.."}
    service: dict[str, Any] = {
        "type": "service", "name": job.name, "image": VLLM_IMAGE, "env": ["HF_TOKEN"],
        "commands": [shell(vllm_command(job))], "port": 8000, "model": job.name,
        "resources": {"gpu": gpu, "disk": "100GB.."},
        "probes": [{"type": "http", "url": "/health", "timeout": "10s", "interval": "30s"}],
    }  # fmt: skip
    if job.traffic.most > job.traffic.least:
        service |= {
            "replicas": f"{job.traffic.least}..{job.traffic.most}",
            "scaling": {"metric": "rps", "target": 2, "scale_down_delay": round(60 * job.traffic.idle_minutes)},
        }
    else:
        service["replicas"] = job.traffic.least
    return {".dstack.yml": yaml_text(f"dstack: {job.artifact} behind vLLM. `dstack apply` in this folder.", service)}


def commands(job: ServingJob) -> Steps:
    ask = chat_call('"$DSTACK_GATEWAY/v1/chat/completions"', "Bearer $DSTACK_TOKEN")
    first = "Deploy it; it shows the offers with their prices first and asks"
    second = "Ask it; `dstack apply` reports the address, `$DSTACK_TOKEN` is yours for dstack's server"
    return steps("dstack apply -f .dstack.yml", ask, f"dstack stop {job.name}", up_words=first, ask_words=second)


GPUS = {
    "t4": "T4", "l4": "L4", "a10g": "A10G", "a10": "A10", "rtx3090": "RTX3090", "rtx4090": "RTX4090",
    "rtx5090": "RTX5090", "a5000": "A5000", "a6000": "A6000", "l40s": "L40S", "a100-40gb": "A100",
    "a100-80gb": "A100", "h100-pcie": "H100", "h100-sxm": "H100", "h200": "H200", "b200": "B200", "mi300x": "MI300X",
}  # fmt: skip

HOST = Host(
    title="dstack",
    forms=("merged", "adapter"),
    source="the dstack package's ServiceConfiguration, read on 2026-11-27",
    checked="dstack's own strict records accept .dstack.yml.",
    unchecked="that a backend has the card, the prices.",
    limits=("Scaling to several replicas needs a gateway.",),
    gpus=GPUS,
    providers=("AWS us-east-1", "Lambda", "Nebius", "RunPod Secure", "RunPod Community", "Vast.ai", "Verda", "Vultr"),
    variables=("HF_TOKEN",),
    secrets=(HF_SECRET,),
)
