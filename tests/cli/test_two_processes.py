"""Two processes give the same command in one folder at the same time: one does it, or both find it done; nothing is mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from imported import row
from killed_jobs import fill

from patience import HANG
from places import ROOT

pytestmark = pytest.mark.slow
TIMES = int(os.environ.get("TUNELOOP_KILLS", "3"))
PROGRAM = ROOT / "tests" / "helpers" / "two_commands.py"
BUSY = (
    "Another",
    "being",
    "locked",
    "is working",
    "There is",
    "exists",
    "already",
)  # what a refusal says of the other one


def both(folder: Path, environment: dict[str, str], *text: str) -> None:
    """Give a command twice; each is done or refused in a sentence, and what is left is what one of them leaves."""
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "tests" / "helpers")))
    command = [sys.executable, str(PROGRAM), str(folder), str(TIMES), *text]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "PYTHONPATH": paths}, timeout=TIMES * HANG
    )
    assert done.returncode == 0, done.stderr
    print(text[0], done.stdout)
    for line in map(json.loads, done.stdout.splitlines()):
        assert line["statuses"] in ([line["status"]] * 2, [line["status"], 2]) and line["status"] in (0, 1), line
        assert not line["traceback"] and not line["wrong"] and not line["more"] and not line["tmp"], line
        assert len(line["refusals"]) == (2 in line["statuses"]), line
        assert all(any(word in item for word in BUSY) for item in line["refusals"]), line


def cases(folder: Path) -> None:
    with (folder / "cases.jsonl").open("w") as file:
        for i in range(60):
            value = {"text": f"Case {i}: {i * 37 % 101} {['parcel', 'order', 'refund'][i % 3]}?", "label": "abc"[i % 3]}
            file.write(json.dumps(value) + "\n")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def recipe(work: Path, tiny_llama: Path) -> Path:
    cases(work)
    values: dict[str, Any] = {
        "name": "cases", "model": str(tiny_llama), "output_dir": "runs/cases", "data": {"sources": ["cases.jsonl"]},
        "train": {"epochs": 1, "learning_rate": 0.01, "rank": 4}, "evaluate": {"bootstrap": 100},
        "track": {"report_to": "none"},
    }  # fmt: skip
    (work / "recipe.yaml").write_text(yaml.safe_dump(values))
    return work


def test_import(work: Path, cli_environment: dict[str, str]) -> None:
    (work / "log.jsonl").write_text("\n".join([*(json.dumps(row(i)) for i in range(300)), "no json"]) + "\n")
    both(work, cli_environment, "import", "jsonl", "log.jsonl", "--keep-users", "-q")


@pytest.mark.nightly
def test_init(work: Path, cli_environment: dict[str, str]) -> None:
    cases(work)
    both(work, cli_environment, "init", "cases.jsonl", "-q")


def test_prepare(work: Path, cli_environment: dict[str, str]) -> None:
    cases(work)
    both(work, cli_environment, "prepare", "cases.jsonl", "--out", "data", "-q")


@pytest.mark.nightly
def test_run(recipe: Path, cli_environment: dict[str, str]) -> None:
    both(recipe, cli_environment, "run", "recipe.yaml", "-q")


@pytest.mark.nightly
def test_train(recipe: Path, cli_environment: dict[str, str]) -> None:
    both(recipe, cli_environment, "train", "recipe.yaml", "-q")


@pytest.mark.nightly
@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_export(work: Path, make_run: Any, cli_environment: dict[str, str], form: str) -> None:
    make_run().rename(work / "run")
    measure = ("--measure", "0") if form == "gguf" else ()
    both(work, cli_environment, "export", "run", "--format", form, *measure, "-q")


@pytest.mark.nightly
def test_predict(work: Path, make_tuned: Any, cli_environment: dict[str, str]) -> None:
    make_tuned().rename(work / "run")
    cases(work)
    both(work, cli_environment, "predict", "run", "cases.jsonl", "--out", "answers.jsonl", "-q")


@pytest.mark.nightly
def test_collect(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    both(work, cli_environment, "collect", "serve", "--out", "rows", "-q")


@pytest.mark.nightly
def test_collect_requests(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    both(work, cli_environment, "collect", "requests", "--out", "log.jsonl", "-q")


@pytest.mark.nightly
def test_keys(work: Path, cli_environment: dict[str, str]) -> None:
    both(work, cli_environment, "keys", "add", "shop", "-f", "serve", "-q")


@pytest.mark.nightly
def test_improve(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    both(work, cli_environment, "call", "improve")


@pytest.mark.nightly
def test_evaluate(work: Path, make_tuned: Any, cli_environment: dict[str, str]) -> None:
    make_tuned().rename(work / "run")
    both(work, cli_environment, "evaluate", "run", "limit=2", "-q")


@pytest.mark.nightly
def test_merge(work: Path, make_run: Any, cli_environment: dict[str, str]) -> None:
    for name, targets in (("one", "all-linear"), ("two", "attention")):
        make_run(name, targets=targets).rename(work / name)
    both(work, cli_environment, "merge", "one", "two", "--out", "made", "-q")


@pytest.mark.nightly
def test_batch(work: Path, make_tuned: Any, cli_environment: dict[str, str]) -> None:
    make_tuned().rename(work / "run")
    cases(work)
    both(work, cli_environment, "batch", "cases.jsonl", "--model", "run", "-o", "answers.jsonl", "-q")


@pytest.mark.nightly
def test_review(work: Path, make_tuned: Any, cli: Any, cli_environment: dict[str, str]) -> None:
    make_tuned().rename(work / "run")
    assert cli("evaluate", "run", "limit=4", "-q", cwd=work).returncode == 0
    both(work, cli_environment, "review", "run", "--no-serve", "-q")


@pytest.mark.nightly
def test_gate(work: Path, make_tuned: Any, cli: Any, cli_environment: dict[str, str]) -> None:
    (work / "suite.yaml").write_text("version: 1\nname: s\nmetrics: [{metric: accuracy, margin: 0.9}]\n")
    for name in ("run", "other"):
        make_tuned(name=name).rename(work / name)
        assert cli("evaluate", name, "limit=4", "-q", cwd=work).returncode == 0
    both(work, cli_environment, "gate", "run", "--suite", "suite.yaml", "--against", "other", "-q")


@pytest.mark.nightly
def test_register(work: Path, make_artifact: Any, cli_environment: dict[str, str]) -> None:
    make_artifact("adapter").rename(work / "artifact")  # without its run, which is not needed
    both(work, cli_environment, "models", "register", "artifact", "--name", "m", "-q")


@pytest.mark.nightly
def test_ab_start(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    text = ("--store", "serve", "--model", "m", "--candidate", "b", "--champion", "a", "-q")
    both(work, cli_environment, "ab", "start", "first", *text)


@pytest.mark.nightly
def test_forget(work: Path, cli: Any, cli_environment: dict[str, str]) -> None:
    cases(work)
    assert cli("prepare", "cases.jsonl", "--out", "data", "-q", cwd=work).returncode == 0
    both(work, cli_environment, "data", "forget", "data", "--match", "Case 1:", "--yes", "-q")


@pytest.mark.nightly
def test_monitor(work: Path, cli: Any, cli_environment: dict[str, str]) -> None:
    fill(work)
    cases(work)
    assert cli("prepare", "cases.jsonl", "--out", "data", "-q", cwd=work).returncode == 0
    both(
        work,
        cli_environment,
        "monitor",
        "serve",
        "--reference",
        "data",
        "--window",
        "1d",
        "--until",
        "2026-03-02",
        "-q",
    )


@pytest.mark.nightly
def test_sweep(recipe: Path, cli_environment: dict[str, str]) -> None:
    both(recipe, cli_environment, "sweep", "recipe.yaml", "train.learning_rate=0.001,0.01", "-o", "found", "-q")


@pytest.mark.nightly
def test_distill(work: Path, tiny_llama: Path, make_tuned: Any, cli_environment: dict[str, str]) -> None:
    make_tuned().rename(work / "teacher")
    cases(work)
    train = ("train.epochs=1", "evaluate.bootstrap=100", "track.report_to=none", "-q")
    rows = ("--dataset", "teacher/dataset", "-o", "student")
    both(work, cli_environment, "distill", "teacher", str(tiny_llama), *rows, *train)


@pytest.mark.nightly
def test_route(work: Path, cli_environment: dict[str, str]) -> None:
    lines = [f"Case {i}: {'refund' if i % 2 else 'parcel'} {i * 37 % 101},{i % 2},{1 - i % 2}" for i in range(200)]
    (work / "outcomes.csv").write_text("\n".join(["prompt,small,large", *lines]) + "\n")
    both(work, cli_environment, "route", "fit", "--outcomes", "outcomes.csv", "--features", "words", "-q")


@pytest.mark.nightly
def test_promote(work: Path, make_artifact: Any, cli: Any, cli_environment: dict[str, str]) -> None:
    make_artifact("adapter").rename(work / "artifact")
    assert cli("models", "register", "artifact", "--name", "m", "-q", cwd=work).returncode == 0
    both(work, cli_environment, "models", "promote", "m", "1", "--force", "the first one", "-q")


@pytest.mark.nightly
def test_deploy(work: Path, make_artifact: Any, cli_environment: dict[str, str]) -> None:
    make_artifact("merged").rename(work / "artifact")
    both(work, cli_environment, "deploy", "artifact", "--to", "compose", "--dry-run", "-q")
