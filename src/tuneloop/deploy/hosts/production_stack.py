"""vLLM's production-stack: a Helm chart with a router, and a resource for each adapter."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import VLLM_IMAGE, ServingJob, chat_call, command_line, engine_arguments
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, callers_key, steps
from tuneloop.deploy.hosts.kubernetes import CARDS, KEEP_TOKEN, disk_gib
from tuneloop.deploy.project_text import yaml_text

BY_THE_CHART = ("max-model-len", "tensor-parallel-size", "dtype", "enable-lora", "lora-modules")
_BASE = "base"  # the chart's name of the model that adapters are loaded onto


def project(job: ServingJob) -> dict[str, str]:
    adapter = job.form == "adapter"
    options = {key: value for key, value in engine_arguments(job).items() if key not in BY_THE_CHART}
    repository, _, tag = VLLM_IMAGE.partition(":")
    engine: dict[str, Any] = {
        "name": _BASE if adapter else job.name, "repository": repository, "tag": tag, "modelURL": job.model,
        "replicaCount": max(job.traffic.least, 1), "requestCPU": 4, "requestMemory": "16Gi", "requestGPU": job.cards,
        "pvcStorage": f"{disk_gib(job)}Gi", "pvcAccessMode": ["ReadWriteOnce"],
        "vllmConfig": {
            "maxModelLen": job.context, "tensorParallelSize": job.cards, "dtype": "half" if job.half else "auto",
            "enablePrefixCaching": True,  # which vLLM does, but the chart forbids unless it is named
            "extraArgs": command_line(options),
        },
        "hf_token": {"secretName": "huggingface", "secretKey": "token"},
    }  # fmt: skip
    key = {"secretName": f"{job.name}-key", "secretKey": "key"}
    values: dict[str, Any] = {"servingEngineSpec": {"runtimeClassName": "", "vllmApiKey": key, "modelSpec": [engine]}}
    if not adapter:
        return {"values.yaml": yaml_text(f"Values of vllm/vllm-stack: {job.artifact}.", values)}
    engine |= {"enableLoRA": True, "env": [{"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "True"}]}
    values["loraController"] = {"enableLoraController": True}
    resource = {
        "apiVersion": "production-stack.vllm.ai/v1alpha1", "kind": "LoraAdapter",
        "metadata": {"name": job.name, "annotations": {"tuneloop/artifact": job.artifact}},
        "spec": {
            "baseModel": _BASE, "vllmApiKey": dict(key),
            "adapterSource": {
                "type": "huggingface", "adapterName": job.name, "repository": job.repo,
                "credentialsSecretRef": {"name": "huggingface", "key": "token"},
            },
            "loraAdapterDeploymentConfig": {"algorithm": "default", "replicas": max(job.traffic.least, 1)},
        },
    }  # fmt: skip
    what = f"The adapter {job.artifact}, loaded onto the base by the stack's controller."
    base = yaml_text(f"Values of vllm/vllm-stack: the base of {job.artifact}.", values)
    return {"values.yaml": base, "adapter.yaml": yaml_text(what, resource)}


def commands(job: ServingJob) -> Steps:
    lines = [
        "helm repo add vllm https://vllm-project.github.io/production-stack",
        KEEP_TOKEN,
        f"kubectl create secret generic {job.name}-key --from-literal=key=$API_KEY",
        f"helm install {job.name} vllm/vllm-stack -f values.yaml",
    ]
    if job.form == "adapter":
        lines.append("kubectl apply -f adapter.yaml")
    ask = f"kubectl port-forward service/{job.name}-router-service 8000:80 &\n"
    ask += chat_call("localhost:8000/v1/chat/completions", "Bearer $API_KEY")
    return steps("\n".join(lines), ask, f"helm uninstall {job.name}", up_words="Keep the secrets, and deploy it")


HOST = Host(
    title="vLLM production-stack",
    forms=("adapter", "merged"),
    source="github.com/vllm-project/production-stack, helm/values.schema.json and helm/crds, read on 2026-08-05",
    checked="The chart's own schema accepts values.yaml, and its CRD adapter.yaml, unknown fields refused.",
    unchecked="that the chart's images start, the prices.",
    gpus={key: key for key in CARDS},
    own_machines=True,
    secrets=(HF_SECRET, callers_key("API_KEY")),
)
