"""A reader that leaves (`| head -1`) stops the printing and not the work; what only prints ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from by_day import by_day
from live_server import live

from patience import HANG
from tuneloop.cli.console import UNREAD
from tuneloop.cli.main import COMMANDS

NAMES = [name for stage in COMMANDS.values() for name in stage]
CHEAP = [
    "keys",
    "models",
    "schema",
    "compare",
    "data",
    "doctor",
]  # a few whose help and errors are read without a reader


def started(*text: str, environment: dict[str, str], unread: str, folder: Path, **more: Any) -> subprocess.Popen[bytes]:
    """A command whose stdout, stderr or both are pipes that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    there = {name: writing if name in unread else subprocess.PIPE for name in ("stdout", "stderr")}
    try:
        command = [sys.executable, *more.pop("options", ()), "-m", "tuneloop", *text]
        environment = {name: value for name, value in environment.items() if name != "PYTHONUNBUFFERED"}
        return subprocess.Popen(command, cwd=folder, env=environment, **there, **more)
    finally:
        os.close(writing)


def ended(*text: str, **more: Any) -> tuple[int, str, str]:
    process = started(*text, **more)
    out, err = process.communicate(timeout=HANG)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.fixture
def rows(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    text = [
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
    ]
    lines = [
        {"text": " ".join(text[(i * k + k * k) % 16] for k in range(2, 9)) + f" {i}", "label": text[i % 2]}
        for i in range(60)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file.name


@pytest.mark.parametrize("unread", by_day(["stdout", "stderr", "stdout stderr"], ["stdout stderr"]))
def test_what_writes_is_finished(
    rows: str, tiny_llama: Path, cli_environment: dict[str, str], tmp_path: Path, unread: str
) -> None:
    given: dict[str, Any] = {"environment": cli_environment, "folder": tmp_path, "unread": unread}
    text = ("prepare", rows, "-o", "data", "--model", str(tiny_llama), "duplicates.near=false")
    status, out, err = ended(*text, *(["--json"] if "stdout" in unread else []), **given)
    assert status == 0 and (tmp_path / "data" / "dataset.json").is_file(), err
    assert (tmp_path / "data" / "report.html").is_file() and "Traceback" not in out + err


@pytest.mark.parametrize("end", by_day(["--json | head -c 1", "2>&1 | head -1", "2>&1 | true", ">&- 2>&-"], 1))
def test_a_shell_that_looks_at_one_line_gets_a_whole_data_set(
    end: str, rows: str, tiny_llama: Path, cli_environment: dict[str, str], tmp_path: Path
) -> None:
    text = f"{sys.executable} -m tuneloop prepare {rows} -o data --model {tiny_llama} duplicates.near=false"
    line = f"{text} {end}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=cli_environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("0\n"), (end, done.stdout, done.stderr)
    assert (tmp_path / "data" / "dataset.json").is_file() and "Traceback" not in done.stderr + done.stdout


@pytest.mark.nightly
@pytest.mark.slow
def test_no_command_fails_because_nobody_reads_its_help(cli_environment: dict[str, str], tmp_path: Path) -> None:
    for name in NAMES:
        status, _, err = ended(name, "--help", environment=cli_environment, folder=tmp_path, unread="stdout")
        assert (status, err) == (0, ""), name


@pytest.mark.parametrize("name", by_day(CHEAP, 2))
def test_a_command_has_the_status_that_it_has_with_a_reader(
    name: str, cli_environment: dict[str, str], tmp_path: Path
) -> None:
    _agrees(name, "nowhere", environment=cli_environment, folder=tmp_path)


def _agrees(*text: str, environment: dict[str, str], folder: Path) -> None:
    read = ended(*text, environment=environment, folder=folder, unread="")
    for unread in ("stdout", "stderr", "stdout stderr"):
        status, out, err = ended(*text, environment=environment, folder=folder, unread=unread)
        assert status == read[0] and "Traceback" not in out + err and "BrokenPipe" not in out + err
    status, _, err = ended(*text, environment=environment, folder=folder, unread="stdout", options=["-u"])
    assert status == read[0] and "Traceback" not in err


@pytest.mark.nightly
@pytest.mark.slow
def test_training_is_finished(rows: str, tiny_llama: Path, cli_environment: dict[str, str], tmp_path: Path) -> None:
    given: dict[str, Any] = {"environment": cli_environment, "folder": tmp_path, "unread": "stdout stderr"}
    assert ended("prepare", rows, "-o", "data", "--model", str(tiny_llama), **given)[0] == 0
    status, _, _ = ended(
        "train", "data", f"model={tiny_llama}", "train.epochs=1", "output_dir=run", "track.report_to=none", **given
    )
    assert status == 0
    run = json.loads(next(tmp_path.rglob("run.json")).read_text())
    assert run["status"] == "finished", run["status"]


def test_what_only_prints_ends(cli_environment: dict[str, str], tmp_path: Path) -> None:
    with live(tmp_path / "serve") as (address, _):
        text = ("top", "--url", address, "--every", "0.2")
        assert ended(*text, environment=cli_environment, folder=tmp_path, unread="stdout")[0] == UNREAD


def test_a_server_goes_on_without_a_reader(tiny_llama: Path, cli_environment: dict[str, str], tmp_path: Path) -> None:
    text = ("serve", str(tiny_llama), "port=0", "folder=serve", "log.lines=json", "--json")
    process = started(*text, environment=cli_environment, folder=tmp_path, unread="stderr")
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["address"]
    process.stdout.close()
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
    for _ in range(3):
        asked = urllib.request.Request(f"{address}/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=HANG) as reply:
            assert reply.status == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 0
