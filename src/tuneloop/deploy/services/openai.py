"""OpenAI's fine-tuning, and servers of the same API. OpenAI itself takes no new jobs from 6 January 2027."""

from __future__ import annotations

from typing import Any

from tuneloop.core.http.service import Service
from tuneloop.deploy.services import HostedState, Order, State, TrainingService, uploads

_STATES: dict[str, State] = {
    "running": "running", "succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled",
}  # fmt: skip


def _body(order: Order) -> dict[str, Any]:
    return {
        "model": order.base,
        "training_file": order.train,
        **({"validation_file": order.val} if order.val else {}),
        "seed": order.seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": order.epochs}}},
        "metadata": {"tuneloop": order.key},
    }


async def _look(service: Service, path: str) -> HostedState:
    job = await service.get(path)
    steps: dict[int, dict[str, Any]] = {}
    for event in reversed(await service.items(f"{path}/events", limit=100)):
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        if isinstance(data.get("step"), int) and isinstance(data.get("train_loss"), int | float):
            steps[data["step"]] = {"step": data["step"], "loss": data["train_loss"]}
    error = job.get("error")
    return HostedState(
        _STATES.get(str(job.get("status")), "waiting"),
        str(job.get("fine_tuned_model") or ""),
        str(error.get("message") or "") if isinstance(error, dict) else "",
        int(job.get("trained_tokens") or 0),
        steps=list(steps.values()),
    )


SERVICE = TrainingService(
    title="OpenAI",
    url="https://api.openai.com/v1",
    key="OPENAI_API_KEY",
    source="https://developers.openai.com/api/reference, read on 2026-11-30",
    send=uploads("/files", purpose="fine-tune"),
    jobs="/fine_tuning/jobs",
    body=_body,
    states=_STATES,
    mark=lambda job: str((job.get("metadata") or {}).get("tuneloop") or ""),
    look=_look,
)
