"""The tutorial holds: every command on the page runs, and what the page says of the verdict is what the program says."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from page_commands import run_block
from short_demo import write_short_demo

from places import ROOT
from tuneloop.core.errors import INSTALL
from tuneloop.records.evaluation import Outcome
from tuneloop.report.answer import KINDS, outcome_in_short

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
CELLS = re.findall(r"^\| (`[A-Z].*?) \|", PAGE, re.MULTILINE)
HEADS = [head.removesuffix(" ...") for cell in CELLS for head in re.findall(r"`(.*?)`", cell)]


def test_the_table_of_verdicts_has_all_that_the_program_says_and_no_other() -> None:
    outcomes = [outcome for outcome in get_args(Outcome) if outcome != "not compared"]
    texts = {
        outcome_in_short(outcome, kind, "few-shot", gain) for outcome in outcomes for kind in KINDS for gain in (-1, 1)
    }
    texts.add("Better, but blind to some labels")
    assert len(HEADS) == 7
    for text in texts:
        assert text.startswith(tuple(HEADS)), text
    for head in HEADS:
        assert any(text.startswith(head) for text in texts), head


def test_the_install_command_is_the_programs() -> None:
    (install,) = re.findall(r"^```sh install\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert install == f"{INSTALL}\n"
    subprocess.run(["make", "install", "--dry-run"], cwd=ROOT, check=True, capture_output=True)
    assert "VENV   ?= .venv" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.nightly
@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(
    tmp_path: Path, cli: Cli, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    write_short_demo(tmp_path / "demo")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    program = tmp_path / "bin" / "tuneloop"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tuneloop "$@"\n')
    program.chmod(0o755)
    environment = {**cli_environment, **small_packaged, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    out = {}
    for block in BLOCKS:
        script = block.replace("train.max_minutes=0.4", "train.max_minutes=0.02")
        quick = "max_minutes=null train.max_minutes=0.02 evaluate.limit=8 track.report_to=none"
        quick += " baselines.few_shot=2 baselines.classical=false"
        script = script.replace("tuneloop demo\n", f"tuneloop demo {quick}\n")
        out[block] = run_block(script, cli, tmp_path, environment)

    (verdict,) = (text.strip() for block, text in out.items() if block.startswith("tuneloop run "))
    assert verdict.startswith(tuple(HEADS)), verdict[:200]
    assert "test rows" in verdict
    for file in re.findall(r"`(runs/first/[\w/.]+)`", PAGE):
        assert (tmp_path / file).exists(), file
    assert len((tmp_path / "cards.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as stream:
        answers = list(csv.DictReader(stream))
    assert [answer["error"] for answer in answers] == ["", ""]
    assert all(answer["prediction"] for answer in answers)
    (chat,) = (text for text in out.values() if "--- base" in text)
    assert "Where is my parcel?" in chat, "/prompt shows what the model read"
    assert (tmp_path / "shipped" / "artifact.json").is_file()
