"""Replicate: a Cog image with vLLM inside."""

from __future__ import annotations

import functools

from tuneloop.deploy.deployment import VLLM_VERSION, ServingJob, engine_arguments
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.project_text import yaml_text

OF_THE_SERVER = ("served-model-name", "lora-modules")  # options that are not the engine's


def project(job: ServingJob) -> dict[str, str]:
    config = {
        "build": {"gpu": True, "python_version": "3.12", "python_packages": [f"vllm=={VLLM_VERSION}"]},
        "predict": "predict.py:Predictor",
        "concurrency": {"max": 32},
    }
    options = {"model": job.model, **engine_arguments(job)}
    known = {name.replace("-", "_"): value for name, value in options.items() if name not in OF_THE_SERVER}
    arguments = ", ".join(f"{name}={value!r}" for name, value in known.items())
    adapter = f"LoRARequest({job.name!r}, 1, snapshot_download({job.repo!r}))" if job.form == "adapter" else "None"
    hardware = GPUS[job.machine.card.key] if job.machine else "gpu-l40s"
    hardware += f"-{job.cards}x" if job.cards > 1 else ""
    values = {"NAME": job.name, "HARDWARE": hardware}
    values |= {"LEAST": str(job.traffic.least), "MOST": str(job.traffic.most)}
    return {
        "cog.yaml": yaml_text(f"Cog: {job.artifact} with vLLM. `cog push r8.im/ACCOUNT/{job.name}`.", config),
        "predict.py": f'''"""{job.name}: {job.artifact} as a Replicate model."""

import inspect
import uuid

from cog import AsyncConcatenateIterator, BasePredictor, Input
from huggingface_hub import snapshot_download
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

SYSTEM = {job.system!r}


class Predictor(BasePredictor):
    async def setup(self) -> None:
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs({arguments}))
        tokenizer = self.engine.get_tokenizer()
        self.tokenizer = await tokenizer if inspect.isawaitable(tokenizer) else tokenizer  # by vLLM's version
        self.adapter = {adapter}

    async def predict(
        self,
        prompt: str = Input(description="What the user says."),
        system: str = Input(description="The system turn; the trained one by default.", default=SYSTEM),
        max_tokens: int = Input(default=256, ge=1, le={job.context}),
        temperature: float = Input(default=0.0, ge=0.0, le=2.0),
    ) -> AsyncConcatenateIterator[str]:
        turns = [{{"role": "system", "content": system}}] if system else []
        turns.append({{"role": "user", "content": prompt}})
        ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, stop_token_ids={list(job.ends)})
        sent = ""
        async for output in self.engine.generate(
            {{"prompt_token_ids": ids}}, sampling, uuid.uuid4().hex, lora_request=self.adapter
        ):
            text = output.outputs[0].text
            yield text[len(sent) :]
            sent = text
''',
        "deploy.sh": functools.reduce(lambda text, pair: text.replace(*pair), values.items(), _SCRIPT),
    }


def commands(job: ServingJob) -> Steps:
    key = '-H "Authorization: Bearer $REPLICATE_API_TOKEN"'
    url = f"https://api.replicate.com/v1/deployments/$ACCOUNT/{job.name}"
    ask = f'curl "{url}/predictions" {key} -H "Prefer: wait" -H "Content-Type: application/json" '
    ask += """-d '{"input": {"prompt": "Hello"}}'"""
    return steps(
        f"cog login\ncog push r8.im/$ACCOUNT/{job.name}\nbash deploy.sh",
        ask,
        f'curl -X DELETE "{url}" {key}',
        up_words="On a machine with Docker, build the image and push it to a model of that name, which you have made "
        "on replicate.com; then make a deployment of it",
        ask_words="Ask it; the trained system turn is sent, too",
        down_words="Take it down; Replicate takes that only where it has answered nothing for a while",
    )


_SCRIPT = """#!/usr/bin/env bash
# Makes a deployment of the model's newest version, which `cog push` has made. A request whose answer was lost may have
# been carried out all the same: the deployment is looked for before it is sent again.
set -euo pipefail
: "${REPLICATE_API_TOKEN:?set it first: https://replicate.com/account/api-tokens}" "${ACCOUNT:?your name there}"
api=${REPLICATE_API:-https://api.replicate.com/v1}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
send() {  # PATH [curl's options]: prints the status, 000 where there was no answer
  curl -sS -o "$answer" -w '%{http_code}' "$api/$1" "${@:2}" \\
    -H "Authorization: Bearer $REPLICATE_API_TOKEN" -H "Content-Type: application/json" || true
}
there() { [ "$(send "deployments/$ACCOUNT/NAME" --retry 4)" = 200 ]; }
if there; then echo "there is a deployment NAME already: delete it, or deploy with another --name" >&2; exit 1; fi
[ "$(send "models/$ACCOUNT/NAME/versions" --retry 4)" = 200 ] || { cat "$answer" >&2; exit 1; }
version=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["results"][0]["id"])' "$answer")
for pause in 1 4 16 0; do
  status=$(send deployments -d '{"name": "NAME", "model": "'"$ACCOUNT"'/NAME", "version": "'"$version"'",
 "hardware": "HARDWARE", "min_instances": LEAST, "max_instances": MOST}')
  case $status in
    2??) cat "$answer"; exit ;;
    000 | 408 | 429 | 5??) echo "busy ($status): again in $pause s" >&2 ;;
    *) cat "$answer" >&2; exit 1 ;;
  esac
  sleep $pause
  if there; then cat "$answer"; exit; fi
done
echo "still busy ($status): nothing was left behind" >&2
exit 1
"""


GPUS = {"t4": "gpu-t4", "l40s": "gpu-l40s", "a100-80gb": "gpu-a100-large", "h100-sxm": "gpu-h100"}

HOST = Host(
    title="Replicate",
    forms=("merged", "adapter"),
    source="https://github.com/replicate/cog/blob/main/pkg/config/data/config_schema_v1.0.json, read on 2026-11-27",
    unchecked="that the image builds and starts, the prices. A private model needs HF_TOKEN in the image's build.",
    limits=("The API is Replicate's own, not OpenAI's.",),
    request_model=lambda job: None,
    gpus=GPUS,
    providers=("Replicate",),
    variables=("ACCOUNT", "REPLICATE_API_TOKEN"),
    secrets=(("ACCOUNT, REPLICATE_API_TOKEN", "in your shell"),),
)
