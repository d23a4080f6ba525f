"""Kubernetes: a Deployment and a Service, vLLM or llama.cpp."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import LLAMA_IMAGE, VLLM_IMAGE, ServingJob, chat_call, llama_command, vllm_command
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, callers_key, steps
from tuneloop.deploy.project_text import yaml_text

KEEP_TOKEN = "kubectl create secret generic huggingface --from-literal=token=$HF_TOKEN"


def secret_variable(name: str, secret: str, key: str) -> dict[str, Any]:
    """A variable of a container's environment whose value is a key of a secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def container(job: ServingJob) -> dict[str, Any]:
    """The container of the engine, with probes, secrets by name and the GPUs it asks for."""
    gguf = job.form == "gguf"
    command = llama_command(job, "/models") if gguf else vllm_command(job)
    probe = {"path": "/health", "port": "http"}
    key = secret_variable("LLAMA_API_KEY" if gguf else "VLLM_API_KEY", f"{job.name}-key", "key")
    env = [key] if gguf else [secret_variable("HF_TOKEN", "huggingface", "token"), key]
    return {
        "name": "engine", "image": LLAMA_IMAGE if gguf else VLLM_IMAGE,
        "command": ["/app/llama-server", *command[1:]] if gguf else command,
        "ports": [{"name": "http", "containerPort": 8000}], "env": env,
        "startupProbe": {"httpGet": probe, "periodSeconds": 10, "failureThreshold": 180},
        "readinessProbe": {"httpGet": probe, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {"httpGet": probe, "periodSeconds": 15, "failureThreshold": 4},
        "resources": {"limits": {"nvidia.com/gpu": job.cards}, "requests": {"cpu": "4", "memory": "16Gi"}},
        "volumeMounts": [{"name": "models", "mountPath": "/models" if gguf else "/root/.cache/huggingface"}]
        + ([] if gguf else [{"name": "shm", "mountPath": "/dev/shm"}]),
    }  # fmt: skip


def project(job: ServingJob) -> dict[str, str]:
    selector = {"app.kubernetes.io/name": job.name}
    labels = {**selector, "app.kubernetes.io/managed-by": "tuneloop"}
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
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }  # fmt: skip
    comment = f"Kubernetes: {job.artifact}. `kubectl apply -f service.yaml`."
    scaler = [_autoscaler(job, meta)] if _scales(job) else []
    return {"service.yaml": yaml_text(comment, claim, deployment, service, *scaler)}


def _scales(job: ServingJob) -> bool:
    """Whether replicas come and go; llama.cpp's server names no queue that one could go by."""
    return job.form != "gguf" and job.traffic.most > max(job.traffic.least, 1)


def _autoscaler(job: ServingJob, meta: dict[str, Any]) -> dict[str, Any]:
    """Another replica where more than four requests wait for each, on average; one less after the idle minutes."""
    target = {"metric": {"name": QUEUE}, "target": {"type": "AverageValue", "averageValue": "4"}}
    quiet = min(round(60 * job.traffic.idle_minutes), 3600)  # the API takes an hour at most
    return {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": meta,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": job.name},
            "minReplicas": max(job.traffic.least, 1), "maxReplicas": job.traffic.most,
            "metrics": [{"type": "Pods", "pods": target}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": quiet}},
        },
    }  # fmt: skip


# vLLM's `vllm:num_requests_waiting`, as Prometheus' adapter names it: a resource's metric has no colon.
QUEUE = "vllm_num_requests_waiting"


def disk_gib(job: ServingJob) -> int:
    """GiB of the disk for weights: twice what they take, 20 at least."""
    return max(20, round(2 * job.size.weights_gib))


def commands(job: ServingJob) -> Steps:
    key = f"kubectl create secret generic {job.name}-key --from-literal=key=$API_KEY"
    up, description = f"{KEEP_TOKEN}\n{key}\nkubectl apply -f service.yaml", "Keep the secrets, and deploy it"
    if job.form == "gguf":
        copy = f"# Copy {job.file} onto the disk {job.name}-models with a pod of yours that mounts it, then:"
        up = f"{key}\n{copy}\nkubectl apply -f service.yaml"
        description = "Keep the key, put the file on the disk, and deploy it"
    ask = f"kubectl port-forward service/{job.name} 8000:80 &\n"
    ask += chat_call("localhost:8000/v1/chat/completions", "Bearer $API_KEY")
    return steps(
        up, ask, "kubectl delete -f service.yaml", up_words=description, down_words="Take it down, with its disk"
    )


# Cards that clusters and own machines usually have.
CARDS = (
    "t4", "l4", "a10g", "rtx3090", "rtx4090", "rtx5090", "l40s", "a100-40gb", "a100-80gb", "h100-sxm", "h200", "b200",
)  # fmt: skip

HOST = Host(
    title="Kubernetes",
    forms=("merged", "adapter", "gguf"),
    source="https://kubernetes.io/docs/reference/kubernetes-api/ (by kubernetes-validate), https://docs.vllm.ai, "
    "read on 2026-11-27",
    unchecked="that a node has the GPUs and the storage class, the prices.",
    limits=(
        "The nodes need NVIDIA's device plugin.",
        "Several replicas (--max-replicas) share the disk: its storage class has to offer ReadWriteMany. They come and "
        "go with vLLM's queue, for which Prometheus' adapter has to give `vllm:num_requests_waiting` the name "
        f"`{QUEUE}`; with a GGUF file their number stays that of --min-replicas.",
        "A further adapter of the base is another NAME=REPO behind --lora-modules in service.yaml, and one more in "
        "--max-loras; requests name it.",
    ),
    gpus={key: key for key in CARDS},
    own_machines=True,
    secrets=(HF_SECRET, callers_key("API_KEY")),
)
