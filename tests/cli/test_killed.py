"""Commands that are killed (SIGKILL) and given again leave what one leaves that ran in one go: nothing lost, nothing twice.

`TUNELOOP_KILLS=20` kills each of them at twenty moments; else it is three.
"""

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
MOMENTS = int(os.environ.get("TUNELOOP_KILLS", "3"))
PROGRAM = ROOT / "tests" / "helpers" / "killed_command.py"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def killed(folder: Path, environment: dict[str, str], *text: str, missing: tuple[str, ...] = ()) -> None:
    """Kill a command again and again; `missing`: files that may be left out of the comparison."""
    paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "tests" / "helpers")))
    command = [sys.executable, str(PROGRAM), str(folder), str(MOMENTS), *text]
    environment = {**environment, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=MOMENTS * HANG)
    assert done.returncode == 0, done.stderr
    first, *kills = map(json.loads, done.stdout.splitlines())
    print(done.stdout)
    assert (
        first["writes"] >= min(MOMENTS, 15) and first["compared"] > 3 and set(first["not_compared"]) <= set(missing)
    ), first
    assert len(kills) == MOMENTS
    for kill in kills:
        rest = {name: value for name, value in kill.items() if name not in ("moment", "tmp")}
        assert rest == {"killed": True, "status": True, "wrong": [], "more": []}, (kill, done.stderr)


def test_import(work: Path, cli_environment: dict[str, str]) -> None:
    lines = [json.dumps(row(i)) for i in range(300)]
    (work / "log.jsonl").write_text("\n".join([*lines, "no json"]) + "\n")
    killed(work, cli_environment, "import", "jsonl", "log.jsonl", "--keep-users", "-q")


@pytest.mark.nightly
def test_improve(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    killed(work, cli_environment, "call", "improve")


@pytest.mark.nightly
def test_ui(work: Path, cli_environment: dict[str, str]) -> None:
    fill(work)
    killed(work, cli_environment, "call", "ui")


@pytest.mark.nightly
def test_run(work: Path, tiny_llama: Path, cli_environment: dict[str, str]) -> None:
    with (work / "cases.jsonl").open("w") as file:
        for i in range(60):
            value = {"text": f"Case {i}: {i * 37 % 101} {['parcel', 'order', 'refund'][i % 3]}?", "label": "abc"[i % 3]}
            file.write(json.dumps(value) + "\n")
    recipe: dict[str, Any] = {
        "name": "cases", "model": str(tiny_llama), "output_dir": "runs/cases", "data": {"sources": ["cases.jsonl"]},
        "train": {"epochs": 1, "learning_rate": 0.01, "rank": 4}, "evaluate": {"bootstrap": 100},
        "track": {"report_to": "none"},
    }  # fmt: skip
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    killed(work, cli_environment, "run", "recipe.yaml", "-q")


@pytest.mark.nightly
def test_export(work: Path, make_run: Any, cli_environment: dict[str, str]) -> None:
    make_run().rename(work / "run")
    killed(work, cli_environment, "export", "run", "--format", "merged", "-q")
