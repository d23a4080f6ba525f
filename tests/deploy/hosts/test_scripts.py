"""The scripts that put a deployment up make the host's calls, with its own client, and undo them when one fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from host_definitions import in_environment
from local_http import Quiet, listening

from tuneloop.deploy.deployment import Card, Machine, ServingJob, Size
from tuneloop.deploy.hosts import find_host


@dataclass
class StandIn:
    """A server that answers what it is told to, and keeps what it was asked."""

    url: str = ""
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    refuses: str = ""
    links: bool = False  # answers are the addresses that files are sent to

    def answer(self, what: str) -> tuple[int, object]:
        if self.refuses and what.split("?")[0].endswith(self.refuses):
            return 400, {"__type": "ResourceLimitExceeded", "message": "no quota", "error": {"message": "no quota"}}
        if "getUploadEndpoint" in what:
            names = json.loads(self.asked[-1][2])["filenameToSize"]
            return 200, {"filenameToSignedUrls": {name: f"{self.url}/put/{name}" for name in names}}
        return 200, {
            "name": "accounts/acme/models/tickets",
            "ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/tickets",
        }


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    state = StandIn()

    class Handler(Quiet):
        def handle_any(self) -> None:
            what = self.headers.get("X-Amz-Target") or self.path
            state.asked.append((self.command, what, self.body()))
            self.answer(*state.answer(what))

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

    with listening(Handler) as state.url:
        yield state


def script(host: str, form: str, folder: Path) -> Path:
    key = next(key for key in ("h100-sxm", "a100-80gb") if key in find_host(host).gpus)
    machine = Machine(Card(key, "a card", 80.0), 1)
    job = ServingJob(
        "tickets", "tickets-0123", form, "meta-llama/Llama-3.1-8B-Instruct", "acme/tickets", Size(15.0, 1e5, 4096),  # type: ignore[arg-type]
        rank=16, machine=machine,
    )  # fmt: skip
    for name, text in find_host(host).project(job).items():
        (folder / name).write_text(text)
    return folder / "deploy.py"


RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except Exception as error:
    print("refused:", error)
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "target_modules": ["q_proj", "v_proj"]}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize("refuses", ["", "deployments", "validateUpload"])
def test_fireworks_gets_the_files_and_a_deployment_or_nothing(
    stand_in: StandIn, adapter: Path, tmp_path: Path, refuses: str
) -> None:
    stand_in.refuses = refuses
    said = in_environment(
        "fireworks-ai", RUN, script("fireworks", "adapter", tmp_path), adapter, FIREWORKS_URL=stand_in.url, FIREWORKS_API_KEY="k",
        FIREWORKS_ACCOUNT_ID="acme", FIREWORKS_BASE="accounts/fireworks/models/llama-v3p1-8b-instruct",
    )  # fmt: skip
    methods = [(method, what.split("?")[0].rpartition("/")[2]) for method, what, _ in stand_in.asked]
    sent = {what.rpartition("/")[2]: body for method, what, body in stand_in.asked if method == "PUT"}
    assert sent == {path.name: path.read_bytes() for path in adapter.iterdir()}
    made = json.loads(stand_in.asked[0][2])
    assert made["modelId"] == "tickets" and made["model"]["peftDetails"]["r"] == 16
    if refuses:
        assert "refused:" in said and methods[-1] == ("DELETE", "tickets")
    else:
        deployment = json.loads(stand_in.asked[-1][2])
        assert methods[-1] == ("POST", "deployments")
        assert deployment["enableAddons"] is True and deployment["acceleratorType"] == "NVIDIA_H100_80GB"


@pytest.mark.parametrize("refuses", ["", "CreateEndpointConfig", "CreateEndpoint"])
def test_sagemaker_makes_three_things_or_none(stand_in: StandIn, tmp_path: Path, refuses: str) -> None:
    stand_in.refuses = f"SageMaker.{refuses}" if refuses else ""
    said = in_environment(
        "boto3", RUN, script("sagemaker", "merged", tmp_path), AWS_ENDPOINT_URL=stand_in.url, AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s", SAGEMAKER_ROLE="arn:aws:iam::123456789012:role/tuning-role", HF_TOKEN="t", AWS_MAX_ATTEMPTS="1",
    )  # fmt: skip
    calls = [what.removeprefix("SageMaker.") for _, what, _ in stand_in.asked]
    made = [call for call in calls if call.startswith("Create")]
    if not refuses:
        assert calls == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"] and "describe-endpoint" in said
        assert json.loads(stand_in.asked[0][2])["PrimaryContainer"]["Environment"]["HF_TOKEN"] == "t"
        return
    undone = [call.replace("Delete", "Create") for call in calls if call.startswith("Delete")]
    assert (
        "refused:" in said
        and undone == [call for call in reversed(made) if call not in refuses.split()][-len(undone) :]
    )
    assert len(undone) == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"].index(refuses)
