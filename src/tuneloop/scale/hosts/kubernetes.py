"""Kubernetes: a Deployment and a Service, vLLM or llama.cpp."""

from __future__ import annotations

from typing import Any

from tuneloop.scale.deployment import LLAMA_IMAGE, VLLM_IMAGE, Deployment, llama_command, vllm_command
from tuneloop.scale.hosts import Host
from tuneloop.scale.text import yaml_text


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
    """`service.yaml`: the claim of a disk for weights, the Deployment and its Service."""
    labels = {"app.kubernetes.io/name": job.name, "app.kubernetes.io/managed-by": "tuneloop"}
    meta = {"name": job.name, "labels": labels, "annotations": {"tuneloop/artifact": job.artifact}}
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {**meta, "name": f"{job.name}-models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{disk_gib(job)}Gi"}}},
    }  # fmt: skip
    volumes: list[dict[str, Any]] = [{"name": "models", "persistentVolumeClaim": {"claimName": f"{job.name}-models"}}]
    if job.form != "gguf":
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}})
    pod = {"containers": [container(job)], "volumes": volumes, "terminationGracePeriodSeconds": 120}
    spec = {
        "replicas": max(job.traffic.least, 1),
        "strategy": {
            "type": "Recreate"
        },  # the disk can be mounted once, and two replicas rarely find GPUs at the same time
        "selector": {"matchLabels": {"app.kubernetes.io/name": job.name}},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": {"app.kubernetes.io/name": job.name}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }  # fmt: skip
    return {
        "service.yaml": yaml_text(
            f"Kubernetes: {job.artifact}. `kubectl apply -f service.yaml`.", claim, deployment, service
        )
    }


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
    source="https://kubernetes.io/docs/reference/kubernetes-api/ (by kubernetes-validate), https://docs.vllm.ai",
    as_of="2026-11-27",
    checked="kubernetes-validate accepts service.yaml in its strict mode.",
    unchecked="that a node has the GPUs and the storage class, the prices.",
    limits=("The nodes need NVIDIA's device plugin.",),
    gpus={key: key for key in CARDS},
    own=True,
    secrets=(
        ("HF_TOKEN", "in your shell, reads the model and a gated base; not for a GGUF file"),
        ("API_KEY", "in your shell, which callers send: `export API_KEY=$(openssl rand -hex 24)`"),
    ),
)
