"""Fireworks' supervised fine-tuning: LoRA, whose adapters can be fetched, and answer there from a deployment."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from typing import Any

from tuneloop.core.errors import UserError
from tuneloop.core.http.allowance import Allowance
from tuneloop.core.http.service import Item, Service, place_of
from tuneloop.core.http.wire import Broken, HttpRefused
from tuneloop.deploy.services import LOOKS, HostedState, Order, State, TrainingService

LARGEST = 150 << 20  # bytes of a file in one request

_STATES: dict[str, State] = {
    "JOB_STATE_RUNNING": "running", "JOB_STATE_WRITING_RESULTS": "running", "JOB_STATE_COMPLETED": "succeeded",
    "JOB_STATE_EARLY_STOPPED": "succeeded", "JOB_STATE_FAILED": "failed", "JOB_STATE_EXPIRED": "failed",
    "JOB_STATE_CANCELLED": "cancelled", "JOB_STATE_CANCELLING": "cancelled",
}  # fmt: skip


async def _send(service: Service, key: str, file: Path) -> str:
    """Make a data set, whose name says which run's it is, fill it, and wait until it is ready."""
    if file.stat().st_size > LARGEST:
        step = f"train on at most {LARGEST >> 20} MB of rows"
        raise UserError("The file is larger than Fireworks takes in one request", where=str(file), next_step=step)
    name = f"tuneloop-{key}-{file.stem}"
    facts = {"userUploaded": {}, "format": "CHAT", "exampleCount": str(file.read_bytes().count(b"\n"))}
    try:
        await service.post("/datasets", {"datasetId": name, "dataset": facts})
    except HttpRefused as error:
        if error.status != 409:  # else it was made by a call that broke off
            raise
    path = f"/datasets{place_of(name)}"
    dataset = await service.get(path)
    if dataset.get("state") != "READY":
        await service.upload(f"{path}:upload", {}, file)
    for _ in range(LOOKS):
        dataset = await service.get(path)
        if dataset.get("state") == "READY":
            return str(dataset["name"])
        await asyncio.sleep(service.pause)
    reason = (dataset.get("status") or {}).get("message") or "it gives no reason"
    step = "run the same command again, it continues"
    raise UserError(f"Fireworks is not ready with the file: {reason}", where=name, next_step=step)


def _body(order: Order) -> dict[str, Any]:
    return {
        "dataset": order.train,
        **({"evaluationDataset": order.val} if order.val else {}),
        "baseModel": order.base,
        "outputModel": f"tuneloop-{order.key}",
        "displayName": f"tuneloop-{order.key}",
        "epochs": order.epochs,
    }


async def _listed(service: Service) -> list[Item]:
    jobs: list[Item] = []
    token, taken = "", Allowance()
    while True:
        page = await service.get(JOBS, pageSize=200, **({"pageToken": token} if token else {}))
        some = page.get("supervisedFineTuningJobs") or []
        jobs += some
        if not (token := str(page.get("nextPageToken") or "")):
            return jobs
        if fault := taken.fault((job["name"] for job in some), token):
            raise Broken(f"the list of jobs has no end: {fault}")


async def _look(service: Service, path: str) -> HostedState:
    job = await service.get(path)
    model = str(job.get("outputModel") or "")
    if model and "/" not in model:
        model = f"{job['name'].split(JOBS)[0]}/models/{model}"
    state, cost = _STATES.get(str(job.get("state")), "waiting"), job.get("estimatedCost") or {}
    error = str((job.get("status") or {}).get("message") or "") if state == "failed" else ""
    return HostedState(state, model, error, usd=int(cost.get("units") or 0) + int(cost.get("nanos") or 0) / 1e9)


async def _weights(service: Service, job: str, model: str) -> dict[str, str]:
    files = await service.get(f"{_place(model)}:getDownloadEndpoint")
    urls: dict[str, str] = files.get("filenameToSignedUrls") or {}
    return {f"adapter/{PurePosixPath(name).name}": url for name, url in urls.items()}


async def _served(service: Service, model: str) -> str:
    """`MODEL#DEPLOYMENT`, of a deployment that it was loaded into, or that was made of it; empty: there is none."""
    loaded = (await service.get(_place(model))).get("deployedModelRefs") or []
    made = (await service.get("/deployments", pageSize=200)).get("deployments") or []
    names = [str(reference["deployment"]) for reference in loaded if reference.get("state") == "DEPLOYED"]
    names += [
        str(deployment["name"])
        for deployment in made
        if deployment.get("baseModel") == model and deployment.get("state") == "READY"
    ]
    return f"{model}#{names[0]}" if names else ""


def _place(model: str) -> str:
    return f"/models{place_of(model.rpartition('/')[2])}"


JOBS = "/supervisedFineTuningJobs"
SERVICE = TrainingService(
    title="Fireworks",
    url="https://api.fireworks.ai",
    root="/v1/accounts/{account}",
    answers="/inference/v1",
    key="FIREWORKS_API_KEY",
    account="FIREWORKS_ACCOUNT_ID",
    source="https://docs.fireworks.ai/api-reference and the fireworks-ai package 1.2.30, read on 2026-11-30",
    send=_send,
    jobs=JOBS,
    body=_body,
    states=_STATES,
    state="state",
    mark=lambda job: str(job.get("displayName") or ""),
    listed=_listed,
    cancel=":cancel",
    look=_look,
    priced=True,
    weights=_weights,
    served=_served,
    deploy="firectl deployment create {model} (billed by the second), when it is ready run the same command again, "
    "it measures, and delete the deployment",
)
