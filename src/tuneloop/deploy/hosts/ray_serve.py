"""Ray Serve LLM: vLLM replicas on a Ray cluster."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import ServingJob, chat_call, engine_arguments
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.project_text import yaml_text

BY_RAY = ("served-model-name", "lora-modules")


def project(job: ServingJob) -> dict[str, str]:
    options = engine_arguments(job)
    tokenizer = options.pop("tokenizer", job.model)
    engine = {key.replace("-", "_"): value for key, value in options.items() if key not in BY_RAY}
    name = "base" if job.form == "adapter" else job.name
    replicas = {"min_replicas": job.traffic.least, "max_replicas": job.traffic.most}
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": name, "model_source": job.model, "tokenizer_source": tokenizer},
        "engine_kwargs": engine,
        "deployment_config": {"autoscaling_config": replicas, "max_ongoing_requests": 64},
    }  # fmt: skip
    if job.machine:
        config["accelerator_type"] = TYPES[job.machine.card.key]
    if job.form == "adapter":
        # Ray reads adapters from FOLDER/ADAPTER_ID, so the artifact has to be there.
        path = "s3://YOUR_BUCKET/adapters"
        config["lora_config"] = {"dynamic_lora_loading_path": path, "max_num_adapters_per_replica": 16}
    app = {
        "name": job.name, "import_path": "ray.serve.llm:build_openai_app", "route_prefix": "/",
        "args": {"llm_configs": [config]}, "runtime_env": {"env_vars": {"HF_HUB_ENABLE_HF_TRANSFER": "0"}},
    }  # fmt: skip
    what = f"Ray Serve LLM: {job.artifact}. `serve deploy serve.yaml`."
    return {"serve.yaml": yaml_text(what, {"http_options": {"host": "0.0.0.0", "port": 8000}, "applications": [app]})}


def commands(job: ServingJob) -> Steps:
    note = "   # RAY_DASHBOARD_ADDRESS names the cluster; set HF_TOKEN on its nodes"
    up = f"pip install 'ray[serve,llm]'\nserve deploy serve.yaml{note}"
    if job.form == "adapter":
        up = f'aws s3 cp --recursive "$ARTIFACT" s3://YOUR_BUCKET/adapters/{job.name}\n{up}'
    ask = chat_call('"$RAY_SERVE_URL/v1/chat/completions"')
    return steps(up, ask, "serve shutdown", ask_words="Ask it; `$RAY_SERVE_URL` is port 8000 of the cluster's head")


# Ray's names of accelerators (ray.util.accelerators).
TYPES = {
    "t4": "T4", "v100-16gb": "V100", "v100-32gb": "V100", "l4": "L4", "a10g": "A10G", "l40s": "L40S",
    "a100-40gb": "A100-40G", "a100-80gb": "A100-80G", "h100-pcie": "H100", "h100-sxm": "H100",
    "h200": "H200", "b200": "B200",
}  # fmt: skip

HOST = Host(
    title="Ray Serve LLM",
    forms=("merged", "adapter"),
    source="https://docs.ray.io/en/latest/serve/llm/, read on 2026-11-27",
    checked="Ray Serve's own schema accepts serve.yaml; the application's arguments are by its documentation.",
    unchecked="that the cluster has such GPUs, the prices.",
    limits=("Ray asks for no key: put a gateway with keys in front, such as tuneloop serve.",),
    request_model=lambda job: f"base:{job.name}" if job.form == "adapter" else job.name,
    gpus=TYPES,
    own_machines=True,
)
