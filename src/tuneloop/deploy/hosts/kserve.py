"""KServe: an InferenceService with its Hugging Face runtime, which is vLLM."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import Deployment, chat_call, command_line, engine_arguments
from tuneloop.deploy.hosts import HF_SECRET, Host
from tuneloop.deploy.hosts.kubernetes import CARDS
from tuneloop.deploy.project_text import yaml_text


def project(job: Deployment) -> dict[str, str]:
    options = engine_arguments(job)
    options.pop("served-model-name")
    name = "base" if job.form == "adapter" else job.name
    model: dict[str, Any] = {
        "modelFormat": {"name": "huggingface"},
        "args": [f"--model_name={name}", f"--model_id={job.model}", *command_line(options)],
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface", "key": "token"}}}],
        "resources": {
            "limits": {"cpu": "6", "memory": "24Gi", "nvidia.com/gpu": str(job.cards)},
            "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": str(job.cards)},
        },
    }
    predictor = {"minReplicas": job.traffic.least, "maxReplicas": max(job.traffic.most, 1), "model": model}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": job.name, "annotations": {"tuneloop/artifact": job.artifact}}, "spec": {"predictor": predictor},
    }  # fmt: skip
    what = f"KServe: {job.artifact}. `kubectl apply -f inference-service.yaml`."
    return {"inference-service.yaml": yaml_text(what, service)}


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    up = "kubectl create secret generic huggingface --from-literal=token=$HF_TOKEN\nkubectl apply -f inference-service.yaml"
    ask = f"URL=$(kubectl get inferenceservice {job.name} -o jsonpath='{{.status.url}}')\n"
    ask += chat_call('"$URL/openai/v1/chat/completions"')
    return (
        (up, "Keep the secret, and put it up"),
        (ask, "Ask it"),
        ("kubectl delete -f inference-service.yaml", "Take it down"),
    )


HOST = Host(
    name="kserve", title="KServe", forms=("merged", "adapter"), project=project, commands=commands,
    source="https://github.com/kserve/kserve, config/crd/full/serving.kserve.io_inferenceservices.yaml",
    as_of="2026-11-27", checked="KServe's own resource definition (CRD) accepts it, unknown fields refused.",
    unchecked="that your cluster's runtime is new enough for the options, the prices.",
    gpus={key: key for key in CARDS}, own=True,
    limits=("Who may ask is settled by your gateway: KServe has no keys of its own.",), variables=("HF_TOKEN",),
    secrets=(HF_SECRET,),
)  # fmt: skip
