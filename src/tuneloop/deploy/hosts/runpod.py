"""RunPod Serverless: the vLLM worker."""

from __future__ import annotations

import json

from tuneloop.deploy.deployment import ServingJob, chat_call, engine_arguments
from tuneloop.deploy.hosts import Host, Steps, steps

IMAGE = "runpod/worker-v1-vllm:v2.23.0"


def worker_environment(job: ServingJob) -> dict[str, str]:
    """The worker's variables: each option of `vllm serve` in capitals (worker-vllm, docs/configuration.md)."""
    exceptions = {"served-model-name": "OPENAI_SERVED_MODEL_NAME_OVERRIDE"}
    options = engine_arguments(job)
    options.pop("generation-config")  # not in the worker's list
    texts = {name: "true" if value is True else str(value) for name, value in options.items()}
    variables = {exceptions.get(name, name.replace("-", "_").upper()): text for name, text in texts.items()}
    return {"MODEL_NAME": job.model, **variables, "MAX_CONCURRENCY": "32"}


def project(job: ServingJob) -> dict[str, str]:
    template = {
        "name": job.name, "imageName": IMAGE, "isServerless": True, "containerDiskInGb": 30,
        "env": {**worker_environment(job), "HF_TOKEN": "{{ RUNPOD_SECRET_hf_token }}"},
    }  # fmt: skip
    gpu = GPUS[job.machine.card.key] if job.machine else ""
    endpoint = {
        "name": job.name, "templateId": "TEMPLATE_ID", "gpuTypeIds": [gpu], "gpuCount": job.cards,
        "workersMin": job.traffic.least, "workersMax": job.traffic.most,
        "idleTimeout": round(60 * job.traffic.idle_minutes), "scalerType": "QUEUE_DELAY", "scalerValue": 4,
        "flashboot": True,
    }  # fmt: skip
    files = {"template.json": template, "endpoint.json": endpoint}
    return {**{name: json.dumps(values, indent=2) + "\n" for name, values in files.items()}, "deploy.sh": _SCRIPT}


_SCRIPT = """#!/usr/bin/env bash
# Creates the template and the endpoint; what was created is deleted again when the second step fails.
set -euo pipefail
cd "$(dirname "$0")"
: "${RUNPOD_API_KEY:?set it first: https://console.runpod.io/user/settings}"
api=${RUNPOD_API:-https://rest.runpod.io/v1}
send() {
  curl --fail-with-body -sS --retry 4 -X "$1" "$api/$2" -H "Authorization: Bearer $RUNPOD_API_KEY" \\
    -H "Content-Type: application/json" "${@:3}"
}
create() {  # prints the id of what it made, or what the server said
  local answer=$(mktemp)  # a busy server gets the request again; only the last answer stays in a file
  send POST "$1" --data "$2" -o "$answer" || { cat "$answer" >&2; return 1; }
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["id"])' "$answer"
}
template=$(create templates @template.json)
if ! endpoint=$(create endpoints "$(sed "s/TEMPLATE_ID/$template/" endpoint.json)"); then
  send DELETE "templates/$template" && echo "the template was deleted again: nothing was left behind" >&2
  exit 1
fi
printf '{"template": "%s", "endpoint": "%s"}\\n' "$template" "$endpoint" | tee created.json
"""


def commands(job: ServingJob) -> Steps:
    endpoint = """ENDPOINT_ID=$(python3 -c 'import json; print(json.load(open("created.json"))["endpoint"])')"""
    url, key = '"https://api.runpod.ai/v2/$ENDPOINT_ID/openai/v1/chat/completions"', "Bearer $RUNPOD_API_KEY"
    down = f'curl -X DELETE "https://rest.runpod.io/v1/endpoints/$ENDPOINT_ID" -H "Authorization: {key}"'
    words = "Store the Hugging Face token as the secret `hf_token` in RunPod's console, then create the endpoint"
    ask, down = (f"{endpoint}\n{command}" for command in (chat_call(url, key), down))
    return steps("bash deploy.sh", ask, down, up_words=words)


GPUS = {
    "l4": "NVIDIA L4", "a5000": "NVIDIA RTX A5000", "rtx3090": "NVIDIA GeForce RTX 3090", "a6000": "NVIDIA RTX A6000",
    "rtx4090": "NVIDIA GeForce RTX 4090", "rtx5090": "NVIDIA GeForce RTX 5090", "l40": "NVIDIA L40",
    "rtx6000-ada": "NVIDIA RTX 6000 Ada Generation", "a40": "NVIDIA A40", "l40s": "NVIDIA L40S",
    "a100-80gb": "NVIDIA A100-SXM4-80GB",
    "h100-pcie": "NVIDIA H100 PCIe", "h100-sxm": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200", "b200": "NVIDIA B200",
}  # fmt: skip

HOST = Host(
    title="RunPod Serverless",
    forms=("merged", "adapter"),
    source="https://github.com/runpod-workers/worker-vllm/blob/main/docs/configuration.md and "
    "https://rest.runpod.io/v1/docs, read on 2026-11-27",
    checked="Each variable is an option of the worker or its wrapper; deploy.sh runs against a stand-in, also busy.",
    unchecked="that a worker starts, the image's tag, the prices.",
    limits=("The first request after a pause waits until a worker has loaded the model.",),
    gpus=GPUS,
    providers=("RunPod Serverless", "RunPod Secure"),
    variables=("RUNPOD_API_KEY",),
    secrets=(("RUNPOD_API_KEY", "in your shell"), ("hf_token", "in RunPod, reads the model and a gated base")),
)
