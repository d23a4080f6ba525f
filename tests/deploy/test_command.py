"""`deploy` writes a project with its price, and putting it up leaves nothing behind when a step fails."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from local_http import Quiet, listening
from tuned_runs import MakeTuned

from tuneloop.deploy.record import HostedDeployment
from tuneloop.models.chat.template import load_template
from tuneloop.records.record import read_record

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


class RunPod(Quiet):
    """RunPod's REST API, as far as a deployment asks it; `refuses` names what it has no quota for."""

    asked: list[tuple[str, str, dict[str, object]]] = []  # noqa: RUF012
    refuses = ""

    def do_GET(self) -> None:
        self.answer(200, [])

    def do_POST(self) -> None:
        kind = self.path.strip("/")
        body = json.loads(self.body())
        RunPod.asked.append(("POST", kind, body))
        assert self.headers["Authorization"] == "Bearer good"
        if kind == RunPod.refuses:
            return self.answer(402, {"error": "not enough credits"})
        return self.answer(200, {"id": f"{kind}-1"})

    def do_DELETE(self) -> None:
        RunPod.asked.append(("DELETE", self.path.strip("/"), {}))
        self.answer(204, b"")


@pytest.fixture
def runpod() -> Iterator[dict[str, str]]:
    """The environment of a process that deploys to a stand-in on this machine."""
    RunPod.asked, RunPod.refuses = [], ""
    with listening(RunPod) as address:
        yield {"RUNPOD_API": address, "RUNPOD_API_KEY": "good"}


@pytest.fixture
def artifact(make_artifact: Callable[[str], Path]) -> Path:
    return make_artifact("merged")


def test_a_project_is_written_with_its_price_and_nothing_is_put_up(
    artifact: Path, cli: Cli, runpod: dict[str, str]
) -> None:
    arguments = ("deploy", str(artifact), "--to", "runpod", "--hub", "acme/tickets", "--dry-run", "--out", "mine")
    done = cli(*arguments, env=runpod)
    assert done.returncode == 0, done.stderr
    assert "nothing while no one asks, $" in done.stdout and "a month at most for 1 replica" in done.stdout
    assert not RunPod.asked and json.loads(Path("mine/endpoint.json").read_text())["workersMin"] == 0
    found = read_record(HostedDeployment, Path("mine"))
    assert found.host == "runpod" and found.usd_per_month and found.gpu and set(found.files) == {
        "README.md", "deploy.sh", "endpoint.json", "request.json", "template.json",
    }  # fmt: skip
    assert os.access("mine/deploy.sh", os.X_OK)
    assert cli(*arguments, "--json", env=runpod).returncode == 0  # the same again changes nothing
    Path("mine/endpoint.json").write_text("{}")
    again = cli(*arguments)
    assert again.returncode == 2 and "another endpoint.json" in again.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_putting_it_up_makes_template_and_endpoint(artifact: Path, cli: Cli, runpod: dict[str, str]) -> None:
    done = cli("deploy", str(artifact), "--to", "runpod", "--hub", "acme/tickets", "--yes", "--out", "up", env=runpod)
    assert done.returncode == 0, done.stderr
    (_, first, template), (_, second, endpoint) = RunPod.asked
    assert (first, second) == ("templates", "endpoints") and endpoint["templateId"] == "templates-1"
    assert template["env"]["MODEL_NAME"] == "acme/tickets"  # type: ignore[index]
    assert json.loads(Path("up/created.json").read_text()) == {"template": "templates-1", "endpoint": "endpoints-1"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_was_made_is_undone_when_a_later_step_fails(
    artifact: Path, cli_process: Cli, runpod: dict[str, str]
) -> None:
    RunPod.refuses = "endpoints"
    done = cli_process(
        "deploy", str(artifact), "--to", "runpod", "--hub", "acme/tickets", "--yes", "--out", "up", env=runpod
    )
    assert done.returncode == 2 and "not enough credits" in done.stdout + done.stderr
    assert "takes it down" in done.stderr and "Traceback" not in done.stderr
    assert RunPod.asked[-1][:2] == ("DELETE", "templates/templates-1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "runpod"], "--hub ORG/NAME"),
        (["--to", "runpod", "--hub", "tickets"], "Not a place on the hub"),
        (["--to", "rumpod", "--hub", "a/b"], "did you mean runpod?"),
        (["--to", "ollama"], "does not serve the format 'merged'"),
        ([], "name one of"),
        (["--to", "modal", "--hub", "a/b", "--gpu", "rtx4090"], "Modal has no RTX 4090"),
        (["--to", "modal", "--hub", "a/b", "--context", "99999999"], "not possible"),
        (["--to", "modal", "--hub", "a/b", "--min-replicas", "3", "--max-replicas", "2"], "least <= most"),
        (
            ["--to", "modal", "--hub", "a/b", "--queries-per-day", "9", "--prompt-tokens", "9999"],
            "don't fit into a context",
        ),
        (["--to", "modal", "--hub", "a/b", "--max-usd-per-month", "5"], "the limit is $5"),
        (["--to", "runpod", "--hub", "a/b", "--yes"], "RUNPOD_API_KEY is not set"),
    ],
)
def test_what_can_t_be_deployed_is_said_in_three_lines(
    artifact: Path, cli: Cli, arguments: list[str], said: str
) -> None:
    done = cli("deploy", str(artifact), *arguments, env={"RUNPOD_API_KEY": ""})
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4 and "Traceback" not in done.stderr


def test_on_own_machines_the_price_is_said_to_be_a_rented_card_s_or_is_the_user_s(artifact: Path, cli: Cli) -> None:
    arguments = ("deploy", str(artifact), "--to", "kubernetes", "--hub", "a/b", "--gpu", "l4", "--dry-run")
    said = cli(*arguments)
    assert "machines of your own" in said.stdout and "Rented, such a card costs $" in said.stdout
    mine = cli(*arguments, "--usd-per-hour", "0.25", "--out", "mine")
    assert "$0.25 an hour and card, as you say" in mine.stdout and "$182 a month" in mine.stdout
    assert read_record(HostedDeployment, Path("mine")).usd_per_hour == 0.25


@pytest.mark.parametrize("labels", [False, True])
def test_a_classifier_s_adapter_is_served_as_it_was_evaluated(make_tuned: MakeTuned, cli: Cli, labels: bool) -> None:
    data = {} if labels else {"input": "{text}", "output": "It is {label}.", "task": "generation"}
    run = make_tuned(data=data)
    assert cli("export", str(run), "--format", "adapter", "--out", "artifact", "--force").returncode == 0
    done = cli("deploy", "artifact", "--to", "kubernetes", "--hub", "a/b", "--priorities", "--dry-run", "--out", "mine")
    assert done.returncode == 0, done.stderr
    resources = {item["kind"]: item for item in yaml.safe_load_all(Path("mine/service.yaml").read_text())}
    command = shlex.join(resources["Deployment"]["spec"]["template"]["spec"]["containers"][0]["command"])
    assert ("""--hf-overrides '{"head_dtype": "float32"}' --max-logprobs 128""" in command) == labels
    assert "--scheduling-policy priority" in command and "--tokenizer a/b" in command and "--max-loras 2" in command
    request = json.loads(Path("mine/request.json").read_text())
    assert request["stop_token_ids"] == list(load_template(Path("artifact")).end_ids)


def test_a_changed_artifact_is_not_deployed(artifact: Path, cli: Cli) -> None:
    (artifact / "config.json").write_text("{}")
    done = cli("deploy", str(artifact), "--to", "modal", "--hub", "a/b", "--dry-run")
    assert done.returncode == 2 and "not as it was exported" in done.stderr


def test_the_price_at_the_given_traffic_is_that_of_the_replicas_it_needs(artifact: Path, cli: Cli) -> None:
    tokens = ("--prompt-tokens", "40", "--answer-tokens", "20")
    arguments = ("deploy", str(artifact), "--to", "modal", "--hub", "a/b", "--gpu", "t4", "--dry-run", *tokens)

    def needed(requests: float, *more: str) -> HostedDeployment:
        done = cli(*arguments, "--queries-per-day", str(requests), "--out", f"out-{requests}-{len(more)}", *more)
        assert done.returncode == 0, done.stderr
        assert f"{requests:,.0f} requests a day of 40 + 20 tokens need" in done.stdout
        assert ("is too few" in done.stdout) == bool(more)
        return read_record(HostedDeployment, Path(f"out-{requests}-{len(more)}"))

    few, many = needed(1000), needed(1e10)
    assert few.replicas_needed == 1 and few.replicas == (1, 1)
    assert many.replicas_needed is not None and many.replicas_needed > 1 and many.replicas == (1, many.replicas_needed)
    twice = needed(2e10)
    assert twice.replicas_needed == pytest.approx(2 * many.replicas_needed, rel=0.02, abs=1)
    assert many.usd_per_month and few.usd_per_month
    assert many.usd_per_month[1] == pytest.approx(many.replicas_needed * few.usd_per_month[1], rel=1e-4)
    assert needed(1e10, "--max-replicas", "1").replicas == (1, 1)
