"""Together: a model of one's own, or an adapter of a model that Together serves, on a dedicated endpoint."""

from __future__ import annotations

from tuneloop.scale.deployment import Deployment
from tuneloop.scale.hosts import Host


def project(job: Deployment) -> dict[str, str]:
    """A script of Together's own commands."""
    kind = "adapter" if job.form == "adapter" else "model"
    return {
        "deploy.sh": f"""#!/usr/bin/env bash
# Registers the model, uploads its files, and deploys it; see README.md. Stop here with Ctrl-C before anything is billed:
# the upload is free, the last step starts a machine that is billed by the minute.
set -euo pipefail
: "${{TOGETHER_API_KEY:?set it first}}" "${{ARTIFACT:?the folder of the artifact}}"
tg models public | grep -i {job.base.rsplit("/", 1)[-1]!r} || {{ echo "Together does not serve {job.base}: see README.md" >&2; exit 1; }}
tg models create --name {job.name} --base-model {job.base} --type {kind} --json | tee model.json
model=$(python3 -c 'import json; print(json.load(open("model.json"))["id"])')
tg models upload "$model" "$ARTIFACT"
tg endpoints deploy {job.name} --endpoint {job.name} --min-replicas {job.traffic.least} --max-replicas {max(job.traffic.most, 1)} \\
  --inactive-timeout {max(30, round(job.traffic.idle_minutes))}
"""
    }


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    """Up, ask, down."""
    ask = (
        f'curl https://api.together.ai/v1/chat/completions -H "Authorization: Bearer $TOGETHER_API_KEY" '
        f'-H "Content-Type: application/json" -d \'{{"model": "{job.name}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    return (
        ("pip install together\nbash deploy.sh", "Put it up"),
        (ask, "Ask it"),
        (f"tg endpoints rm {job.name}", "Take it down"),
    )


HOST = Host(
    name="together",
    title="Together",
    forms=("adapter", "merged"),
    project=project,
    commands=commands,
    source="the together package 2 (its command tg and its types)",
    as_of="2026-11-27",
    checked="Together's own command knows each option and value of the script.",
    unchecked="that Together serves this base, that the upload is accepted, the prices.",
    limits=(
        "The base has to be one that Together serves: an upload names it.",
        "The files are uploaded from this machine.",
    ),
    pulls=False,
    variables=("TOGETHER_API_KEY",),
    secrets=(("TOGETHER_API_KEY", "in your shell"),),
)
