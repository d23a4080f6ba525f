"""Fireworks: a model of one's own, or an adapter on a deployment of its base."""

from __future__ import annotations

from tuneloop.core.errors import UserError
from tuneloop.deploy.deployment import ServingJob, chat_call
from tuneloop.deploy.hosts import Host, Steps, steps

LARGEST_RANK = 64  # PeftDetails.r in Fireworks' API
KEY = "Bearer $FIREWORKS_API_KEY"


def project(job: ServingJob) -> dict[str, str]:
    adapter = job.form == "adapter"
    if adapter and not 4 <= job.rank <= LARGEST_RANK:
        what = f"Fireworks takes adapters of rank 4 to {LARGEST_RANK}, this one has {job.rank}"
        raise UserError(what, where="ARTIFACT", next_step="export it with --format merged")
    accelerator = ACCELERATORS[job.machine.card.key] if job.machine else "NVIDIA_H100_80GB"
    names: dict[str, object] = {
        "NAME": job.name,
        "ADAPTER": adapter,
        "LEAST": job.traffic.least,
        "MOST": job.traffic.most,
    }
    names |= {"ACCELERATOR": accelerator, "CARDS": job.cards}
    values = "\n".join(f"{name} = {value!r}" for name, value in names.items())
    what = f"{job.name}: {job.artifact} on Fireworks. Run it with the artifact's folder."
    return {"deploy.py": _SCRIPT.replace("WHAT", what).replace("VALUES", values)}


_SCRIPT = '''"""WHAT

What it created is deleted when a step fails."""

import json
import os
import sys
from pathlib import Path

import httpx
from fireworks import APIError, Fireworks, NotFoundError

VALUES
folder = Path(sys.argv[1])
files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
account = os.environ["FIREWORKS_ACCOUNT_ID"]
key, url = os.environ["FIREWORKS_API_KEY"], os.environ.get("FIREWORKS_URL")
client = Fireworks(api_key=key, account_id=account, base_url=url)
model = {"kind": "HF_PEFT_ADDON" if ADAPTER else "HF_BASE_MODEL", "display_name": NAME}
if ADAPTER:
    settings = json.loads((folder / "adapter_config.json").read_text())
    base = os.environ["FIREWORKS_BASE"]  # as in accounts/fireworks/models/llama-v3p1-8b-instruct
    model["peft_details"] = {"base_model": base, "r": settings["r"], "target_modules": settings["target_modules"]}
else:
    model["base_model_details"] = {"checkpoint_format": "HUGGINGFACE"}


def look(kind):
    try:
        return kind.get(NAME)
    except NotFoundError:
        return None


def create(kind, **values):
    try:
        return kind.create(**values)
    except APIError:  # its answer may be lost, and it was carried out all the same
        there = look(kind)
        if there is None:
            raise
        return there


for kind in (client.models, client.deployments):
    if look(kind):
        sys.exit(f"{NAME} is there already: delete it, or deploy with another --name")
try:
    create(client.models, model_id=NAME, model=model)
    places = client.models.get_upload_endpoint(NAME, filename_to_size=files).filename_to_signed_urls
    for name, url in places.items():
        with open(folder / name, "rb") as file:
            size = {"x-goog-content-length-range": f"{files[name]},{files[name]}"}
            httpx.put(url, content=file, headers=size, timeout=None).raise_for_status()
    client.models.validate_upload(NAME)
    served = base if ADAPTER else f"accounts/{account}/models/{NAME}"
    deployment = create(
        client.deployments,
        base_model=served, deployment_id=NAME, enable_addons=ADAPTER,
        min_replica_count=LEAST, max_replica_count=MOST, accelerator_type=ACCELERATOR, accelerator_count=CARDS,
    )
except BaseException:
    for kind in (client.deployments, client.models):
        if look(kind):
            kind.delete(NAME)
    raise
print(deployment)
'''


def commands(job: ServingJob) -> Steps:
    url = "https://api.fireworks.ai/inference/v1/chat/completions"
    ask = f'sed "s/FIREWORKS_ACCOUNT_ID/$FIREWORKS_ACCOUNT_ID/" request.json | {chat_call(url, KEY, "@-")}'
    account = "https://api.fireworks.ai/v1/accounts/$FIREWORKS_ACCOUNT_ID"
    places = (f"{account}/{kind}/{job.name}" for kind in ("deployments", "models"))
    down = "\n".join(f'curl -X DELETE "{place}" -H "Authorization: {KEY}"' for place in places)
    return steps('pip install fireworks-ai\npython deploy.py "$ARTIFACT"', ask, down)


ACCELERATORS = {
    "l4": "NVIDIA_L4_24GB", "a10g": "NVIDIA_A10G_24GB", "a100-40gb": "NVIDIA_A100_40GB",
    "a100-80gb": "NVIDIA_A100_80GB", "h100-sxm": "NVIDIA_H100_80GB", "h200": "NVIDIA_H200_141GB",
    "b200": "NVIDIA_B200_180GB", "mi300x": "AMD_MI300X_192GB",
}  # fmt: skip

HOST = Host(
    title="Fireworks",
    forms=("adapter", "merged"),
    source="the fireworks-ai package 1.2 (its client and types), read on 2026-11-27",
    checked="deploy.py runs with Fireworks' client against a stand-in, which a refusal at each step leaves as it was.",
    unchecked="that the upload passes Fireworks' validation, the prices.",
    limits=(
        "An adapter needs FIREWORKS_BASE, the name of its base there.",
        "The files are uploaded from this machine.",
    ),
    request_model=lambda job: f"accounts/FIREWORKS_ACCOUNT_ID/models/{job.name}",
    gpus=ACCELERATORS,
    providers=("Fireworks",),
    pulls=False,
    vllm=False,
    variables=("FIREWORKS_API_KEY", "FIREWORKS_ACCOUNT_ID"),
    secrets=(("FIREWORKS_API_KEY, FIREWORKS_ACCOUNT_ID", "in your shell"),),
)
