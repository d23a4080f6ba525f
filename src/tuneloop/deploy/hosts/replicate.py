"""Replicate: a Cog image with vLLM inside."""

from __future__ import annotations

import functools

from tuneloop.deploy.deployment import ServingJob, engine_arguments
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.project_text import yaml_text

VLLM_PACKAGE = "vllm==0.23.0"


def project(job: ServingJob) -> dict[str, str]:
    config = {
        "build": {"gpu": True, "python_version": "3.12", "python_packages": [VLLM_PACKAGE]},
        "predict": "predict.py:Predictor",
        "concurrency": {"max": 32},
    }
    options = engine_arguments(job)
    arguments = [f"model={job.model!r}", f"max_model_len={job.context}"]
    arguments += ['dtype="half"'] if job.half else []
    arguments += [f"tensor_parallel_size={job.cards}"] if job.cards > 1 else []
    if job.form == "adapter":
        arguments += ["enable_lora=True", f"max_lora_rank={options['max-lora-rank']}"]
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
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs({", ".join(arguments)}))
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
        sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature)
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
# Makes a deployment of the model's newest version, which `cog push` has made.
set -euo pipefail
: "${REPLICATE_API_TOKEN:?set it first: https://replicate.com/account/api-tokens}" "${ACCOUNT:?your name there}"
api=${REPLICATE_API:-https://api.replicate.com/v1}
send() {
  curl --fail-with-body -sS --retry 4 "$@" \\
    -H "Authorization: Bearer $REPLICATE_API_TOKEN" -H "Content-Type: application/json"
}
newest='import json, sys; print(json.load(sys.stdin)["results"][0]["id"])'
version=$(send "$api/models/$ACCOUNT/NAME/versions" | python3 -c "$newest")
send "$api/deployments" -d '{"name": "NAME", "model": "'"$ACCOUNT"'/NAME", "version": "'"$version"'",
 "hardware": "HARDWARE", "min_instances": LEAST, "max_instances": MOST}'
"""


GPUS = {"t4": "gpu-t4", "l40s": "gpu-l40s", "a100-80gb": "gpu-a100-large", "h100-sxm": "gpu-h100"}

HOST = Host(
    title="Replicate",
    forms=("merged", "adapter"),
    source="https://github.com/replicate/cog/blob/main/pkg/config/data/config_schema_v1.0.json, read on 2026-11-27",
    checked="cog.yaml fits Cog's JSON Schema, and predict.py is valid Python with the names that Cog requires.",
    unchecked="that the image builds and starts, the prices. A private model needs HF_TOKEN in the image's build.",
    limits=("The API is Replicate's own, not OpenAI's.",),
    request_model=lambda job: None,
    gpus=GPUS,
    providers=("Replicate",),
    variables=("ACCOUNT", "REPLICATE_API_TOKEN"),
    secrets=(("ACCOUNT, REPLICATE_API_TOKEN", "in your shell"),),
)
