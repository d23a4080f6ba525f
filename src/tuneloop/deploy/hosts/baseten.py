"""Baseten: a Truss with vLLM's own server."""

from __future__ import annotations

from tuneloop.deploy.deployment import VLLM_IMAGE, ServingJob, chat_call, first_request, vllm_command
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.project_text import shell, yaml_text


def project(job: ServingJob) -> dict[str, str]:
    gpu = GPUS[job.machine.card.key] if job.machine else "L4"
    config = {
        "model_name": job.name,
        "model_metadata": {"example_model_input": first_request(job, job.name), "tags": ["openai-compatible"]},
        "base_image": {"image": VLLM_IMAGE},
        "docker_server": {
            "start_command": shell(vllm_command(job)), "readiness_endpoint": "/health", "liveness_endpoint": "/health",
            "predict_endpoint": "/v1/chat/completions", "server_port": 8000,
        },
        "resources": {"accelerator": f"{gpu}:{job.cards}" if job.cards > 1 else gpu},
        "runtime": {"predict_concurrency": 32, "health_checks": {"startup_threshold_seconds": 1800}},
        "secrets": {"hf_access_token": None},
        "environment_variables": {"HF_TOKEN_PATH": "/secrets/hf_access_token"},  # where huggingface_hub reads it
    }  # fmt: skip
    return {"config.yaml": yaml_text(f"A Truss: {job.artifact} behind vLLM. `truss push` in this folder.", config)}


def commands(job: ServingJob) -> Steps:
    url = '"https://model-$MODEL_ID.api.baseten.co/environments/production/sync/v1/chat/completions"'
    ask = chat_call(url, "Api-Key $BASETEN_API_KEY")
    down = 'curl -X DELETE "https://api.baseten.co/v1/models/$MODEL_ID" -H "Authorization: Api-Key $BASETEN_API_KEY"'
    first = "Store `hf_access_token` among Baseten's secrets, then deploy it"
    second = "Ask it; `truss push` reports the model's id"
    return steps("truss push --publish", ask, down, up_words=first, ask_words=second)


GPUS = {"t4": "T4", "l4": "L4", "a10g": "A10G", "a100-80gb": "A100", "h100-sxm": "H100", "h200": "H200", "b200": "B200"}

HOST = Host(
    title="Baseten",
    forms=("merged", "adapter"),
    source="https://docs.baseten.co/reference/truss-configuration and the truss package, read on 2026-11-27",
    unchecked="that the image starts there, the prices.",
    limits=("How many replicas there are is set in Baseten's console or by its API after the first push.",),
    gpus=GPUS,
    providers=("Baseten",),
    variables=("BASETEN_API_KEY",),
    secrets=(("hf_access_token", "in Baseten, reads the model and a gated base"), ("BASETEN_API_KEY", "in your shell")),
)
