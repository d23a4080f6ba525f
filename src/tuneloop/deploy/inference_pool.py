"""An InferencePool: a gateway that sends each request to the replica which has its adapter, its prefix, and room.

The pool is a resource of the Gateway API Inference Extension (inference.networking.k8s.io/v1). Its endpoint picker is llm-d's
router, as that project's chart `llm-d-router-gateway` puts it up, with the scorer for adapters added.
"""

from __future__ import annotations

from typing import Any

from tuneloop.deploy.deployment import Deployment
from tuneloop.deploy.project_text import yaml_text

# github.com/llm-d/llm-d-router, github.com/kubernetes-sigs/gateway-api-inference-extension, read 2026-11-27.
PICKER_IMAGE = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"
GATEWAY = "inference-gateway"
_READ = ["get", "watch", "list"]
# What the picker may do: find the pool's pods, and check who reads its metrics.
_RULES = [
    {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": _READ},
    {"apiGroups": ["llm-d.ai"], "resources": ["inferenceobjectives", "inferencemodelrewrites"], "verbs": _READ},
    {"apiGroups": [""], "resources": ["pods"], "verbs": _READ},
]
# How replicas are compared, and how much each counts. An adapter that is loaded there is worth most: loading one takes longer
# than a short queue.
_SCORERS = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "prefix-cache-scorer": 3}
_ADAPTER_SCORER = ("lora-affinity-scorer", 4)


def _scorers(job: Deployment) -> str:
    scorers = {**_SCORERS, **dict([_ADAPTER_SCORER] if job.form == "adapter" else [])}
    config = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": name} for name in (*scorers, "metrics-data-source", "core-metrics-extractor")],
        "schedulingProfiles": [
            {"name": "default", "plugins": [{"pluginRef": name, "weight": weight} for name, weight in scorers.items()]}
        ],
    }
    return yaml_text("How the replicas are compared.", config)


def pool_file(job: Deployment) -> str:
    """`pool.yaml`: the pool of a deployment's replicas, its picker, and the route of a gateway to it."""
    picker, pod = f"{job.name}-picker", {"app.kubernetes.io/name": f"{job.name}-picker"}
    meta = {"name": picker, "labels": {**pod, "app.kubernetes.io/managed-by": "tuneloop"}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": _RULES}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": meta,
        "subjects": [{"kind": "ServiceAccount", "name": picker}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": picker},
    }  # fmt: skip
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"picker.yaml": _scorers(job)}}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": pod, "ports": [{"name": "grpc-ext-proc", "port": 9002, "appProtocol": "kubernetes.io/h2c"}]},
    }  # fmt: skip
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": {"name": job.name, "annotations": {"tuneloop/artifact": job.artifact}},
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": job.name}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": picker, "port": {"number": 9002}, "failureMode": "FailOpen"},
        },
    }  # fmt: skip
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": job.name},
        "spec": {
            "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": GATEWAY}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                    "backendRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": job.name}],
                    "timeouts": {"request": "300s"},
                }
            ],
        },
    }  # fmt: skip
    what = f"An InferencePool for {job.artifact}. `kubectl apply -f pool.yaml`, after service.yaml."
    return yaml_text(what, account, role, binding, config, service, _picker(job, meta, pod), pool, route)


def _picker(job: Deployment, meta: dict[str, Any], pod: dict[str, str]) -> dict[str, Any]:
    """The endpoint picker's Deployment."""
    probe = {"grpc": {"port": 9003, "service": "inference-extension"}}
    container = {
        "name": "picker", "image": PICKER_IMAGE,
        "args": [
            "--pool-name", job.name, "--pool-group", "inference.networking.k8s.io", "--config-file", "/config/picker.yaml",
            "--grpc-health-port", "9003", "--tracing=false", "--metrics-endpoint-auth=false",
        ],
        "env": [{"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
        "ports": [{"name": "grpc", "containerPort": 9002}, {"name": "grpc-health", "containerPort": 9003}],
        "livenessProbe": {**probe, "initialDelaySeconds": 5, "periodSeconds": 10},
        "readinessProbe": {**probe, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "8Gi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/config"}],
    }  # fmt: skip
    spec = {
        "serviceAccountName": meta["name"],
        "terminationGracePeriodSeconds": 130,  # longer than that of the replicas
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": meta["name"]}}],
    }
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
        "spec": {"replicas": 1, "selector": {"matchLabels": pod}, "template": {"metadata": {"labels": pod}, "spec": spec}},
    }  # fmt: skip
