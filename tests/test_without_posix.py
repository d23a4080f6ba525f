"""tuneloop on a system without fcntl, resource and fork, such as Windows: every module imports, and the main path works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from short_demo import write_short_demo

from patience import HANG
from places import ROOT

PROGRAM = ROOT / "tests" / "helpers" / "without_posix.py"


def process(text: str, cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), text], cwd=cwd, env=environment,
                          capture_output=True, text=True, timeout=HANG)  # fmt: skip


@pytest.mark.process
def test_every_module_imports(tmp_path: Path, cli_environment: dict[str, str]) -> None:
    done = process("imports", tmp_path, cli_environment)
    assert done.returncode == 0, done.stderr
    files = [
        path for path in (ROOT / "src" / "tuneloop").rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
    ]
    assert int(done.stdout.splitlines()[-1]) >= len(files)


@pytest.mark.process
def test_the_stand_in_lacks_what_windows_lacks(tmp_path: Path, cli_environment: dict[str, str]) -> None:
    (tmp_path / "tuneloop.py").write_text("import fcntl\n")
    code = f"import runpy, sys; sys.argv = ['', 'imports']; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**cli_environment, "PYTHONPATH": str(tmp_path)}, timeout=HANG)  # fmt: skip
    assert "No module named 'fcntl'" in done.stderr


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.process
def test_the_main_path_works(tmp_path: Path, cli_environment: dict[str, str], small_packaged: dict[str, str]) -> None:
    rows = [
        {"text": f"Parcel {i} is {'late' if i % 2 else 'broken'} again, {i * 37 % 101} days", "label": "ab"[i % 2]}
        for i in range(60)
    ]
    write_short_demo(tmp_path / "demo")
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["train.max_minutes=0.02", "track.report_to=none"]
    commands = [
        ["init", "mails.jsonl"],
        ["prepare", "mails.jsonl", "--out", "data"],
        ["advise", "mails.jsonl"],
        ["plan", "recipe.yaml"],
        ["train", "data", *run, "output_dir=runs/a"],
        ["evaluate", "runs/a"],
        ["run", "recipe.yaml", *run, "output_dir=runs/b"],
        ["predict", "runs/b", "mails.jsonl", "--out", "answers.csv"],
        ["export", "runs/b", "--format", "adapter", "--out", "shipped"],
        ["demo", *run, "max_minutes=null", "evaluate.limit=4", "baselines.classical=false", "output_dir=runs/demo"],
    ]
    done = process(json.dumps(commands), tmp_path, {**cli_environment, **small_packaged})
    assert done.returncode == 0, done.stderr[-3000:]
    for file in ("runs/b/report.html", "answers.csv", "shipped/artifact.json", "runs/demo/report.html"):
        assert (tmp_path / file).is_file(), file
