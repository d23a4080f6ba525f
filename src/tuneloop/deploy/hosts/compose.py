"""Docker Compose: the engine on a machine of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuneloop.deploy.deployment import LLAMA_IMAGE, VLLM_IMAGE, ServingJob, chat_call, llama_command, vllm_command
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.hosts.kubernetes import CARDS
from tuneloop.deploy.project_text import yaml_text
from tuneloop.models.files import is_gated

INSIDE = "/models"  # where the container has the artifact's folder


def project(job: ServingJob) -> dict[str, str]:
    gguf, local = job.form == "gguf", not job.repo
    job = replace(job, repo=job.repo or INSIDE)
    pulls = not gguf and (job.form == "adapter" or not local)  # its base at least comes from the hub
    gated = job.form == "adapter" and is_gated(job.base)
    # A `tuneloop serve` in front loads adapters under the hash of their content, by their folder on its machine.
    loads = job.form == "adapter" and job.priorities
    artifact = "${ARTIFACT:?the folder of the artifact}"
    mounts = [f"{artifact}:{INSIDE}:ro"] if local else []
    mounts += [f"{artifact}:${{ARTIFACT}}:ro"] if loads else []
    gpus = {"driver": "nvidia", "count": "all" if gguf else job.cards, "capabilities": ["gpu"]}
    port = "127.0.0.1:${PORT:-8000}:8000"
    engine: dict[str, Any] = {
        "image": LLAMA_IMAGE if gguf else VLLM_IMAGE,
        "command": llama_command(job, INSIDE)[1:] if gguf else vllm_command(job)[2:], "ports": [port],
        "restart": "unless-stopped", "stop_grace_period": "2m",
        "environment": {"LLAMA_API_KEY" if gguf else "VLLM_API_KEY": "${API_KEY:?set API_KEY in .env}"},
        "volumes": mounts + (["huggingface:/root/.cache/huggingface"] if pulls else []),
        "deploy": {"resources": {"reservations": {"devices": [gpus]}}},
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", "http://localhost:8000/health"],
            "interval": "15s", "timeout": "5s", "retries": 3, "start_period": "30m",
        },
    }  # fmt: skip
    if not gguf:
        engine["ipc"] = "host"  # vLLM's processes share memory
    if loads:
        engine["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "true"
    if gated or (pulls and not local):  # what was pushed to the hub may be private
        engine["environment"]["HF_TOKEN"] = "${HF_TOKEN:?set HF_TOKEN in .env}" if gated else "${HF_TOKEN:-}"
    composed: dict[str, Any] = {"name": job.name, "services": {"engine": engine}}
    if pulls:
        composed["volumes"] = {"huggingface": {}}
    token = ["HF_TOKEN="] if gated else ["# HF_TOKEN=   where the repository is private"] if pulls and not local else []
    names = ["API_KEY=", *token, *(["ARTIFACT="] if local or loads else []), "PORT=8000"]
    return {
        "compose.yaml": yaml_text(f"Docker Compose: {job.artifact}. `docker compose up -d`.", composed),
        ".env.example": "\n".join(["# Copy this to .env and fill it in; .env belongs in no repository.", *names, ""]),
        ".gitignore": ".env\n",
    }


def commands(job: ServingJob) -> Steps:
    ask = "set -a; . ./.env; set +a\n" + chat_call("localhost:$PORT/v1/chat/completions", "Bearer $API_KEY")
    up = "cp -n .env.example .env   # and fill it in\ndocker compose up -d --wait"
    return steps(up, ask, "docker compose down")


HOST = Host(
    title="Docker Compose",
    forms=("gguf", "merged", "adapter"),
    source="https://github.com/compose-spec/compose-spec, schema/compose-spec.json, read on 2026-11-27",
    unchecked="that the images start on your machine.",
    limits=(
        "Without --hub the artifact's folder on that machine is mounted; with --priorities an adapter's always is, by "
        "its absolute path, where `tuneloop serve` in front has vLLM load it.",
        "The port is open to this machine alone; put a proxy with TLS in front to open it.",
    ),
    gpus={key: key for key in CARDS},
    own_machines=True,
    pulls=False,
    secrets=(
        ("API_KEY", "in .env, the key that callers send; `openssl rand -hex 24` makes one"),
        ("HF_TOKEN", "in .env, reads a gated base or a private repository from the hub"),
    ),
)
