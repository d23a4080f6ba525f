"""The scripts that put a deployment up make the host's calls, with its own client, and undo them when one fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from host_definitions import in_environment
from stand_in import Rule, StandIn, standing_in

from tuneloop.deploy.deployment import Card, Machine, ServingJob, Size
from tuneloop.deploy.hosts import find_host


def sagemaker() -> list[Rule]:
    """SageMaker's API: all calls go to one place, and are named in a header."""

    def call(host: StandIn, found: re.Match[str], body: Any) -> Any:
        verb, kind = re.fullmatch(r"SageMaker\.(Create|Describe|Delete)(\w+)", host.asked[-1].split()[1]).groups()  # type: ignore[union-attr]
        nothing = 400, {"__type": "ValidationException", "message": "Could not find it"}
        if verb == "Describe":
            return host.there.get(kind, nothing)
        if verb == "Delete":
            return host.there.pop(kind, nothing)
        if kind in host.there:
            return 400, {"__type": "ValidationException", "message": "Cannot create already existing"}
        host.there[kind] = {f"{kind}Arn": "arn:aws:sagemaker:us-east-1:123456789012:model/tickets", **body}
        return (503, {"__type": "ServiceUnavailable"}) if host.loses.pop(kind, False) else host.there[kind]

    return [("POST", ".*", call)]


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
except (Exception, SystemExit) as error:
    print("refused:", error)
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "target_modules": ["q_proj", "v_proj"]}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


@pytest.mark.parametrize(
    ("refuses", "loses"),
    [("", ""), ("", "Model"), ("", "Endpoint"), ("CreateEndpointConfig", ""), ("CreateEndpoint", "")],
)
def test_sagemaker_makes_three_things_or_none(tmp_path: Path, refuses: str, loses: str) -> None:
    refused = {f"{refuses}$" if refuses else "nothing": [400] * 9}
    with standing_in(StandIn(sagemaker(), refused, loses={loses: True}, header="X-Amz-Target")) as host:
        file = script("sagemaker", "merged", tmp_path)
        variables = {
            "AWS_ENDPOINT_URL": host.url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t",
            "SAGEMAKER_ROLE": "arn:aws:iam::123456789012:role/tuning-role",
        }  # fmt: skip
        said = in_environment("boto3", RUN, file, **variables)
        if refuses:
            assert "refused:" in said and not host.there
            return
        assert set(host.there) == {"Model", "EndpointConfig", "Endpoint"} and "describe-endpoint" in said
        assert host.there["Model"]["PrimaryContainer"]["Environment"]["HF_TOKEN"] == "t"
        assert "is there already" in in_environment("boto3", RUN, file, **variables) and len(host.there) == 3
