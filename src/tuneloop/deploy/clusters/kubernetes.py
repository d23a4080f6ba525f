"""Kubernetes: an indexed Job, a pod for each machine, with the project in its image."""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.clusters import Cluster, ClusterJob
from tuneloop.deploy.hosts import Steps
from tuneloop.deploy.hosts.kubernetes import CARDS, KEEP_TOKEN, secret_variable
from tuneloop.deploy.project_text import yaml_text

IMAGE = "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime"


def project(job: ClusterJob) -> dict[str, str]:
    rendezvous = f"--nnodes {job.nodes} --node-rank $JOB_COMPLETION_INDEX --master-addr {job.name}-0.{job.name}"
    command = job.command(f"/runs/{job.name}", rendezvous if job.nodes > 1 else "")
    env = [secret_variable("HF_TOKEN", "huggingface", "token")] if job.gated else []
    # Keys of a bucket, where there are any: a pod whose account may use the bucket needs none.
    keys = [{"secretRef": {"name": "bucket", "optional": True}}]
    container: dict[str, Any] = {
        "name": "train", "image": f"YOUR_REGISTRY/{job.name}:1", "workingDir": "/job",
        "command": ["bash", "-c", command], "env": env,
        **({"envFrom": keys} if job.bucket else {}),
        "resources": {"limits": {"nvidia.com/gpu": job.gpus}, "requests": {"cpu": "4", "memory": "32Gi"}},
        "volumeMounts": [{"name": "runs", "mountPath": "/runs"}, {"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    pod = {
        "restartPolicy": "Never", "subdomain": job.name, "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": f"{job.name}-runs"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        ],
    }  # fmt: skip
    mode = "ReadWriteMany" if job.nodes > 1 else "ReadWriteOnce"
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": f"{job.name}-runs"},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "100Gi"}}},
    }  # fmt: skip
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": job.name},
        "spec": {"clusterIP": "None", "selector": {"job-name": job.name}},
    }  # fmt: skip
    run = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job.name},
        "spec": {
            "completions": job.nodes, "parallelism": job.nodes, "completionMode": "Indexed",
            "backoffLimit": 4 * job.nodes,
            "template": {"metadata": {"labels": {"app.kubernetes.io/name": job.name}}, "spec": pod},
        },
    }  # fmt: skip
    parts = [claim, service, run] if job.nodes > 1 else [claim, run]
    docker = f"FROM {IMAGE}\nRUN pip install --no-cache-dir '{job.package}'\n"
    docker += "WORKDIR /job\nCOPY recipe.yaml ./\nCOPY dataset dataset\n"
    yaml = yaml_text("Kubernetes: a training run. README.md has the commands.", *parts)
    return {"job.yaml": yaml, "Dockerfile": docker}


def commands(job: ClusterJob) -> Steps:
    secret = f"{KEEP_TOKEN}\n" if job.gated else ""
    image = f"$REGISTRY/{job.name}:1"
    apply = 'sed "s#YOUR_REGISTRY#$REGISTRY#" job.yaml | kubectl apply -f -'
    up = f"docker build -t {image} .\ndocker push {image}\n{secret}{apply}"
    return (
        (up, "Build the image with recipe and data, push it to your registry, and start the job"),
        (f"kubectl logs -f job/{job.name}", "Watch it; the run is on the disk of the claim"),
        ("kubectl delete -f job.yaml", "Take it down, with its disk"),
    )


CLUSTER = Cluster(
    title="Kubernetes",
    source="https://kubernetes.io/docs/concepts/workloads/controllers/job (by kubernetes-validate), read on 2026-11-27",
    unchecked="that a node has the GPUs and the storage class; the image's tag.",
    gpus={key: key for key in CARDS},
    own_machines=True,
    variables=("REGISTRY", "HF_TOKEN"),
    limits=(
        "A pod that is lost begins again, and the run continues from its last checkpoint on the disk.",
        "With --bucket the run is kept in an object store too. Pods whose account has no right to it read the keys "
        "from a secret: `kubectl create secret generic bucket --from-literal=AWS_ACCESS_KEY_ID=... "
        "--from-literal=AWS_SECRET_ACCESS_KEY=...`.",
    ),
)
