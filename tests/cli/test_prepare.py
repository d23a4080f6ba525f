"""prepare as a command: what it says, and its exit status when a check is at `error`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tuneloop.cli.main import main

KEY = "ghp_" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1zA3"
WORDS = [
    "amber",
    "basil",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "hazel",
    "indigo",
    "jade",
    "karst",
    "lemon",
    "maple",
    "nectar",
    "olive",
    "pearl",
    "quartz",
    "river",
]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty good rows, one of which holds a key."""
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(60):
        said = " ".join(WORDS[(i * k + k * k) % 18] for k in range(2, 9))
        lines.append(
            {"text": f"{said} {i * 37 % 101}" + (f" {KEY}" if i == 7 else ""), "label": ["late", "refund"][i % 2]}
        )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_error_is_shouted_and_the_status_is_1_when_all_is_written(
    source: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", str(tiny_llama), "duplicates.near=false")
    assert main(["prepare", str(source), "-o", "good", *model]) == 0
    assert "ERROR" not in capsys.readouterr().err
    assert main(["prepare", str(source), "-o", "bad", *model, "personal.mode=off", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "ERROR secrets" in err and KEY not in out + err
    assert Path("bad/dataset.json").is_file() and Path("bad/report.html").is_file()
    assert main(["prepare", str(source), "-o", "bad", *model, "personal.mode=off", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if check["level"] == "error"] == ["secrets"]


def test_run_and_train_refuse_data_with_an_error(
    source: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        str(source),
        f"model={tiny_llama}",
        "data.personal.mode=off",
        "data.duplicates.near=false",
        "output_dir=one",
    )
    for verb in ("run", "train"):
        assert main([verb, *settings]) == 2
        err = capsys.readouterr().err
        assert "1 check at error: secrets" in err and "data.allow_errors=true" in err
        assert not list(Path("one").glob("plan.json")) and not list(Path("one").glob("metrics.jsonl"))


@pytest.mark.slow
def test_a_data_set_prepared_by_itself_is_logged_to_mlflow_when_asked(
    source: Path, tiny_llama: Path, request: pytest.FixtureRequest
) -> None:
    mlflow = pytest.importorskip("mlflow")
    shutil.copy(request.getfixturevalue("empty_registry"), "mlflow.db")
    assert main(["prepare", str(source), "-o", "set", "--model", str(tiny_llama), "--track", "--quiet"]) == 0
    manifest = json.loads(Path("set/dataset.json").read_text())
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path('mlflow.db').resolve()}")
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (logged,) = run.inputs.dataset_inputs
    assert logged.dataset.name == manifest["id"] and logged.dataset.digest == manifest["hash"][:36]
    assert json.loads(logged.dataset.source)["uri"] == Path("set").resolve().as_uri()
    assert json.loads(logged.dataset.profile)["counts"] == manifest["counts"] and run.info.status == "FINISHED"


@pytest.mark.parametrize("command", ["prepare", "run"])
def test_a_column_that_is_not_there_is_said_before_a_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mails.csv").write_text("Nachricht,Team\n" + "".join(f"die Lampe {i} ist kaputt,Nord\n" for i in range(9)))
    settings = ["data.text=Nachrich", "data.label=Team", "model=no/such-model"]
    assert main([command, "mails.csv", *settings]) == 2
    assert "did you mean 'Nachricht'" in capsys.readouterr().err
