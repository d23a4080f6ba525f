"""Hugging Face Inference Endpoints: vLLM's image on a machine of their own."""

from __future__ import annotations

import json
from typing import Any

from tuneloop.scale.deployment import VLLM_IMAGE, Deployment, command_line, engine_arguments
from tuneloop.scale.hosts import Host


def endpoint(job: Deployment) -> dict[str, Any]:
    """Arguments of `huggingface_hub.create_inference_endpoint`; the token is added when it is sent."""
    instance = INSTANCES[job.machine.card.key] if job.machine else "nvidia-l4"
    return {
        "name": job.name[:32].rstrip("-"),
        "repository": job.repo,
        "framework": "custom",
        "task": "text-generation",
        "accelerator": "gpu",
        "vendor": "aws",
        "region": "us-east-1",
        "type": "authenticated",
        "instance_type": instance,
        "instance_size": f"x{job.cards}",
        "min_replica": job.traffic.least,
        "max_replica": max(job.traffic.most, 1),
        "scale_to_zero_timeout": max(15, round(job.traffic.idle_minutes)) if not job.traffic.least else None,
        "custom_image": {"url": VLLM_IMAGE, "health_route": "/health", "port": 8000},
        "container_args": [
            "--model",
            job.base if job.form == "adapter" else "/repository",
            *command_line(_options(job)),
        ],
    }


def _options(job: Deployment) -> dict[str, str | int | float | bool]:
    """The repository is there already, in /repository."""
    options = engine_arguments(job)
    return options | ({"lora-modules": f"{job.name}=/repository"} if job.form == "adapter" else {})


def project(job: Deployment) -> dict[str, str]:
    """The endpoint's description, and a script that creates it."""
    return {
        "endpoint.json": json.dumps(endpoint(job), indent=2) + "\n",
        "deploy.py": '''"""Creates the endpoint of endpoint.json; HF_TOKEN has to be one that may write endpoints."""

import json
import os
from pathlib import Path

from huggingface_hub import create_inference_endpoint

values = json.loads(Path(__file__).with_name("endpoint.json").read_text())
endpoint = create_inference_endpoint(**values, secrets={"HF_TOKEN": os.environ["HF_TOKEN"]}, token=os.environ["HF_TOKEN"])
print(endpoint.name, endpoint.status, endpoint.url or "(its address is known when it runs)")
''',
    }


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    """Up, ask, down."""
    name = job.name[:32].rstrip("-")
    ask = (
        'curl "$ENDPOINT_URL/v1/chat/completions" -H "Authorization: Bearer $HF_TOKEN" -H "Content-Type: application/json" '
        f'-d \'{{"model": "{job.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    down = f"python -c 'from huggingface_hub import get_inference_endpoint as e; e(\"{name}\").delete()'"
    return ("python deploy.py", "Put it up"), (ask, "Ask it"), (down, "Take it down")


INSTANCES = {
    "t4": "nvidia-t4", "l4": "nvidia-l4", "a10g": "nvidia-a10g", "l40s": "nvidia-l40s", "a100-80gb": "nvidia-a100",
    "h100-sxm": "nvidia-h100", "h200": "nvidia-h200",
}  # fmt: skip

HOST = Host(
    name="huggingface",
    title="Hugging Face Inference Endpoints",
    forms=("merged", "adapter"),
    project=project,
    commands=commands,
    source="huggingface_hub's create_inference_endpoint",
    as_of="2026-11-27",
    checked="endpoint.json fits the signature of the installed huggingface_hub.",
    unchecked="that vendor, region and instance go together (list_inference_endpoints_hardware tells), the prices.",
    gpus=INSTANCES,
    providers=("Hugging Face",),
    variables=("HF_TOKEN",),
    secrets=(("HF_TOKEN", "in your shell, reads the model and may write endpoints"),),
)
