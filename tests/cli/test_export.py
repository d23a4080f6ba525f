"""`tuneloop export`: the gate is heard, an overruled one is recorded, and what can't be exported is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneloop.cli.main import main
from tuneloop.core.files import read_json, sha256_file, write_json

MakeRun = Callable[..., Path]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def judged(run: Path, status: str) -> None:
    """The gate's word on a run."""
    checks = [{"kind": "metric", "name": "accuracy", "status": status, "message": "accuracy: -0.2 against the base"}]
    outcome = {"version": 1, "status": status, "suite": {"name": "release", "hash": "h"}, "checks": checks}
    write_json(run / "gate.json", {**outcome, "evaluation": sha256_file(run / "eval.json")})


@pytest.mark.parametrize(("status", "said"), [("fail", "gate is red"), ("inconclusive", "not enough evidence")])
def test_a_gate_that_is_not_green_stops_it_unless_overruled_and_that_is_recorded(
    status: str, said: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    judged(run, status)
    assert main(["export", str(run)]) == 2
    err = capsys.readouterr().err
    assert said in err and "accuracy: -0.2 against the base" in err and "--force" in err
    assert not Path("artifacts").exists()
    assert main(["export", str(run), "--force", "--json"]) == 0
    out, err = capsys.readouterr()
    artifact = json.loads(out)
    assert "overruled" in err
    assert artifact["gate"] == {"status": status, "suite": {"name": "release", "hash": "h"}, "forced": True}
    assert read_json(Path(artifact["path"]) / "artifact.json")["gate"]["forced"] is True
    assert "overruled" in (Path(artifact["path"]) / "README.md").read_text()


def test_force_on_a_green_gate_overrules_nothing(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    judged(run, "pass")
    assert main(["export", str(run), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["forced"] is False


def test_a_run_that_was_evaluated_since_the_gate_is_not_released(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    judged(run, "pass")
    write_json(run / "eval.json", {**read_json(run / "eval.json"), "n": 41})
    assert main(["export", str(run)]) == 2
    assert "earlier evaluation" in capsys.readouterr().err


def test_a_red_gate_stops_the_second_export_too(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    assert main(["export", str(run)]) == 0
    judged(run, "fail")
    assert main(["export", str(run)]) == 2
    assert "gate is red" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["missing", "unfinished", "no result", "format", "merged prefix", "file"])
def test_what_can_t_be_exported_is_told_in_three_lines(
    case: str, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[str]
    if case == "missing":
        arguments, said = ["nowhere"], "There is no run here"
    elif case == "unfinished":
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / "config.yaml").write_text("version: 1\n")
        arguments, said = ["begun"], "has not finished training"
    elif case == "no result":
        run = make_run()
        (run / "adapter" / "adapter_config.json").unlink()
        arguments, said = [str(run)], "No adapter and no model"
    elif case == "format":
        arguments, said = [str(make_run()), "--format", "tflite"], "No such format 'tflite'"
    elif case == "merged prefix":
        arguments, said = [str(make_run(method="prefix")), "--format", "merged"], "A prefix can't be merged"
    else:
        (tmp_path / "taken").write_text("mine")
        arguments, said = [str(make_run()), "--out", str(tmp_path / "taken" / "below")], "Can't write or read"
    assert main(["export", *arguments]) == 2
    out, err = capsys.readouterr()
    message = err[err.index("Error:") :]
    assert said in message and "next:" in message and len(message.strip().splitlines()) <= 3 and not out
    assert main(["export", *arguments, "--json"]) == 2
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said in found["error"]["what"]


def test_it_prints_where_the_artifact_is(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(make_run()), "--out", "shipped"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("shipped  (merged, ") and "none has judged it" in err and "14 weights" in err
    assert main(["export", "run", "--out", "shipped", "--quiet"]) == 0
    assert not capsys.readouterr().err
