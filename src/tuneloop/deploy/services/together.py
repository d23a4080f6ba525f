"""Together's fine-tuning: LoRA on models that it serves, whose adapters can be fetched."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from tuneloop.core.errors import UserError
from tuneloop.core.http.service import Service
from tuneloop.core.http.wire import HttpRefused
from tuneloop.deploy.services import LOOKS, HostedState, Order, State, TrainingService, uploads

_STATES: dict[str, State] = {
    "running": "running", "compressing": "running", "uploading": "running", "completed": "succeeded",
    "error": "failed", "user_error": "failed", "cancelled": "cancelled", "cancel_requested": "cancelled",
}  # fmt: skip
_STEP = {"train/global_step", "train/loss"}  # what is evaluated comes in rows of its own


def _body(order: Order) -> dict[str, Any]:
    return {
        "model": order.base,
        "training_file": order.train,
        **({"validation_file": order.val, "n_evals": 1} if order.val else {}),
        "n_epochs": order.epochs,
        "random_seed": order.seed,
        "suffix": order.key,
        "training_method": {"method": "sft", "train_on_inputs": "auto"},
    }


async def _estimate(service: Service, order: Order) -> float:
    """By its own price and limit; it checks the rows first."""
    body = {name: value for name, value in _body(order).items() if name not in ("random_seed", "suffix")}
    with suppress(HttpRefused):  # the job is refused as well, or there are no estimates
        for _ in range(LOOKS):
            answer = await service.post("/fine-tunes/estimate-price", body)
            if answer.get("allowed_to_proceed") is False:
                message = f"Together's price, ${answer.get('estimated_total_price')}, is above your credit there"
                step = "raise it at Together: no job was started"
                raise UserError(message, where=f"${answer.get('user_limit')}", next_step=step)
            if usd := answer.get("estimated_total_price"):
                return float(usd)
            await asyncio.sleep(service.pause)
    return 0.0


async def _look(service: Service, path: str) -> HostedState:
    job = await service.get(path)
    metrics: list[dict[str, float]] = []
    with suppress(HttpRefused):  # it has none yet
        metrics = (await service.get(f"{path}/metrics")).get("metrics") or []
    errors = [event for event in job.get("events") or [] if event.get("type") in ("job_error", "job_user_error")]
    return HostedState(
        _STATES.get(str(job.get("status")), "waiting"),
        str(job.get("model_output_name") or ""),
        str(errors[-1].get("message")) if errors else "",
        int(job.get("token_count") or 0),
        int(job.get("total_price") or 0) / 1e9,
        [{"step": int(row["train/global_step"]), "loss": row["train/loss"]} for row in metrics if row.keys() >= _STEP],
    )


async def _weights(service: Service, job: str, model: str) -> dict[str, str]:
    return {"adapter.tar.zst": f"/finetune/download?ft_id={quote(job)}&checkpoint=adapter"}


SERVICE = TrainingService(
    title="Together",
    url="https://api.together.ai",
    root="/v1",
    answers="/v1",
    key="TOGETHER_API_KEY",
    source="https://docs.together.ai/reference and the together package 3.1.1, read on 2026-11-30",
    send=uploads("/files/upload", purpose="fine-tune", file_name="{file}", file_type="jsonl"),
    jobs="/fine-tunes",
    body=_body,
    states=_STATES,
    mark=lambda job: str(job.get("suffix") or job.get("model_output_name") or ""),
    look=_look,
    estimate=_estimate,
    priced=True,
    weights=_weights,
    deploy="make a dedicated endpoint of {model} there (billed by the minute), ask it by "
    "`tuneloop evaluate {url} --model ENDPOINT --api-key-env TOGETHER_API_KEY --dataset {dataset} --out {folder}`, and "
    "delete it",
)
