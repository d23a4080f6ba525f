"""SkyPilot's own package starts a run after its price and a yes; what fails leaves nothing that costs money."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sky_stand_in
from host_definitions import in_environment
from sky_stand_in import StandInSky

from places import ROOT
from tuneloop.deploy.clusters import ClusterJob, find_cluster
from tuneloop.deploy.launch import Launch, launch_by_commands
from tuneloop.deploy.skypilot_sdk import load_sky

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SECRETS = {"HF_TOKEN": "hf_test", "VLLM_API_KEY": "key"}


def test_what_a_hosts_commands_print_is_not_on_the_output_of_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch_by_commands(Launch("Host", "echo started   # and more", "echo gone"), tmp_path)
    printed = capfd.readouterr()
    assert "started" in printed.err and "started" not in printed.out


@pytest.fixture
def sky(monkeypatch: pytest.MonkeyPatch) -> StandInSky:
    return sky_stand_in.installed(monkeypatch, StandInSky())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    texts = [f"The {'late' if n % 2 else 'early'} parcel number {n}" for n in range(60)]
    path.write_text("".join(json.dumps({"text": text, "label": "ab"[n % 2]}) + "\n" for n, text in enumerate(texts)))
    return path


@pytest.fixture
def start(cli: Cli, rows: Path, tiny_llama: Path) -> Callable[..., Any]:
    """Run the command that starts something of a kind."""

    def run(kind: str, *more: str, env: dict[str, str] = SECRETS) -> subprocess.CompletedProcess[str]:
        spot = ["--spot", "--bucket", "s3://acme"] if kind == "job" else []
        return cli("run", str(rows), f"model={tiny_llama}", "--on", "skypilot", *spot, *more, env=env)

    return run


KINDS = ("cluster", "job")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_started_with_its_secrets_after_the_price_is_said(
    sky: StandInSky, start: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    done = start(kind, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)  # one object, whatever SkyPilot prints
    assert sky.there == {"rows": kind}
    assert "AWS us-east-1 g6.xlarge now: $2 an hour" in done.stderr and "it is there" in done.stderr
    task = dict(sky.asked)["launch"]
    assert task.secrets["HF_TOKEN"] == "hf_test"
    assert Path(task.config["workdir"], "recipe.yaml").is_file()
    files = [path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".yaml", ".json", ".md")]
    assert not any("hf_test" in text for text in files), "the secret is sent, not written"


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_yes_or_with_dry_run_nobody_is_asked(sky: StandInSky, start: Callable[..., Any], kind: str) -> None:
    assert start(kind).returncode == 0 and start(kind, "--dry-run", "--yes").returncode == 0
    assert not sky.asked and not sky.there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("usd", [1e6, None])
def test_a_price_above_the_limit_starts_nothing(
    sky: StandInSky, start: Callable[..., Any], kind: str, usd: float | None
) -> None:
    sky.usd_per_hour = usd
    done = start(kind, "--yes", "--max-usd", "1")
    assert done.returncode == 2 and "The limit is $" in done.stderr and "nothing was started" in done.stderr
    assert ("names no price" in done.stderr) == (usd is None)
    assert "launch" not in sky.names() and not sky.there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        ("optimize", sky_stand_in.NoCloudAccessError("Run: \x1b[1msky check"), "access to no cloud here (Run: sky check)"),
        ("optimize", sky_stand_in.ApiServerAuthenticationError("401"), "the token has expired"),
        ("optimize", sky_stand_in.ResourcesUnavailableError("no L4"), "No cloud of yours has this machine now"),
    ],
)  # fmt: skip
def test_who_has_no_right_there_is_told_before_anything_begins(
    sky: StandInSky, start: Callable[..., Any], kind: str, request_: str, error: Exception, said: str
) -> None:
    sky.refuses[request_] = error
    done = start(kind, "--yes")
    assert done.returncode == 2 and said in done.stderr and "nothing was started" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "launch" not in sky.names() and not sky.there


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half_done", [False, True])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (sky_stand_in.CommandError("pip install failed"), "SkyPilot refuses: CommandError: pip install failed"),
        (sky_stand_in.StorageError("AccessDenied"), "The bucket can't be used (AccessDenied)"),
        (KeyboardInterrupt(), "nothing was left there"),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    sky: StandInSky, start: Callable[..., Any], kind: str, half_done: bool, error: BaseException, said: str
) -> None:
    sky.refuses["launch"], sky.half_done = error, half_done
    done = start(kind, "--yes")
    assert done.returncode in (2, 130) and said in done.stderr and "nothing was left there" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert not sky.there and "api_cancel" in sky.names()


@pytest.mark.parametrize(("kind", "undo"), [("cluster", "down"), ("job", "jobs.cancel")])
def test_where_undoing_fails_too_what_is_left_is_named_with_its_command(
    sky: StandInSky, start: Callable[..., Any], kind: str, undo: str
) -> None:
    sky.refuses |= {"launch": sky_stand_in.CommandError("broken"), undo: RuntimeError("no connection")}
    done = start(kind, "--yes")
    assert done.returncode == 2 and sky.there == {"rows": kind}
    assert f"still there, and perhaps paid: the {kind} rows" in done.stderr
    assert {"cluster": "`sky down rows`", "job": "`sky jobs cancel -n rows`"}[kind] in done.stderr


def test_what_is_there_already_is_neither_used_nor_taken_down(sky: StandInSky, start: Callable[..., Any]) -> None:
    sky.there["rows"] = "cluster"
    done = start("cluster", "--yes")
    assert done.returncode == 2 and "There is a cluster named rows already" in done.stderr
    assert sky.there == {"rows": "cluster"} and "launch" not in sky.names()


def test_of_managed_jobs_only_the_new_one_is_cancelled(sky: StandInSky, start: Callable[..., Any]) -> None:
    sky.refuses["jobs.queue_v2"] = sky_stand_in.ClusterNotUpError("no controller yet")
    assert start("job", "--yes").returncode == 0 and sky.there == {"rows": "job"}
    del sky.refuses["jobs.queue_v2"]
    sky.refuses["launch"], sky.half_done = sky_stand_in.CommandError("broken"), False
    assert start("job", "--yes").returncode == 2
    assert sky.there == {"rows": "job"}, "the first one goes on"


def test_a_secret_that_is_not_set_is_named_before_anything_is_asked(sky: StandInSky, start: Callable[..., Any]) -> None:
    done = start("cluster", "--yes", env={"HF_TOKEN": ""})
    assert done.returncode == 2 and "HF_TOKEN is not set" in done.stderr and not sky.asked


def test_without_the_package_the_commands_are_run(start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("sky") is not None:
        pytest.skip("skypilot is installed here")
    assert load_sky() is None
    done = start("cluster", "--yes")
    assert done.returncode == 2 and "No command 'sky' here" in done.stderr


def test_the_real_package_takes_each_call_and_the_task(tmp_path: Path) -> None:
    """The calls of `skypilot_sdk`, and those of the stand-in, bind to the functions of skypilot itself."""
    for name, text in find_cluster("skypilot").project(ClusterJob("tickets", "h100-sxm", max_usd_per_hour=3)).items():
        (tmp_path / name).write_text(text)
    code = """
import inspect, sys, yaml
from pathlib import Path
from typing import Any
from tuneloop.deploy import skypilot_sdk as ours
sky = ours.load_sky()
for call, arguments, named in [
    (sky.optimize, [0], {}), (sky.launch, [0], {"cluster_name": "a"}), (sky.jobs.launch, [0], {"name": "a"}),
    (sky.status, [["a"]], {}), (sky.down, ["a"], {}), (sky.jobs.cancel, [], {"job_ids": [1]}), (sky.api_cancel, ["r"], {"silent": True}),
    (sky.jobs.queue_v2, [], {"refresh": False, "skip_finished": True, "name_match": "a"}), (sky.get, ["r"], {}),
    (sky.stream_and_get, ["r"], {}), (sky.Task.from_yaml_config, [{}], {"secrets_overrides": []}), (sky.Dag.add, [0, 0], {}),
]:
    inspect.signature(call).bind(*arguments, **named)
missing = [name for names, *_ in ours._MEANINGS for name in names.split() if not hasattr(sky.exceptions, name)]
assert not missing and hasattr(sky.exceptions, "ClusterNotUpError"), missing
import os
os.environ["HF_TOKEN"] = "hf_test"
task = ours._task(sky, ours.SkyJob("sky.yaml", "tickets", "cluster", ("HF_TOKEN",)), Path(sys.argv[1]))
best = list(task.resources)[0]
assert best.max_hourly_cost == 3 and best.autostop_config.down and task.workdir == sys.argv[1], task
assert callable(best.get_cost) and hasattr(task, "best_resources") and task.num_nodes == 1
"""
    in_environment("skypilot", code, tmp_path, PYTHONPATH=str(ROOT / "src"), HOME=str(tmp_path))
