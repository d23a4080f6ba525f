"""What a killed process has started ends too: nobody is left to tell it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from patience import slowness
from tuneloop.core.parent import PARENT

IMPROVE = "import sys; from tuneloop.improve.controller.command import run_command; run_command(sys.argv[1:])"
RANKS = "import sys; from tuneloop.pipeline.distributed import start_processes; start_processes(2, [sys.executable, '-m', 'tuneloop', *sys.argv[1:]])"
WORKERS = """
import multiprocessing, time
from tuneloop.data.workers import _start
for _ in range(2):
    multiprocessing.get_context("fork").Process(target=lambda: (_start(None), time.sleep(600))).start()
time.sleep(600)
"""
LLAMACPP = "import time; from tuneloop.inference.llamacpp.process import LlamaCpp; child = LlamaCpp(); time.sleep(600)"


def children_of(process: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def wait_for(met: Callable[[], bool], seconds: float = 30) -> bool:
    until = time.monotonic() + seconds * slowness()
    while not met() and time.monotonic() < until:
        time.sleep(0.1)
    return met()


def is_there(process: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from tuneloop.serving.store.store import connect

    connect(tmp_path / "serve", create=True).close()
    (tmp_path / "r.yaml").touch()
    file = tmp_path / "project.yaml"
    file.write_text(f"name: queue\nstore: {tmp_path / 'serve'}\nmodel: queue\nrecipe: {tmp_path / 'r.yaml'}\n")
    return file


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize(
    ("code", "count"),
    [(IMPROVE, 1), (RANKS, 2), (WORKERS, 2), (LLAMACPP, 1)],
    ids=["improve", "ranks", "workers", "llama.cpp"],
)
def test_a_killed_process_leaves_no_child(code: str, count: int, project: Path) -> None:
    if code == LLAMACPP:
        pytest.importorskip("llama_cpp_py_sync")
    text = ["improve", str(project), "--watch", "--every", "1h"]
    parent = subprocess.Popen([sys.executable, "-c", code, *text], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: len(children_of(parent.pid)) == count)
        time.sleep(1.0)  # they are at work
        children = children_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(map(is_there, children))), children


def test_a_child_that_does_not_heed_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); from tuneloop.core import parent; "
        "parent.GRACE = 0.5; parent.end_with_parent(); assert parent.PARENT not in os.environ; print('up', flush=True); time.sleep(600)"
    )
    code = f"import subprocess, sys; from tuneloop.core.parent import *; subprocess.run([sys.executable, '-c', {stubborn!r}], env=environment_of_child())"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None and parent.stdout.readline() == b"up\n"
    (child,) = children_of(parent.pid)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: not is_there(child))


def test_a_command_that_was_started_otherwise_outlives_its_parent(tmp_path: Path) -> None:
    code = "import os, time; from tuneloop.core.parent import end_with_parent; end_with_parent(); time.sleep(600)"
    environment = {name: value for name, value in os.environ.items() if name != PARENT}
    shell = subprocess.Popen(
        ["sh", "-c", f'{sys.executable} -c "{code}" & echo $!'], stdout=subprocess.PIPE, env=environment
    )
    assert shell.stdout is not None
    child = int(shell.stdout.readline())
    shell.wait()
    time.sleep(1.5)
    assert is_there(child)
    os.kill(child, signal.SIGKILL)
