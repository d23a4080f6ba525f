"""Deployments without `--dry-run`, rehearsed: hosts' own clients against a stand-in, containers' start commands with a small model.

Each test counts what is left at the host: nothing that costs money after a refusal, one endpoint after a success.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from by_day import by_day
from host_definitions import FOLDER
from stand_in import Rule, StandIn, standing_in

from patience import slowness
from places import ROOT
from tuneloop.deploy.deployment import Card, Machine, Replicas, ServingJob, Size
from tuneloop.deploy.hosts import find_host
from tuneloop.deploy.project_text import shell

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
JOB = ServingJob(
    "tickets", "tickets-0123", "merged", "meta-llama/Llama-3.1-8B-Instruct", "acme/tickets", Size(15.0, 1e5, 4096)
)


@pytest.fixture
def artifact(make_artifact: Callable[[str], Path]) -> Path:
    return make_artifact("merged")


def make(host: StandIn, path: str, value: Any) -> Any:
    host.there[path] = value
    return value


def drop(host: StandIn, path: str) -> tuple[int, Any]:
    return (200, {}) if host.there.pop(path, None) is not None else (404, {"message": "not there"})


def look(host: StandIn, path: str) -> Any:
    return host.there.get(path) or (404, {"message": "not there"})


# --- Hugging Face ----------------------------------------------------------------------------------


def endpoint(name: str, kind: str) -> dict[str, Any]:
    when = "2026-11-27T00:00:00.000Z"
    status = {"state": "pending", "message": "", "createdAt": when, "updatedAt": when, "url": None}
    model = {"repository": "acme/tickets", "framework": "custom", "revision": "main", "task": "text-generation"}
    return {"name": name, "type": kind, "status": status, "model": model, "healthRoute": "/health"}


HUGGING_FACE: list[Rule] = [
    ("GET", "/api/whoami-v2", lambda host, found, body: {"name": "acme", "type": "user"}),
    ("GET", r"(/endpoint/acme/[\w-]+)", lambda host, found, body: look(host, found[1])),
    ("DELETE", r"(/endpoint/acme/[\w-]+)", lambda host, found, body: drop(host, found[1])),
    ("POST", "/endpoint/acme", lambda host, found, body: make(host, f"/endpoint/acme/{body['name']}", endpoint(body["name"], body["type"]))),
]  # fmt: skip


@pytest.fixture
def hugging_face(tmp_path: Path) -> Iterator[tuple[StandIn, dict[str, str]]]:
    """A stand-in, and the environment in which huggingface_hub asks it."""
    with standing_in(StandIn(HUGGING_FACE)) as host:
        patch = tmp_path / "patch"
        patch.mkdir()
        (patch / "sitecustomize.py").write_text(
            f"import huggingface_hub.constants as c\nc.INFERENCE_ENDPOINTS_ENDPOINT = {host.url!r}\n"
        )
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        (bin_folder / "python").symlink_to(sys.executable)
        path = os.pathsep.join([str(patch), str(ROOT / "src")])
        yield host, {
            "HF_ENDPOINT": host.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_test", "PYTHONPATH": path, "PAUSE": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HOME": str(tmp_path / "hf"),
        }  # fmt: skip


def up(
    cli_process: Cli, artifact: Path, host: str, env: dict[str, str], *more: str
) -> subprocess.CompletedProcess[str]:
    return cli_process(
        "deploy", str(artifact), "--to", host, *more, "--name", "tickets", "--yes", "--out", f"up-{host}", env=env
    )


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("refuses", "left", "said"),
    [
        ({}, 1, "tickets pending"),
        ({r"POST /endpoint": [503, 429]}, 1, "again in"),
        ({r"POST /endpoint": [402]}, 0, "nothing was left behind"),
        ({r"POST /endpoint": [401]}, 0, "the token has expired"),
        ({r"POST /endpoint": [503] * 9}, 0, "nothing was left behind"),
    ],
)
def test_hugging_face_is_asked_again_when_busy_and_keeps_nothing_after_a_refusal(
    artifact: Path,
    cli_process: Cli,
    hugging_face: tuple[StandIn, dict[str, str]],
    refuses: dict[str, list[int]],
    left: int,
    said: str,
) -> None:
    host, environment = hugging_face
    host.refuses = refuses
    done = up(cli_process, artifact, "huggingface", environment, "--hub", "acme/tickets")
    assert done.returncode == (0 if left else 2), done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert len(host.there) == left
    if left:
        again = up(cli_process, artifact, "huggingface", environment, "--hub", "acme/tickets")
        assert again.returncode == 2 and "already" in again.stderr and len(host.there) == 1  # no second one


# --- Together --------------------------------------------------------------------------------------


def together_model(host: StandIn, body: dict[str, Any]) -> Any:
    kind = "WEIGHTS_TYPE_ADAPTER" if "ADAPTER" in json.dumps(body).upper() else "WEIGHTS_TYPE_MODEL"
    value = {
        "id": "ml_1", "name": f"acme/{body.get('name')}", "organizationId": "o", "projectId": "proj", "visibility": "VISIBILITY_PRIVATE",
        "weights": {"type": kind}, "baseModelId": "ml_base", "baseModel": "projects/pub/models/ml_base",
    }  # fmt: skip
    return make(host, "models/ml_1", value)


PROFILE = {
    "model": "projects/pub/models/ml_base", "modelName": "BASE", "quantization": "bf16", "config": "projects/pub/configs/cr_1",
    "gpuCount": 1, "gpuType": "H100", "parallelism": "TP1", "profileId": "p", "certifiedConfigRevisionId": "cr_1",
    "certifiedModelRevisionId": "r", "performanceBenchmarks": {},
}  # fmt: skip
CONFIG = {
    "id": "cr_1",
    "name": "c",
    "projectId": "pub",
    "configId": "c_1",
    "status": "ACTIVE",
    "referenceModelId": "ml_base",
}


def together_rules(base: str) -> list[Rule]:
    profile = {**PROFILE, "modelName": base}
    catalogue = {"data": [{"id": "ml_base", "name": base, "baseModel": "", "baseModelId": "ml_base", "capabilities": [], "deploymentProfiles": [profile]}]}  # fmt: skip

    def parts(host: StandIn, found: Any, body: Any) -> Any:
        item = [
            {"path": file["path"], "uploadId": "u",
             "parts": [{"partNumber": n + 1, "url": f"{host.url}/put/{file['path']}"} for n in range(file["numParts"])]}
            for file in body["files"]
        ]  # fmt: skip
        return {"files": item}

    def deployed(host: StandIn, found: Any, body: Any) -> Any:
        return make(host, "deployments/dep_1", {"id": "dep_1", "name": body["name"], "model": body["model"]})

    project = "/v2/projects/proj"
    return [
        ("GET", "/v2/supported-models", lambda host, found, body: catalogue),
        ("GET", r".*/whoami", lambda host, found, body: {"project": {"id": "proj", "slug": "acme", "name": "acme"}}),
        ("POST", f"{project}/models", lambda host, found, body: together_model(host, body)),
        ("GET", f"{project}/models/(ml_1)", lambda host, found, body: look(host, "models/ml_1")),
        ("DELETE", f"{project}/models/(ml_1)", lambda host, found, body: drop(host, "models/ml_1")),
        ("POST", f"{project}/models/upload/create", parts),
        ("PUT", "/put/.*", lambda host, found, body: {}),
        ("POST", f"{project}/models/upload/complete", lambda host, found, body: {"revisionId": "rev_1"}),
        ("GET", ".*/configs", lambda host, found, body: {"data": [CONFIG]}),
        ("GET", f"{project}/endpoints", lambda host, found, body: {"data": []}),
        ("POST", f"{project}/endpoints", lambda host, found, body: make(host, "endpoints/ep_1", {"id": "ep_1", "name": body["name"]})),
        ("POST", f"{project}/endpoints/ep_1/deployments", deployed),
        ("DELETE", f"{project}/endpoints/(ep_1)", lambda host, found, body: (host.there.pop("deployments/dep_1", None), drop(host, "endpoints/ep_1"))[1]),
    ]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("refuses", "left", "said"),
    [
        ({}, {"models/ml_1", "endpoints/ep_1", "deployments/dep_1"}, ""),
        ({"PUT /put": [503]}, {"models/ml_1", "endpoints/ep_1", "deployments/dep_1"}, ""),
        ({"POST .*/models$": [401]}, set(), "nothing was left behind"),
        ({"POST .*upload/create": [402]}, set(), "the model was deleted again"),
        ({"POST .*upload/complete": [400]}, set(), "the model was deleted again"),
        ({"POST .*/endpoints$": [402]}, set(), "the model was deleted again"),
        ({"POST .*/deployments": [402]}, set(), "the model was deleted again"),
        ({"POST .*/deployments": [402], "DELETE .*/models": [400]}, {"models/ml_1"}, "left behind, free of charge"),
    ],
)
def test_together_s_own_command_puts_it_up_or_undoes_what_it_made(
    artifact: Path, cli_process: Cli, tmp_path: Path, refuses: dict[str, list[int]], left: set[str], said: str
) -> None:
    tool = FOLDER / "together" / "bin"
    if not (tool / "tg").is_file():
        pytest.skip("together has no environment here: make test-hosts")
    base = json.loads((artifact / "artifact.json").read_text())["base"]["model"]
    with standing_in(StandIn(together_rules(base), refuses)) as host:
        environment = {
            "TOGETHER_BASE_URL": host.url, "TOGETHER_API_KEY": "k", "TOGETHER_PROJECT_ID": "proj", "HOME": str(tmp_path), "CI": "1",
            "PATH": f"{tool}{os.pathsep}{os.environ['PATH']}", "TOGETHER_TELEMETRY_DISABLED": "1", "PYTHONPATH": str(ROOT / "src"),
        }  # fmt: skip
        done = up(cli_process, artifact, "together", environment)
        assert set(host.there) == left, (done.stdout[-1500:], done.stderr[-2500:], host.asked)
        assert done.returncode == (0 if "endpoints/ep_1" in left else 2) and said in done.stderr
        if "endpoints/ep_1" in left:
            sent = [path for path in host.asked if path.startswith("PUT /put/")]
            assert any("model.safetensors" in path for path in sent)
            down = subprocess.run(
                ["bash", "up-together/down.sh"], env={**os.environ, **environment}, capture_output=True, text=True
            )
            assert down.returncode == 0, down.stderr
            assert not host.there


# --- RunPod ----------------------------------------------------------------------------------------


def runpod_made(host: StandIn, found: re.Match[str], body: Any) -> Any:
    """A template or an endpoint more, never the same again, as RunPod does it."""
    number = sum(path.startswith(found[1]) for path in host.there) + 1
    made = make(host, f"{found[1]}/{number}", {"id": f"{found[1]}-{number}", **body})
    return (504, {"message": "lost"}) if host.loses.pop(found[1], False) else made


def runpod_removed(host: StandIn, found: re.Match[str], body: Any) -> Any:
    used = {item["templateId"] for name, item in host.there.items() if name.startswith("endpoints/")}
    if found[2] in used:
        return 400, {"message": "the template is in use"}
    return drop(host, f"{found[1]}/{found[2].rpartition('-')[2]}")


RUNPOD: list[Rule] = [
    ("GET", "/(templates|endpoints)", lambda host, found, body: [item for name, item in host.there.items() if name.startswith(found[1])]),
    ("POST", "/(templates|endpoints)", runpod_made),
    ("DELETE", r"/(templates|endpoints)/([\w-]+)", runpod_removed),
]  # fmt: skip
BOTH = {"templates/1", "endpoints/1"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("refuses", "loses", "left"),
    by_day(
        [
            ({"POST /templates": [503], "POST /endpoints": [429]}, "", BOTH),
            ({}, "templates", BOTH),
            ({}, "endpoints", BOTH),
            ({"GET /endpoints": [503]}, "endpoints", BOTH),
            ({"POST /endpoints": [402]}, "", set()),
        ],
        2,
    ),
    ids=["busy", "template's answer lost", "endpoint's answer lost", "then busy", "refused"],
)
def test_runpod_gets_one_of_each_and_taking_it_down_leaves_nothing(
    artifact: Path, cli_process: Cli, tmp_path: Path, refuses: dict[str, list[int]], loses: str, left: set[str]
) -> None:
    with standing_in(StandIn(RUNPOD, refuses)) as host:
        host.loses = {loses: True}
        environment = {"RUNPOD_API": host.url, "RUNPOD_API_KEY": "good"}
        done = up(cli_process, artifact, "runpod", environment, "--hub", "acme/tickets")
        assert (done.returncode == 0) == bool(left), done.stderr
        assert set(host.there) == left
        if not left:
            return
        again = up(cli_process, artifact, "runpod", environment, "--hub", "acme/tickets")
        assert again.returncode == 2 and "already" in again.stderr and set(host.there) == left
        (*_, down) = [command for command, _ in find_host("runpod").commands(JOB)]
        subprocess.run(["bash", "-ec", down], cwd=tmp_path / "up-runpod", env={**os.environ, **environment}, check=True)
        assert not host.there


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("refuses", "loses", "left"),
    [({}, "", 1), ({"POST /deployments": [503]}, "", 1), ({}, "deployments", 1), ({"POST /deployments": [402]}, "", 0)],
    ids=["at once", "busy", "answer lost", "refused"],
)
def test_replicate_gets_one_deployment(tmp_path: Path, refuses: dict[str, list[int]], loses: str, left: int) -> None:
    def made(host: StandIn, found: re.Match[str], body: Any) -> Any:
        path = f"deployments/acme/{body['name']}"
        if path in host.there:
            return 422, {"detail": "there is one already"}
        make(host, path, body)
        return (504, {"detail": "lost"}) if host.loses.pop("deployments", False) else body

    rules: list[Rule] = [
        ("GET", "/(deployments/acme/[\\w-]+)", lambda host, found, body: look(host, found[1])),
        ("GET", "/models/acme/tickets/versions", lambda host, found, body: {"results": [{"id": "v1"}]}),
        ("POST", "/deployments", made),
    ]
    (tmp_path / "deploy.sh").write_text(find_host("replicate").project(JOB)["deploy.sh"])
    with standing_in(StandIn(rules, refuses)) as host:
        host.loses = {loses: True}
        variables = {**os.environ, "REPLICATE_API": host.url, "REPLICATE_API_TOKEN": "good", "ACCOUNT": "acme"}
        done = subprocess.run(["bash", tmp_path / "deploy.sh"], env=variables, capture_output=True, text=True)
        assert (done.returncode == 0) == bool(left), done.stderr
        assert len(host.there) == left and all(body["version"] == "v1" for body in host.there.values())


# --- containers ------------------------------------------------------------------------------------


def start_command(host: str, job: ServingJob) -> list[str]:
    """What the container of a project runs, as its file says."""
    files = find_host(host).project(job)
    if host == "compose":
        service = yaml.safe_load(files["compose.yaml"])["services"]["engine"]
        return ["llama-server", *service["command"]]
    documents = list(yaml.safe_load_all(files["service.yaml"]))
    pod = next(document for document in documents if document["kind"] == "Deployment")["spec"]["template"]["spec"]
    return list(pod["containers"][0]["command"])


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("host", ["compose", "kubernetes"])
def test_a_container_s_start_command_serves_the_model_to_the_official_client(host: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    openai = pytest.importorskip("openai")
    from tuneloop.models.files.names import packaged_gguf

    file = packaged_gguf()
    if file is None:
        pytest.skip("the packaged model is not installed")
    card = Machine(Card("l4", "a card", 24.0), 1)
    job = ServingJob(
        "tickets", "tickets-gguf-01", "gguf", "smollm2-135m", "", Size(0.1, 23040, 256), file=Path(file).name, machine=card, traffic=Replicas()
    )  # fmt: skip
    command = start_command(host, job)
    assert Path(command[0]).name == "llama-server" and f"/models/{job.file}" in command
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {f"/models/{job.file}": str(file), "0.0.0.0": "127.0.0.1", "8000": str(port)}  # the mount, and a free port
    text = [here.get(word, word) for word in command[1:]]
    assert shell(text)  # each is a text
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "llama_server.py"), *text],
        env={**os.environ, "LLAMA_API_KEY": "key"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="key", max_retries=0)
        deadline = time.monotonic() + 60 * slowness()
        while True:
            try:
                answer = client.chat.completions.create(
                    model=job.name, messages=[{"role": "user", "content": "Say hello."}], max_tokens=8, temperature=0
                )
                break
            except (openai.APIConnectionError, openai.InternalServerError):
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        assert answer.model == "tickets" and answer.choices[0].message.content.strip()
        assert re.match(r"stop|length", answer.choices[0].finish_reason)
        assert [model.id for model in client.models.list()] == ["tickets"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=str(client.base_url), api_key="other", max_retries=0).chat.completions.create(
                model=job.name, messages=[{"role": "user", "content": "x"}], max_tokens=1
            )
    finally:
        server.kill()
        server.wait()
