"""Modal: vLLM behind a web server of one function."""

from __future__ import annotations

from tuneloop.deploy.deployment import VLLM_IMAGE, ServingJob, chat_call, vllm_command
from tuneloop.deploy.hosts import HF_SECRET, Host, Steps, callers_key, steps


def project(job: ServingJob) -> dict[str, str]:
    gpu = GPUS[job.machine.card.key] if job.machine else "L4"
    arguments = ",\n        ".join(repr(word) for word in vllm_command(job))
    return {
        "app.py": f'''"""{job.name}: {job.artifact} behind vLLM's OpenAI API on Modal."""

import subprocess

import modal

app = modal.App({job.name!r})
image = modal.Image.from_registry({VLLM_IMAGE!r}, add_python="3.12").entrypoint([])
cache = modal.Volume.from_name("huggingface-cache", create_if_missing=True)


@app.function(
    image=image,
    gpu="{gpu}{f":{job.cards}" if job.cards > 1 else ""}",
    secrets=[modal.Secret.from_name("huggingface"), modal.Secret.from_name({job.name + "-key"!r})],
    volumes={{"/root/.cache/huggingface": cache}},
    min_containers={job.traffic.least},
    max_containers={job.traffic.most},
    scaledown_window={min(round(60 * job.traffic.idle_minutes), 1200)},
    timeout=24 * 60 * 60,
)
@modal.concurrent(max_inputs=32)
@modal.web_server(port=8000, startup_timeout=20 * 60)
def serve() -> None:
    # VLLM_API_KEY comes from the secret {job.name}-key: without it anyone who knows the address could ask.
    command = [
        {arguments},
    ]
    subprocess.Popen(command)
'''
    }


def commands(job: ServingJob) -> Steps:
    up = f"{KEEP_TOKEN}\nmodal secret create {job.name}-key VLLM_API_KEY=$VLLM_API_KEY\nmodal deploy app.py"
    url = f'"https://$WORKSPACE--{job.name}-serve.modal.run/v1/chat/completions"'
    ask, description = chat_call(url, "Bearer $VLLM_API_KEY"), "Keep the secrets, and deploy it"
    asking = "Ask it; `$WORKSPACE` is yours at Modal, whose last line above has the whole address"
    return steps(up, ask, f"modal app stop {job.name}", up_words=description, ask_words=asking)


KEEP_TOKEN = "modal secret create huggingface HF_TOKEN=$HF_TOKEN"
GPUS = {
    "t4": "T4", "l4": "L4", "a10g": "A10G", "l40s": "L40S", "a100-40gb": "A100-40GB", "a100-80gb": "A100-80GB",
    "h100-sxm": "H100", "h200": "H200", "b200": "B200",
}  # fmt: skip

HOST = Host(
    title="Modal",
    forms=("merged", "adapter"),
    source="https://modal.com/docs/reference, read on 2026-11-27",
    unchecked="that the image starts there, the prices.",
    limits=("A container is kept warm for at most 20 minutes after its last request, unless one is always on.",),
    gpus=GPUS,
    providers=("Modal",),
    variables=("HF_TOKEN", "VLLM_API_KEY"),
    secrets=(HF_SECRET, callers_key("VLLM_API_KEY")),
)
