"""Docker Model Runner: a GGUF file as an image."""

from __future__ import annotations

import json

from tuneloop.deploy.deployment import ServingJob
from tuneloop.deploy.hosts import Host, Steps, steps
from tuneloop.deploy.project_text import yaml_text


def project(job: ServingJob) -> dict[str, str]:
    turn = json.dumps({"role": "user", "content": "Hello"})
    body = f"""'{{"model": "'"$$LLM_MODEL"'", "messages": [{turn}]}}'"""
    curl = f'curl -fsS "$${{LLM_URL}}chat/completions" -H "Content-Type: application/json" -d {body}'
    ask = {
        "image": "curlimages/curl:8.17.0", "models": {"llm": {"endpoint_var": "LLM_URL", "model_var": "LLM_MODEL"}},
        "entrypoint": ["sh", "-c"], "command": [curl],
    }  # fmt: skip
    model = {"model": f"${{REGISTRY:?as in docker.io/you}}/{job.name}", "context_size": job.context}
    composed = {"name": job.name, "models": {"llm": model}, "services": {"ask": ask}}
    return {"compose.yaml": yaml_text(f"Docker Model Runner: {job.artifact}. `docker compose run ask`.", composed)}


def commands(job: ServingJob) -> Steps:
    up = f'docker model package --gguf "$ARTIFACT/{job.file}" --context-size {job.context} --push $REGISTRY/{job.name}'
    down = f"docker compose down\ndocker model rm $REGISTRY/{job.name}"
    return steps(up, "docker compose run --rm ask", down, up_words="Pack it and put it into your registry")


HOST = Host(
    title="Docker Model Runner",
    forms=("gguf",),
    source="https://docs.docker.com/ai/model-runner/, https://github.com/compose-spec/compose-spec, read on 2026-11-27",
    checked="The Compose specification's JSON Schema accepts compose.yaml.",
    unchecked="that your Docker has the runner.",
    own_machines=True,
    pulls=False,
    vllm=False,
    request_model=lambda job: None,
    secrets=(("REGISTRY", "where your images are, in your shell"),),
)
