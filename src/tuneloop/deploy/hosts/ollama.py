"""Ollama: a GGUF file with its Modelfile."""

from __future__ import annotations

from tuneloop.deploy.deployment import ServingJob, chat_call
from tuneloop.deploy.hosts import Host, Steps, steps


def project(job: ServingJob) -> dict[str, str]:
    return {}


def commands(job: ServingJob) -> Steps:
    up = f'ollama create {job.name} -f "$ARTIFACT/Modelfile"'
    if job.form == "gguf-lora":
        up = f"# Put the base model's GGUF file into the artifact's folder first; the Modelfile says its name.\n{up}"
    return steps(up, chat_call("localhost:11434/v1/chat/completions"), f"ollama rm {job.name}")


HOST = Host(
    title="Ollama",
    forms=("gguf", "gguf-lora"),
    source="https://docs.ollama.com/modelfile, read on 2026-11-27",
    unchecked="that your version of Ollama reads the file.",
    own_machines=True,
    pulls=False,
    vllm=False,
)
