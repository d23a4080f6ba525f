"""Kubernetes: a Deployment and a Service, vLLM or llama.cpp; an InferencePool before several replicas."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import LLAMA_IMAGE, VLLM_IMAGE, Deployment, llama_command, vllm_command
from tuneloop.deploy.hosts import Host
from tuneloop.deploy.inference_pool import GATEWAY, pool_file
from tuneloop.deploy.project_text import yaml_text


def container(job: Deployment) -> dict[str, Any]:
    """The container of the engine, with probes, secrets by name and the GPUs it asks for."""
    gguf = job.form == "gguf"
    command = llama_command(job, "/models") if gguf else vllm_command(job)
    probe = {"path": "/health", "port": "http"}
    secrets = {"HF_TOKEN": ("huggingface", "token")} if not gguf else {}
    secrets |= {"LLAMA_API_KEY" if gguf else "VLLM_API_KEY": (f"{job.name}-key", "key")}
    env = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in secrets.items()
    ]
    return {
        "name": "engine",
        "image": LLAMA_IMAGE if gguf else VLLM_IMAGE,
        "command": ["/app/llama-server", *command[1:]] if gguf else command,
        "ports": [{"name": "http", "containerPort": 8000}],
        "env": env,
        "startupProbe": {"httpGet": probe, "periodSeconds": 10, "failureThreshold": 180},
        "readinessProbe": {"httpGet": probe, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {"httpGet": probe, "periodSeconds": 15, "failureThreshold": 4},
        "resources": {"limits": {"nvidia.com/gpu": job.cards}, "requests": {"cpu": "4", "memory": "16Gi"}},
        "volumeMounts": [{"name": "models", "mountPath": "/models" if gguf else "/root/.cache/huggingface"}]
        + ([] if gguf else [{"name": "shm", "mountPath": "/dev/shm"}]),
    }


def project(job: Deployment) -> dict[str, str]:
    """`service.yaml`: the claim of a disk for weights, the Deployment, its Service and autoscaler; `pool.yaml`."""
    labels = {"app.kubernetes.io/name": job.name, "app.kubernetes.io/managed-by": "tuneloop"}
    meta = {"name": job.name, "labels": labels, "annotations": {"tuneloop/artifact": job.artifact}}
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {**meta, "name": f"{job.name}-models"},
        "spec": {
            "accessModes": ["ReadWriteMany" if job.traffic.most > 1 else "ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{disk_gib(job)}Gi"}},
        },
    }  # fmt: skip
    volumes: list[dict[str, Any]] = [{"name": "models", "persistentVolumeClaim": {"claimName": f"{job.name}-models"}}]
    if job.form != "gguf":
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
    pod = {"containers": [container(job)], "volumes": volumes, "terminationGracePeriodSeconds": 120}
    spec = {
        # With an autoscaler the number is its own: a second `kubectl apply` must not set it back.
        **({} if _scales(job) else {"replicas": max(job.traffic.least, 1)}),
        "strategy": {"type": "Recreate"},  # an old replica and a new one rarely find GPUs at the same time
        "selector": {"matchLabels": {"app.kubernetes.io/name": job.name}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": {"app.kubernetes.io/name": job.name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }  # fmt: skip
    what = f"Kubernetes: {job.artifact}. `kubectl apply -f service.yaml`."
    scaler = [_autoscaler(job, meta)] if _scales(job) else []
    files = {"service.yaml": yaml_text(what, claim, deployment, service, *scaler)}
    return files if job.form == "gguf" else {**files, "pool.yaml": pool_file(job)}


def _scales(job: Deployment) -> bool:
    """Whether replicas come and go; llama.cpp's server names no queue that one could go by."""
    return job.form != "gguf" and job.traffic.most > max(job.traffic.least, 1)


def _autoscaler(job: Deployment, meta: dict[str, Any]) -> dict[str, Any]:
    """Another replica where more than four requests wait for each, on average; a replica less after the idle minutes."""
    metric = {
        "type": "Pods",
        "pods": {"metric": {"name": QUEUE}, "target": {"type": "AverageValue", "averageValue": "4"}},
    }
    quiet = min(round(60 * job.traffic.idle_minutes), 3600)  # the API takes an hour at most
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": job.name},
            "minReplicas": max(job.traffic.least, 1), "maxReplicas": job.traffic.most, "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": quiet}},
        },
    }  # fmt: skip


# vLLM's `vllm:num_requests_waiting`, as Prometheus' adapter names it: a resource's metric has no colon.
QUEUE = "vllm_num_requests_waiting"


def disk_gib(job: Deployment) -> int:
    """GiB of the disk for weights: twice what they take, 20 at least."""
    return max(20, round(2 * job.size.weights_gib))


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    """Up, ask, down."""
    key = f"kubectl create secret generic {job.name}-key --from-literal=key=$API_KEY"
    up = f"kubectl create secret generic huggingface --from-literal=token=$HF_TOKEN\n{key}\nkubectl apply -f service.yaml"
    what = "Keep the secrets, and put it up"
    if job.form == "gguf":
        copy = f"# Copy {job.file} onto the disk {job.name}-models with a pod of yours that mounts it, then:"
        up, what = (
            f"{key}\n{copy}\nkubectl apply -f service.yaml",
            "Keep the key, put the file on the disk, and put it up",
        )
    ask = (
        f"kubectl port-forward service/{job.name} 8000:80 &\n"
        'curl localhost:8000/v1/chat/completions -H "Authorization: Bearer $API_KEY" -H "Content-Type: application/json" '
        "-d @request.json"
    )
    return (up, what), (ask, "Ask it"), ("kubectl delete -f service.yaml", "Take it down, with its disk")


# Cards that clusters and own machines usually have.
CARDS = (
    "t4",
    "l4",
    "a10g",
    "rtx3090",
    "rtx4090",
    "rtx5090",
    "l40s",
    "a100-40gb",
    "a100-80gb",
    "h100-sxm",
    "h200",
    "b200",
)

HOST = Host(
    name="kubernetes",
    title="Kubernetes",
    forms=("merged", "adapter", "gguf"),
    project=project,
    commands=commands,
    source="https://kubernetes.io/docs/reference/kubernetes-api/ (by kubernetes-validate), https://docs.vllm.ai, "
    "https://github.com/kubernetes-sigs/gateway-api-inference-extension, https://github.com/llm-d/llm-d-router",
    as_of="2026-11-27",
    checked="kubernetes-validate accepts service.yaml and pool.yaml in its strict mode, the definitions (CRDs) of InferencePool "
    "v1.6.0 and of the Gateway API v1.6.1 their resources, unknown fields refused.",
    unchecked="that a node has the GPUs and the storage class, that the endpoint picker's image starts, the prices.",
    limits=(
        "The nodes need NVIDIA's device plugin.",
        "Several replicas (--max-replicas) share the disk: its storage class has to offer ReadWriteMany. They come and go with "
        f"vLLM's queue, for which Prometheus' adapter has to give `vllm:num_requests_waiting` the name `{QUEUE}`; with a GGUF "
        "file their number stays that of --min-replicas.",
        "`pool.yaml` (not for a GGUF file) puts an InferencePool before the replicas, which sends a request where its adapter and "
        "its prefix are loaded. It needs a gateway that knows the Gateway API Inference Extension, named "
        f"`{GATEWAY}`, and that extension's definitions: `kubectl apply -f pool.yaml`, and ask the gateway's address. A further "
        "adapter of the same base is another NAME=REPO behind --lora-modules in service.yaml; it is asked for by its NAME.",
    ),
    gpus={key: key for key in CARDS},
    own=True,
    secrets=(
        ("HF_TOKEN", "in your shell, reads the model and a gated base"),
        ("API_KEY", "in your shell, the key that callers send: `export API_KEY=$(openssl rand -hex 24)`"),
    ),
)
