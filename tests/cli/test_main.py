"""Help and mistakes answer at once: little more than their libraries take to import, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import typer.main
from by_day import by_day

from tuneloop.cli.main import app

LIMIT = 0.2  # seconds of user and system time of the process that are always enough; beyond them libraries are timed
MOST = 1.5  # times what a Python takes that only imports the libraries of the command line
RECORD = """import typer, rich.console, yaml
from pydantic import BaseModel
class Record(BaseModel):
    number: int = 3"""
LIBRARIES = [sys.executable, "-c", RECORD]  # a command's options are the fields of a pydantic record
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def cpu_seconds(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Processor time and exit status of one process."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, process.returncode


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        ([], 2),
        (["run", "--nonsense"], 2),
        *by_day(
            [(["--version"], 0), (["nonsense"], 2), (["run"], 2), *(([name, "--help"], 0) for name in COMMANDS)], 1
        ),
    ],
    ids=lambda value: " ".join(value) or "no arguments" if isinstance(value, list) else "",
)
def test_help_and_usage_errors_are_quick(arguments: list[str], status: int, cli_environment: dict[str, str]) -> None:
    best, libraries = 1e9, LIMIT / MOST
    for _ in range(5):  # the best of five: others may be at work on this machine
        seconds, found = cpu_seconds([sys.executable, "-m", "tuneloop", *arguments], cli_environment)
        assert found == status
        best = min(best, seconds)
        if best >= MOST * libraries:
            libraries = max(libraries, cpu_seconds(LIBRARIES, cli_environment)[0])
        if best < MOST * libraries:
            break
    assert best < MOST * libraries


def test_the_list_of_commands_needs_no_records(cli_environment: dict[str, str]) -> None:
    code = "import sys; from tuneloop.cli.main import main; main(['--help']); sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, env=cli_environment, check=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["nonsense"], ["doctor"], ["schema"], ["plan", "no.yaml"]]
)
def test_nothing_of_this_loads_torch(arguments: list[str], cli: Any, cli_environment: dict[str, str]) -> None:
    code = f"""import sys
from tuneloop.cli.main import main
main({arguments!r})
print("LOADED", *sorted({{m.split(".")[0] for m in sys.modules}}), file=sys.stderr)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment, check=True)
    loaded = set(done.stderr.rpartition("LOADED")[2].split())
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "mlflow", "sklearn", "numpy"}


@pytest.mark.parametrize("group", [[], ["data"], ["ab"]])
def test_a_group_without_a_command_shows_its_help_and_no_error(
    group: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from tuneloop.cli.main import main

    assert main(group) == 2
    printed = capsys.readouterr()
    assert "Usage: tuneloop" in printed.out + printed.err and "Error" not in printed.out + printed.err
