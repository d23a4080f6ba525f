"""Fireworks' data sets, fine-tuning jobs, models and deployments on this machine, in the shapes of its published API."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai_service import Service

ACCOUNT = "acme"
BASE = "accounts/fireworks/models/llama-v3p1-8b-instruct"
ROOT = f"/v1/accounts/{ACCOUNT}"
# Fields of a job that may be sent, as the API's reference and the official client's types name them.
FIELDS = {
    "dataset", "evaluationDataset", "baseModel", "outputModel", "displayName", "epochs", "learningRate", "loraRank",
    "earlyStop", "maxContextLength", "batchSize",
}  # fmt: skip


@dataclass
class Fireworks(Service):
    """What the account has; each look at a data set or job brings it a step on.

    Args:
        most: jobs of a page.
        deployments: of the account. `ends`: state of a job in the end, as `JOB_STATE_` has it.
    """

    jobs: list[dict[str, Any]] = field(default_factory=list)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    deployments: list[dict[str, Any]] = field(default_factory=list)
    loaded: dict[str, str] = field(default_factory=dict)  # model -> deployment of its base that it was loaded into
    ends: str = "COMPLETED"

    def reply(self, method: str, target: str, body: bytes, kind: str = "") -> tuple[int, Any]:
        """Status and body of a request, see `Service.reply`."""
        parts = urlsplit(target)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if parts.path == "/inference/v1/chat/completions":
            asked = json.loads(body)["model"]
            names = {f"{deployment['baseModel']}#{deployment['name']}" for deployment in self.deployments}
            if asked not in names | {"#".join(item) for item in self.loaded.items()}:
                return 404, _error(5, "Model not found, inaccessible, and/or not deployed")
            return 200, self._answered(json.loads(body))
        if parts.path.startswith("/signed/"):  # of the store, which takes no key
            return 200, b"weights of " + parts.path.rpartition("/")[2].encode()
        found = re.fullmatch(rf"{ROOT}/(\w+)(?:/([\w-]+))?(?::(\w+))?", parts.path)
        if found is None:
            return 403, _error(7, f"No access to {parts.path}")
        kind_of, name, verb = found.groups()
        if kind_of == "datasets":
            return self._dataset(method, name, verb or "", body, kind)
        if kind_of == "supervisedFineTuningJobs":
            return self._job(method, name, verb or "", body, query)
        if kind_of == "deployments":
            return 200, {"deployments": self.deployments}
        if verb == "getDownloadEndpoint":
            files = ("adapter_config.json", "adapter_model.safetensors")
            root = self.url.removesuffix("/v1")
            return 200, {"filenameToSignedUrls": {file: f"{root}/signed/{file}?sig=1" for file in files}}
        model = f"accounts/{ACCOUNT}/models/{name}"
        refs = [{"deployment": self.loaded[model], "state": "DEPLOYED"}] if model in self.loaded else []
        return 200, {"name": model, "state": "READY", "deployedModelRefs": refs}

    def _dataset(self, method: str, name: str | None, verb: str, body: bytes, kind: str) -> tuple[int, Any]:
        if name is None:
            order = json.loads(body)
            assert order.keys() == {"datasetId", "dataset"} and order["dataset"]["userUploaded"] == {}
            name = order["datasetId"]
            if name in self.datasets:
                return 409, _error(6, f"dataset {name} already exists")
            self.datasets[name] = {
                **order["dataset"], "name": f"accounts/{ACCOUNT}/datasets/{name}", "state": "UPLOADING", "status": {},
            }  # fmt: skip
        item = self.datasets.get(name)
        if item is None:
            return 404, _error(5, f"dataset {name} not found")
        if verb == "upload":
            parts = {
                part.get_param("name", header="content-disposition"): part
                for part in message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).walk()
            }
            self.add_file(name, parts["file"].get_payload(decode=True), filename=parts["file"].get_filename())
            return 200, self.files[name][0]
        if method == "GET" and name in self.files:
            item["looks"] = item.get("looks", 0) + 1
            item["state"] = "READY" if item["looks"] > 1 else "UPLOADING"
        return 200, item

    def _job(self, method: str, name: str | None, verb: str, body: bytes, query: dict[str, str]) -> tuple[int, Any]:
        if name is None and method == "POST":
            order = json.loads(body)
            self.bodies.append(order)
            if unknown := order.keys() - FIELDS:
                return 400, _error(3, f"unknown fields {unknown}")
            for item in ("dataset", "evaluationDataset"):
                path = order.get(item, "").rpartition("/")[2]
                if item in order and self.datasets.get(path, {}).get("state") != "READY":
                    return 400, _error(9, f"{item} {path} is not ready")
            job = {
                **order, "name": f"accounts/{ACCOUNT}/supervisedFineTuningJobs/j{len(self.jobs) + 1}",
                "outputModel": f"accounts/{ACCOUNT}/models/{order['outputModel']}", "state": "JOB_STATE_CREATING",
                "status": {"code": "OK", "message": ""}, "looks": 0,
                "estimatedCost": {"currencyCode": "USD", "units": str(int(self.price)), "nanos": int(self.price % 1 * 1e9)},
            }  # fmt: skip
            self.jobs.append(job)
            return 200, job
        if name is None:
            first = int(query.get("pageToken", 0))
            more = {"nextPageToken": str(first + self.most)} if first + self.most < len(self.jobs) else {}
            return 200, {"supervisedFineTuningJobs": self.jobs[first : first + self.most], **more}
        job = next((job for job in self.jobs if job["name"].endswith(f"/{name}")), None)
        if job is None:
            return 404, _error(5, f"job {name} not found")
        if verb == "cancel":
            job["state"] = "JOB_STATE_CANCELLING"
            return 200, {}
        states = ["VALIDATING", "RUNNING", self.ends]
        if job["state"] != "JOB_STATE_CANCELLING":
            job["state"] = f"JOB_STATE_{states[min(job['looks'], 2)]}"
            job["looks"] += 1
        if job["state"] == "JOB_STATE_FAILED":
            job["status"] = {"code": "INVALID_ARGUMENT", "message": "row 3 is bad"}
        return 200, job


def _error(code: int, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "details": []}
