"""The figures of the page about very large work are those that its commands print."""

from __future__ import annotations

import importlib
import re

import pytest
from typer.testing import CliRunner

from places import ROOT
from tuneloop.cli.main import app

PAGE = (ROOT / "benchmarks" / "records" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\ntuneloop ([^\n]+)\n```\n\n```text\n(.*?)```", PAGE, re.S)
SIMULATIONS = re.findall(r"```sh\npython benchmarks/(\w+)\.py ([^\n]+)\n```\n\n```text\n(.*?)```", PAGE, re.S)


def plain(text: str) -> str:
    return " ".join(text.split())


def test_every_block_of_figures_has_its_command() -> None:
    assert len(BLOCKS) + len(SIMULATIONS) == PAGE.count("```text")
    assert len(BLOCKS) >= 5 and len(SIMULATIONS) >= 3


@pytest.mark.parametrize(("command", "figures"), BLOCKS, ids=[command[:40] for command, _ in BLOCKS])
def test_a_command_gives_the_figures_below_it(command: str, figures: str) -> None:
    done = CliRunner().invoke(app, command.split(), env={"COLUMNS": "120"})
    assert done.exit_code in (0, 1), done.output
    printed = plain(done.output)
    for line in figures.strip().splitlines():
        assert plain(line) in printed, f"{line!r} is not what it prints now: change the page"


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "figures"), SIMULATIONS, ids=[options[:40] for _, options, _ in SIMULATIONS]
)
def test_a_simulation_gives_the_figures_below_it(
    name: str, options: str, figures: str, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(f"benchmarks.{name}").main(options.split())
    printed = plain(capsys.readouterr().out)
    for line in figures.strip().splitlines():
        assert plain(line) in printed, f"{line!r} is not what it prints now: change the page\n{printed}"
