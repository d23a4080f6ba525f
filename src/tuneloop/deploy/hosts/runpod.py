"""RunPod Serverless: the vLLM worker."""

from __future__ import annotations

import json

from tuneloop.deploy.deployment import ServingJob, chat_call, engine_arguments, option_text
from tuneloop.deploy.hosts import Host, Steps, steps

IMAGE = "runpod/worker-v1-vllm:v2.23.0"


def worker_environment(job: ServingJob) -> dict[str, str]:
    """The worker's variables: each option of `vllm serve` in capitals (worker-vllm, docs/configuration.md)."""
    exceptions = {"served-model-name": "OPENAI_SERVED_MODEL_NAME_OVERRIDE"}
    options = engine_arguments(job)
    texts = {name: "true" if value is True else option_text(value) for name, value in options.items()}
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
# `deploy.sh down` deletes both. A request whose answer was lost may have been carried out all the same: what it creates
# is looked for before it is sent again.
set -euo pipefail
cd "$(dirname "$0")"
: "${RUNPOD_API_KEY:?set it first: https://console.runpod.io/user/settings}"
api=${RUNPOD_API:-https://rest.runpod.io/v1}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
send() {  # METHOD PATH [curl's options]: prints the status, 000 where there was no answer
  curl -sS -o "$answer" -w '%{http_code}' -X "$1" "$api/$2" -H "Authorization: Bearer $RUNPOD_API_KEY" \\
    -H "Content-Type: application/json" "${@:3}" || true
}
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
id_of() {  # KIND KEY VALUE: prints the id of the one that has it, or nothing
  for pause in 1 4 16 0; do
    if [ "$(send GET "$1")" = 200 ]; then
      python3 -c 'import json, sys
print(next((each["id"] for each in json.load(open(sys.argv[1])) if each.get(sys.argv[2]) == sys.argv[3]), ""))' \\
        "$answer" "$2" "$3"
      return
    fi
    sleep $pause
  done
  echo "the list of $1 can't be read: $(cat "$answer")" >&2
  return 1
}
create() {  # KIND KEY VALUE BODY: prints the id of what it made
  for pause in 1 4 16 0; do
    status=$(send POST "$1" --data "$4")
    case $status in
      2??) field "$answer" id; return ;;
      000 | 408 | 429 | 5??) echo "busy ($status): again in $pause s" >&2 ;;
      *) cat "$answer" >&2; return 1 ;;
    esac
    sleep $pause
    there=$(id_of "$1" "$2" "$3") || return 1
    if [ -n "$there" ]; then echo "$there"; return; fi
  done
  echo "still busy ($status)" >&2
  return 1
}
remove() {  # KIND ID
  case $(send DELETE "$1/$2") in 2?? | 404) ;; *) echo "left behind: $1/$2: $(cat "$answer")" >&2; return 1 ;; esac
}
if [ "${1:-}" = down ]; then
  remove endpoints "$(field created.json endpoint)"
  remove templates "$(field created.json template)"
  rm created.json
  exit
fi
name=$(field template.json name)
if [ -n "$(id_of "templates?includeEndpointBoundTemplates=true" name "$name")" ]; then
  echo "there is a template $name already: take it down, or deploy with another --name" >&2
  exit 1
fi
template=$(create templates name "$name" @template.json)
if ! endpoint=$(create endpoints templateId "$template" "$(sed "s/TEMPLATE_ID/$template/" endpoint.json)"); then
  remove templates "$template" && echo "the template was deleted again: nothing was left behind" >&2
  exit 1
fi
printf '{"template": "%s", "endpoint": "%s"}\\n' "$template" "$endpoint" | tee created.json
"""


def commands(job: ServingJob) -> Steps:
    endpoint = """ENDPOINT_ID=$(python3 -c 'import json; print(json.load(open("created.json"))["endpoint"])')"""
    url, key = '"https://api.runpod.ai/v2/$ENDPOINT_ID/openai/v1/chat/completions"', "Bearer $RUNPOD_API_KEY"
    description = "Store the Hugging Face token as the secret `hf_token` in RunPod's console, then create the endpoint"
    ask = f"{endpoint}\n{chat_call(url, key)}"
    down_words = "Take it down, with its template"
    return steps("bash deploy.sh", ask, "bash deploy.sh down", up_words=description, down_words=down_words)


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
    unchecked="that a worker starts, the image's tag, the prices.",
    limits=(
        "The first request after a pause waits until a worker has loaded the model, unless one is always on "
        "(--min-replicas 1).",
    ),
    least=0,
    gpus=GPUS,
    providers=("RunPod Serverless", "RunPod Secure"),
    variables=("RUNPOD_API_KEY",),
    secrets=(("RUNPOD_API_KEY", "in your shell"), ("hf_token", "in RunPod, reads the model and a gated base")),
)
