"""The skill for coding agents holds: every command in it runs, and what it says of verdicts is what the program says."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from page_commands import run_block
from tickets import tickets

from places import ROOT
from tuneloop.records.rows import last_user_turn

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SKILL = ROOT / "skills" / "tuneloop"
# In the order of work; the first page last: its commands are those of the others once more.
PAGES = [SKILL / "references" / f"{name}.md" for name in ("decide", "run", "verdict", "serve")] + [SKILL / "SKILL.md"]


def test_the_skill_says_when_it_is_to_be_used_and_leads_to_all_its_pages() -> None:
    head, _, body = (SKILL / "SKILL.md").read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")
    about = yaml.safe_load(head)
    assert about["name"] == SKILL.name and 100 < len(about["description"]) <= 1024
    for page in PAGES[:-1]:
        assert f"](references/{page.name})" in body
    assert {*(SKILL / "references").iterdir()} == {*PAGES[:-1]}


def test_every_verdict_of_the_skill_is_one_that_the_program_writes() -> None:
    source = (ROOT / "src" / "tuneloop" / "evaluation" / "verdict.py").read_text(encoding="utf-8")
    heads = re.findall(r"^\| `(\w[^`]*)` \|", (SKILL / "references" / "verdict.md").read_text("utf-8"), re.MULTILINE)
    assert len(heads) == 7
    for head in heads:
        start, _, further = head.partition(" ... ")
        assert f'"{start}' in source and f'{further}"' in source, head


@pytest.mark.nightly
@pytest.mark.slow
def test_every_command_of_the_skill_runs(
    tmp_path: Path, cli: Cli, cli_environment: dict[str, str], small_packaged: dict[str, str]
) -> None:
    lines = [f'"{last_user_turn(row)}",{row.label}' for row in tickets(150)]
    (tmp_path / "mails.csv").write_text("\n".join(["text,queue", *lines]) + "\n")
    (tmp_path / "new.csv").write_text("\n".join(["text", *(line.rpartition(",")[0] for line in lines[:5])]) + "\n")
    program = tmp_path / "bin" / "tuneloop"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tuneloop "$@"\n')
    program.chmod(0o755)
    environment = {**cli_environment, **small_packaged}
    environment["PATH"] = os.pathsep.join([str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            script = block.replace("max_minutes=8", "max_minutes=0.1").replace("8131", port)
            script = script.replace("tuneloop run ", "tuneloop run track.report_to=none ")
            script = re.sub(r"tuneloop run (track\S+) (\S+)", r"tuneloop run \2 \1", script)
            said = run_block(script, cli, tmp_path, environment)
            if "v1/chat" in block:
                assert '"choices"' in said, said
    assert json.loads((tmp_path / "run.json").read_text())["eval"]["words"]
    assert json.loads((tmp_path / "costs.json").read_text())["total"]["requests"] == 1
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 6
