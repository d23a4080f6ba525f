"""Together: a model of one's own, or an adapter of a model that Together serves, on a dedicated endpoint."""

from __future__ import annotations

from tuneloop.deploy.deployment import ServingJob, chat_call
from tuneloop.deploy.hosts import Host, Steps, steps


def project(job: ServingJob) -> dict[str, str]:
    kind, merge = ("adapter", " --merge") if job.form == "adapter" else ("model", "")
    return {
        "deploy.sh": f"""#!/usr/bin/env bash
# Registers the model, uploads its files, and deploys it; see README.md. Stop here with Ctrl-C before anything is
# billed: the upload is free, the last step starts a machine that is billed by the minute.
set -euo pipefail
cd "$(dirname "$0")"
: "${{TOGETHER_API_KEY:?set it first}}" "${{TOGETHER_PROJECT_ID:?tg whoami says it}}"
: "${{ARTIFACT:?the folder of the artifact}}"
model=
undo() {{  # an endpoint that can't be made is removed by tg itself
  [ $? = 0 ] && return
  [ -z "$model" ] && echo "nothing was left behind" >&2 && return
  if tg models rm "$model" >&2; then echo "the model was deleted again: nothing was left behind" >&2; rm -f model.json
  else echo "left behind, free of charge: the model $model; tg models rm $model removes it" >&2; fi
}}
trap undo EXIT
tg models create --name {job.name} --base-model "${{TOGETHER_BASE:-{job.base}}}" --type {kind} --json | tee model.json
model=$(python3 -c 'import json; print(json.load(open("model.json"))["id"])')
tg models upload "$model" "$ARTIFACT"
tg endpoints deploy "projects/$TOGETHER_PROJECT_ID/models/$model" --endpoint {job.name} \\
  --min-replicas {job.traffic.least} --max-replicas {job.traffic.most} \\
  --inactive-timeout {max(30, round(job.traffic.idle_minutes))}{merge} --json | tee deployment.json
""",
        "down.sh": """#!/usr/bin/env bash
# Takes down what deploy.sh has deployed: the endpoint with its machines, then the model.
set -euo pipefail
cd "$(dirname "$0")"
tg endpoints rm "$(python3 -c 'import json; print(json.load(open("deployment.json"))["endpoint"]["id"])')" --force
tg models rm "$(python3 -c 'import json; print(json.load(open("model.json"))["id"])')"
""",
    }


def commands(job: ServingJob) -> Steps:
    ask = chat_call("https://api.together.ai/v1/chat/completions", "Bearer $TOGETHER_API_KEY")
    return steps("pip install together\nbash deploy.sh", ask, "bash down.sh")


HOST = Host(
    title="Together",
    forms=("adapter", "merged"),
    source="the together package 2 (its command tg and its types), read on 2026-11-27",
    unchecked="that Together serves this base, that the upload is accepted, the prices.",
    limits=(
        "The base has to be one that Together serves: an upload names it.",
        "TOGETHER_BASE names the base as Together does (tg models public), where that differs from the hub's name.",
        "The files are uploaded from this machine.",
    ),
    pulls=False,
    vllm=False,
    variables=("TOGETHER_API_KEY", "TOGETHER_PROJECT_ID"),
    secrets=(("TOGETHER_API_KEY, TOGETHER_PROJECT_ID", "in your shell"),),
)
