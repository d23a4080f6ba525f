"""From a run to a release and back, by the commands: each of them takes the release by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.errors import UserError
from tuneloop.core.files import read_json, write_json, write_yaml
from tuneloop.registry.registered import evaluation_place, find_run, is_run, open_registry, run_folder_of, version_of
from tuneloop.serving.server import serve_config

pytest.importorskip("mlflow", reason="needs MLflow")
MakeTuned = Callable[..., Path]


@pytest.fixture
def two_runs(make_tuned: MakeTuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_registry: Path) -> list[str]:
    """Two runs of one data set under `runs/`, each with another adapter."""
    shutil.copy(empty_registry, "mlflow.db")
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNELOOP_CACHE", str(tmp_path / "cache"))
    text = ["where is it", "it is broken", "thank you"]
    rows = [{"text": f"{text[i % 3]}, order {i * 37}", "label": ["late", "lost", "thanks"][i % 3]} for i in range(80)]
    data = {"split": {"val": 0.0, "test": 0.5}}
    for number, name in enumerate(("first", "second")):
        run = make_tuned(rows, data, name=f"runs/{name}", targets=["all-linear", "attention"][number])
        write_json(run / "run.json", {**read_json(run / "run.json"), "id": name, "key": str(number) * 64})
    return ["runs/first", "runs/second"]


def test_a_release_is_named_wherever_a_model_is(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    def ok(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    write_yaml(Path("suite.yaml"), {"version": 1, "name": "same", "metrics": [{"metric": "accuracy", "margin": 0.9}]})
    for run in two_runs:
        ok("evaluate", run, "--dataset", f"{run}/dataset", "--out", run)
    for run, other in zip(two_runs, reversed(two_runs), strict=True):
        ok("gate", run, "--against", other, "--suite", "suite.yaml", "--no-model")
        folder = ok("export", run, "--format", "adapter")["path"]
        ok("models", "register", folder, "--name", "support")
        ok("models", "promote", "support")
    model = ok("models", "support")["models"][0]
    assert model["aliases"] == {"candidate": "2", "champion": "2", "previous": "1"}
    assert [item["gate"]["status"] for item in model["history"] if item["action"] == "promote"] == ["pass", "pass"]

    rows = f"{two_runs[1]}/dataset"
    named = ok("evaluate", "support@champion", "--dataset", rows, "--out", "by-name")["metrics"]["accuracy"]
    assert named == ok("evaluate", "models:/support/2", "--dataset", rows, "--out", "by-number")["metrics"]["accuracy"]
    assert named == read_json(Path(two_runs[1]) / "eval.json")["metrics"]["accuracy"]
    judged = ok("gate", "models:/support@champion", "--against", "support@previous", "--suite", "suite.yaml", "--no-model", "-o", "g")  # fmt: skip
    assert judged["status"] == "pass"
    ok("merge", "support@champion", "support@previous", "--no-judge", "-o", "runs/both")
    assert "support@champion" in Path("runs/both/merge.json").read_text() and Path("runs/both/adapter").is_dir()
    assert serve_config(["models:/support@champion"], []).adapters == {"support": "models:/support@champion"}

    assert ok("models", "rollback", "support")["aliases"] == {"candidate": "2", "champion": "1"}
    back = ok("evaluate", "support@champion", "--dataset", rows, "--out", "after")
    assert back["metrics"]["accuracy"] == read_json(Path(two_runs[0]) / "eval.json")["metrics"]["accuracy"]


@pytest.mark.parametrize("damaged", ["[]", '{"key": "k"}', '{"version": 2, "key": "k", "model": "m"}'])
def test_a_damaged_run_is_refused_with_its_file(tmp_path: Path, damaged: str) -> None:
    assert not is_run(tmp_path, "k")
    write_json(tmp_path / "run.json", {"version": 1, "key": "k", "model": "m"})
    assert is_run(tmp_path, "k") and not is_run(tmp_path, "other")
    (tmp_path / "run.json").write_text(damaged)
    with pytest.raises(UserError) as caught:
        is_run(tmp_path, "k")
    assert str(tmp_path / "run.json") in str(caught.value.where)


def test_a_renamed_run_keeps_what_was_measured_of_it(two_runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its artifact, its release and a second look find it by what stands in its `run.json`."""
    run = Path(two_runs[0])
    assert main(["evaluate", str(run), "--dataset", f"{run}/dataset", "--few-shot", "1", "-q"]) == 0
    (evaluated,) = (run / "evals").iterdir()
    before = read_json(evaluated / "eval.json")
    assert main(["evaluate", str(run), "--dataset", f"{run}/dataset", "--out", str(run), "-q"]) == 0
    assert main(["export", str(run), "--format", "adapter", "-o", "artifact", "-q"]) == 0
    assert main(["models", "register", "artifact", "--name", "support", "-q"]) == 0

    renamed = run.rename("runs/of-last-week")
    assert find_run("first", "0" * 64) == renamed
    version = version_of(open_registry(), "support@candidate")
    assert run_folder_of(version) == renamed
    assert evaluation_place("support@candidate") == str(renamed)
    assert main(["models", "register", "artifact", "--name", "again", "-q"]) == 0
    assert run_folder_of(version_of(open_registry(), "again@candidate")) == renamed.resolve()
    assert main(["evaluate", str(renamed), "--dataset", f"{renamed}/dataset", "--few-shot", "1", "-q"]) == 0
    (found,) = (renamed / "evals").iterdir()
    assert found.name == evaluated.name and read_json(found / "eval.json")["key"] == before["key"]


def test_the_name_of_a_run_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outside = tmp_path.parent / "outside"
    outside.mkdir(exist_ok=True)
    write_json(outside / "run.json", {"version": 1, "id": "x", "key": "k"})
    Path("runs").mkdir()
    assert find_run("../../outside", "k") is None
