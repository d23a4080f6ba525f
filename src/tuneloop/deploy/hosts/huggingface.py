"""Hugging Face Inference Endpoints: vLLM's image on a machine of their own."""

from __future__ import annotations

import json
from typing import Any

from tuneloop.deploy.deployment import VLLM_IMAGE, ServingJob, chat_call, command_line, engine_arguments
from tuneloop.deploy.hosts import Host, Steps, steps


def endpoint(job: ServingJob) -> dict[str, Any]:
    """Arguments of `huggingface_hub.create_inference_endpoint`; the token is added when it is sent."""
    instance = INSTANCES[job.machine.card.key] if job.machine else "nvidia-l4"
    adapter = job.form == "adapter"
    # The repository is there already, in /repository.
    here = {"tokenizer": "/repository", "lora-modules": f"{job.name}=/repository"} if adapter else {}
    options = engine_arguments(job) | here
    return {
        "name": job.name[:32].rstrip("-"), "repository": job.repo, "framework": "custom", "task": "text-generation",
        "accelerator": "gpu", "vendor": "aws", "region": "us-east-1", "type": "authenticated",
        "instance_type": instance, "instance_size": f"x{job.cards}", "min_replica": job.traffic.least,
        "max_replica": job.traffic.most,
        "scale_to_zero_timeout": max(15, round(job.traffic.idle_minutes)) if not job.traffic.least else None,
        "custom_image": {"url": VLLM_IMAGE, "health_route": "/health", "port": 8000},
        "container_args": ["--model", job.base if adapter else "/repository", *command_line(options)],
    }  # fmt: skip


def project(job: ServingJob) -> dict[str, str]:
    return {
        "endpoint.json": json.dumps(endpoint(job), indent=2) + "\n",
        "deploy.py": '''"""Creates the endpoint of endpoint.json; HF_TOKEN has to be one that may write endpoints."""

import json
import os
import sys
import time
from pathlib import Path

from huggingface_hub import create_inference_endpoint, delete_inference_endpoint, get_inference_endpoint
from huggingface_hub.errors import HfHubHTTPError

values = json.loads(Path(__file__).with_name("endpoint.json").read_text())
token = os.environ["HF_TOKEN"]


def create():
    for pause in (1, 4, 16, None):  # a busy server gets the request again
        try:
            return create_inference_endpoint(**values, secrets={"HF_TOKEN": token}, token=token)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if pause is None or status not in (429, 500, 502, 503, 504):
                raise
            print(f"busy ({status}): again in {pause} s", file=sys.stderr)
            time.sleep(pause * float(os.environ.get("PAUSE", 1)))
            if left := existing():  # it was made although the answer was lost
                return left


def existing():
    try:
        return get_inference_endpoint(values["name"], token=token)
    except HfHubHTTPError:
        return None


if existing():
    sys.exit(f"there is an endpoint {values['name']} already: delete it, or deploy with another --name")
try:
    endpoint = create()
except BaseException as error:
    left = existing()
    if left:
        delete_inference_endpoint(values["name"], token=token)
        print("the endpoint was deleted again:", end=" ", file=sys.stderr)
    print("nothing was left behind", file=sys.stderr)
    sys.exit(f"refused: {getattr(error, 'server_message', None) or error}")
print(endpoint.name, endpoint.status, endpoint.url or "(its address is known when it runs)")
''',
    }


def commands(job: ServingJob) -> Steps:
    name = job.name[:32].rstrip("-")
    ask = chat_call('"$ENDPOINT_URL/v1/chat/completions"', "Bearer $HF_TOKEN")
    down = f"python -c 'from huggingface_hub import get_inference_endpoint as e; e(\"{name}\").delete()'"
    second = "Ask it; the address is in what deploy.py prints, or on the endpoint's page once it runs"
    return steps("python deploy.py", ask, down, ask_words=second)


INSTANCES = {
    "t4": "nvidia-t4", "l4": "nvidia-l4", "a10g": "nvidia-a10g", "l40s": "nvidia-l40s", "a100-80gb": "nvidia-a100",
    "h100-sxm": "nvidia-h100", "h200": "nvidia-h200",
}  # fmt: skip

HOST = Host(
    title="Hugging Face Inference Endpoints",
    forms=("merged", "adapter"),
    source="huggingface_hub's create_inference_endpoint, read on 2026-11-27",
    unchecked="that vendor, region and instance go together (list_inference_endpoints_hardware tells), the prices.",
    gpus=INSTANCES,
    providers=("Hugging Face",),
    variables=("HF_TOKEN",),
    secrets=(("HF_TOKEN", "in your shell, reads the model and may write endpoints"),),
)
