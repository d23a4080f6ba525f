"""Docker Model Runner: a GGUF file as an image of its own kind."""

from __future__ import annotations

from tuneloop.deploy.deployment import Deployment
from tuneloop.deploy.hosts import Host
from tuneloop.deploy.project_text import yaml_text


def project(job: Deployment) -> dict[str, str]:
    composed = {
        "name": job.name,
        "models": {"llm": {"model": f"${{REGISTRY:?as in docker.io/you}}/{job.name}", "context_size": job.context}},
        "services": {
            "ask": {
                "image": "curlimages/curl:8.17.0",
                "models": {"llm": {"endpoint_var": "LLM_URL", "model_var": "LLM_MODEL"}},
                "entrypoint": ["sh", "-c"],
                "command": [
                    'curl -fsS "$${LLM_URL}chat/completions" -H "Content-Type: application/json" '
                    '-d "{\\"model\\": \\"$$LLM_MODEL\\", \\"messages\\": [{\\"role\\": \\"user\\", \\"content\\": \\"Hello\\"}]}"'
                ],
            }
        },
    }
    return {"compose.yaml": yaml_text(f"Docker Model Runner: {job.artifact}. `docker compose run ask`.", composed)}


def commands(job: Deployment) -> tuple[tuple[str, str], ...]:
    up = f'docker model package --gguf "$ARTIFACT/{job.file}" --context-size {job.context} --push $REGISTRY/{job.name}'
    return (
        (up, "Pack it and put it into your registry"),
        ("docker compose run --rm ask", "Ask it"),
        (f"docker compose down\ndocker model rm $REGISTRY/{job.name}", "Take it down"),
    )


HOST = Host(
    name="docker-model-runner", title="Docker Model Runner", forms=("gguf",), project=project, commands=commands,
    source="https://docs.docker.com/ai/model-runner/, https://github.com/compose-spec/compose-spec", as_of="2026-11-27",
    checked="The Compose specification's JSON Schema accepts compose.yaml.",
    unchecked="that your Docker has the runner.", own=True, pulls=False, asked_as=lambda job: None,
    secrets=(("REGISTRY", "where your images lie, in your shell"),),
)  # fmt: skip
