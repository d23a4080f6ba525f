"""A run is done again with the same bits, wherever it lies; what is no longer as it was is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, read_jsonl, write_json, write_jsonl
from tuneloop.core.ui import reporting
from tuneloop.pipeline.train import train_alone
from tuneloop.recipe import make_recipe
from tuneloop.release.export import export_run

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A folder with `cases.jsonl` and two trained runs: `plain`, and `timed` with a limit on its time."""
    path = tmp_path_factory.mktemp("reproduce")
    rows = [{"text": f"Case {i} of {i * 37 % 101}: where is it?", "label": ["late", "lost"][i % 2]} for i in range(40)]
    write_jsonl(path / "cases.jsonl", rows)
    for name, limit in (("plain", {}), ("timed", {"max_minutes": 0.04})):
        values = {
            "name": "cases", "model": str(tiny_llama), "output_dir": str(path / name), "data": {"sources": [str(path / "cases.jsonl")]},
            "train": {"epochs": 3, "learning_rate": 0.01, "rank": 4, "evaluations": 2, "rows_per_step": 4, "dropout": 0.1, **limit},
            "track": {"report_to": "none"},
        }  # fmt: skip
        with reporting(progress=lambda *_, **__: None):
            train_alone(make_recipe(values))
    return path


@pytest.fixture
def path(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in which things may change. The runs name the source where it was first."""
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def again(said: Said, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What `reproduce --json` prints."""
    assert main(["models", "reproduce", *arguments, "--json"]) == status, said.readouterr().err
    found: dict[str, Any] = json.loads(said.readouterr().out)
    return found


@pytest.mark.parametrize("run", ["plain", "timed"])
def test_a_run_in_another_folder_gives_the_same_bits_again(run: str, path: Path, capsys: Said) -> None:
    first = read_json(path / run / "run.json")
    shutil.move(run, "elsewhere")
    found = again(capsys, "elsewhere")
    assert (found["verdict"], found["largest"], found["first_step"]) == ("identical", 0.0, None)
    assert found["losses"] >= first["steps"] + 2 and found["rows_from"] == "splits" and not found["differences"]
    second = Path("reproductions") / first["id"]
    assert read_json(second / "run.json")["adapter_hash"] == first["adapter_hash"]
    assert read_json(second / "reproduction.json") == found
    assert read_json(second / "schedule.json")["follow"] is True and "follow" not in read_json(
        Path("elsewhere/schedule.json")
    )


def test_a_limited_run_is_cut_where_the_first_one_was_and_not_by_the_clock(path: Path, capsys: Said) -> None:
    """As if the machine had slowed down in the middle of the first run."""
    schedule = read_json(path / "plain" / "schedule.json")
    assert schedule["planned_steps"] > 5
    cut = {"step": 3, "turn": [3, 3.0], "total_steps": 5, "due": schedule["due"]}
    write_json(path / "plain" / "schedule.json", {**schedule, "changes": [cut]})
    assert again(capsys, "plain", status=1)["verdict"] == "different"
    run = read_json(Path("reproductions") / "plain" / "run.json")
    assert (run["steps"], run["planned_steps"]) == (5, schedule["planned_steps"])


def test_changed_and_missing_sources_are_named_and_the_prepared_rows_serve(
    path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_json(path / "plain" / "dataset" / "dataset.json")
    source = manifest["sources"][0]
    write_json(
        path / "plain" / "dataset" / "dataset.json", {**manifest, "sources": [{**source, "path": "cases.jsonl"}]}
    )
    assert again(capsys, "plain", "--check")["sources"] == [{"name": "cases.jsonl", "state": "same"}]
    with Path("cases.jsonl").open("a") as file:
        file.write("{}\n")
    found = again(capsys, "plain", "--check")
    assert found["sources"][0]["state"] == "changed" and found["rows_from"] == "splits"
    Path("cases.jsonl").unlink()
    assert main(["models", "reproduce", "plain", "--check"]) == 0
    out, err = capsys.readouterr()
    assert "missing   source cases.jsonl" in err and "can be trained again from its splits" in out
    with Path("plain/dataset/train.jsonl").open("a") as file:
        file.write("\n")
    assert main(["models", "reproduce", "plain"]) == 2
    err = capsys.readouterr().err
    message = err[err.index("Error:") :]
    assert (
        "train.jsonl changed" in message and "cases.jsonl missing" in message and len(message.strip().splitlines()) == 3
    )
    assert not Path("reproductions").exists()


def test_without_its_prepared_rows_the_sources_are_prepared_again(path: Path, capsys: Said) -> None:
    Path("plain/dataset/train.jsonl").unlink()
    found = again(capsys, "plain", "--out", "second")
    assert (found["verdict"], found["rows_from"]) == ("identical", "sources")
    assert Path("second/dataset/train.jsonl").is_file()


def test_losses_that_depart_are_named_by_their_first_step(path: Path, capsys: Said) -> None:
    write_json(path / "plain" / "run.json", {**read_json(path / "plain" / "run.json"), "adapter_hash": "0" * 64})
    lines = read_jsonl(path / "plain" / "metrics.jsonl")
    for line in lines:
        if line["step"] >= 4 and "loss" in line:
            line["loss"] *= 1.0001
    write_jsonl(path / "plain" / "metrics.jsonl", lines)
    close = again(capsys, "plain")
    assert (close["verdict"], close["first_step"]) == ("equal", 4) and 5e-5 < close["largest"] < 2e-4
    apart = again(capsys, "plain", "--tolerance", "1e-6", status=1)
    assert (apart["verdict"], apart["first_step"]) == ("different", 4)
    assert main(["models", "reproduce", "plain", "--tolerance", "1e-6"]) == 1
    assert "departs at step 4" in capsys.readouterr().out


def test_it_trains_with_as_many_threads_as_the_run_did(
    path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = read_json(path / "plain" / "environment.json")
    assert environment["threads"] >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("tuneloop.core.machine.cores", lambda: 2)
    write_json(path / "plain" / "environment.json", {**environment, "threads": 1, "cores": 2})
    found = again(capsys, "plain")
    second = read_json(Path(found["second"]) / "environment.json")
    assert second["threads"] == 1 and os.environ["OMP_NUM_THREADS"] == "2" and not found["differences"]
    write_json(path / "plain" / "environment.json", {**environment, "threads": 64, "cores": 64})
    differing = {item["name"]: item["then"] for item in again(capsys, "plain", "--check")["differences"]}
    assert differing == {"cores": "64", "threads": "64"}


def test_another_environment_is_named(path: Path, capsys: Said) -> None:
    environment = read_json(path / "plain" / "environment.json")
    packages = {**environment["packages"], "torch": "2.0.0"}
    write_json(path / "plain" / "environment.json", {**environment, "cpu": "Ancient", "packages": packages})
    found = again(capsys, "plain", "--check")
    assert {match["name"]: match["then"] for match in found["differences"]} == {"cpu": "Ancient", "torch": "2.0.0"}
    assert "verdict" not in found, "nothing was trained"


Change = Callable[[Path], None]


def _other_settings(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("rank: 4", "rank: 2"))


def _unfinished(run: Path) -> None:
    (run / "run.json").unlink()


def _no_data(run: Path) -> None:
    shutil.rmtree(run / "dataset")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_settings, "This would be another run"),
        (_unfinished, "has not finished training"),
        (_no_data, "data set of this run is not here"),
    ],
)
def test_what_can_t_be_done_again_is_told_in_three_lines(change: Change, said: str, path: Path, capsys: Said) -> None:
    change(path / "plain")
    assert main(["models", "reproduce", "plain"]) == 2
    err = capsys.readouterr().err
    message = err[err.index("Error:") :]
    assert said in message and "next:" in message and len(message.strip().splitlines()) <= 3


@pytest.mark.slow  # imports MLflow
@pytest.mark.parametrize("upload", [["data"], []])
def test_a_colleague_fetches_the_rows_from_mlflow_where_the_run_left_them(
    upload: list[str], path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("mlflow", reason="needs MLflow")
    from tuneloop.track import follow, mlflow

    shutil.copy(request.getfixturevalue("empty_registry"), "mlflow.db")
    monkeypatch.setenv("TUNELOOP_CACHE", str(path / "cache"))
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    manifest = read_json(path / "plain" / "dataset" / "dataset.json")
    source = {**manifest["sources"][0], "path": "only/where/it/was/prepared.jsonl"}
    write_json(path / "plain" / "dataset" / "dataset.json", {**manifest, "sources": [source]})
    config = {"name": "cases", "track": {"upload": upload}, "data": {"sources": ["cases.jsonl"]}}
    settings = {"run": str(path / "plain"), "config": config, "experiment": "cases", "uri": "", "started": 0}
    follower = follow.make_follower(settings)
    mlflow.open_run(follower)
    mlflow.close_run(follower, "FINISHED")
    artifact = str(export_run(path / "plain", "adapter").folder)
    assert main(["models", "register", artifact, "--name", "cases", "--run", "plain", "--quiet"]) == 0
    shutil.rmtree("plain")
    capsys.readouterr()
    if upload:
        found = again(capsys, "cases@candidate")
        assert found["verdict"] == "identical" and {file["state"] for file in found["splits"]} == {"same"}
    else:
        assert main(["models", "reproduce", "cases@candidate"]) == 2
        assert "train.jsonl missing" in capsys.readouterr().err
