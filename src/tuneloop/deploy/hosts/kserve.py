"""KServe: an InferenceService with its Hugging Face runtime, which is vLLM."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import ServingJob, chat_call, command_line, engine_arguments
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, steps
from tuneloop.deploy.hosts.kubernetes import CARDS, KEEP_TOKEN
from tuneloop.deploy.project_text import yaml_text


def project(job: ServingJob) -> dict[str, str]:
    options = {"dtype": "bfloat16", **engine_arguments(job)}  # else KServe computes in float16
    options.pop("served-model-name")
    name = "base" if job.form == "adapter" else job.name
    gpus = {"nvidia.com/gpu": str(job.cards)}
    model: dict[str, Any] = {
        "modelFormat": {"name": "huggingface"},
        "args": [f"--model_name={name}", f"--model_id={job.model}", *command_line(options)],
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface", "key": "token"}}}],
        "resources": {
            "limits": {"cpu": "6", "memory": "24Gi", **gpus},
            "requests": {"cpu": "4", "memory": "16Gi", **gpus},
        },
    }
    predictor = {"minReplicas": job.traffic.least, "maxReplicas": job.traffic.most, "model": model}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": job.name, "annotations": {"tuneloop/artifact": job.artifact}},
        "spec": {"predictor": predictor},
    }  # fmt: skip
    what = f"KServe: {job.artifact}. `kubectl apply -f inference-service.yaml`."
    return {"inference-service.yaml": yaml_text(what, service)}


def commands(job: ServingJob) -> Steps:
    up = f"{KEEP_TOKEN}\nkubectl apply -f inference-service.yaml"
    ask = f"URL=$(kubectl get inferenceservice {job.name} -o jsonpath='{{.status.url}}')\n"
    ask += chat_call('"$URL/openai/v1/chat/completions"')
    return steps(up, ask, "kubectl delete -f inference-service.yaml", up_words="Keep the secret, and deploy it")


HOST = Host(
    title="KServe",
    forms=("merged", "adapter"),
    source="github.com/kserve/kserve, config/crd/full/serving.kserve.io_inferenceservices.yaml, read on 2026-11-27",
    checked="KServe's own resource definition (CRD) accepts it, unknown fields refused.",
    unchecked="that your cluster's runtime is new enough for the options, the prices.",
    gpus={key: key for key in CARDS},
    own_machines=True,
    limits=("Who may ask is settled by your gateway: KServe has no keys.",),
    variables=("HF_TOKEN",),
    secrets=(HF_SECRET,),
)
