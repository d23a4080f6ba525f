"""Ollama: a GGUF file with its Modelfile."""

from __future__ import annotations

from tuneloop.deploy.deployment import Deployment, chat_call
from tuneloop.deploy.hosts import Host


def project(job: Deployment) -> dict[str, str]:
    return {}


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    ask = chat_call("localhost:11434/v1/chat/completions")
    first = ""
    if job.form == "gguf-lora":
        first = "# Put the base model's GGUF file into the artifact's folder first; the Modelfile says its name.\n"
    return (
        (f'{first}ollama create {job.name} -f "$ARTIFACT/Modelfile"', "Put it up"),
        (ask, "Ask it"),
        (f"ollama rm {job.name}", "Take it down"),
    )


HOST = Host(
    name="ollama", title="Ollama", forms=("gguf", "gguf-lora"), project=project, commands=commands,
    source="https://docs.ollama.com/modelfile", as_of="2026-11-27",
    checked="The Modelfile's template writes the tokens that the trained one writes (tested when it is exported).",
    unchecked="that your version of Ollama reads the file.", own=True, pulls=False,
)  # fmt: skip
