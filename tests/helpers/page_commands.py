"""Blocks of commands on a page: a plain command of tuneloop runs in the test's process, and a shell runs what needs one."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from patience import HANG

# A command whose output may go to a file, and which may say no.
PLAIN = re.compile(r"tuneloop (?P<words>[^|&;<>$*`]+?)(?: > (?P<file>\S+))?(?P<may_fail> \|\| true)?")


def run_block(
    block: str, cli: Callable[..., subprocess.CompletedProcess[str]], folder: Path, environment: dict[str, str]
) -> str:
    """Run a block in a folder; returns what it prints. A block with variables, jobs or long lines is one script."""
    is_script = any(mark in block for mark in ("$", "&\n", "\\\n"))
    out = ""
    for line in [block] if is_script else block.splitlines():
        command = line if is_script else line.partition("  #")[0].strip()
        if plain := PLAIN.fullmatch(command):
            done = cli(*shlex.split(plain["words"]), env=environment, cwd=folder)
            if plain["file"]:
                (folder / plain["file"]).write_text(done.stdout, encoding="utf-8")
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment,
                                  capture_output=True, text=True, timeout=HANG)  # fmt: skip
        assert done.returncode == 0 or (plain and plain["may_fail"]), f"{command}\n{done.stdout}\n{done.stderr}"
        out += done.stdout
    return out
