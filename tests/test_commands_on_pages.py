"""Every command on a page runs, or the page says in a comment what it needs or which test shows it.

In front of a block of commands may stand `<!-- needs: a GPU -->`, or `<!-- shown by: tests/serving/test_server.py -->`. All other
commands run here, in the order of the page, in a folder with small data and a tiny model under the names that pages use. Of those that
do not run, words and options are still checked.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from commands import SEVERAL
from shared_folder import made_once

from patience import HANG
from places import ROOT
from tuneloop.cli.main import app

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMPUTED = {"costs.md", "improve.md"}  # pages whose output is the same on every machine
ELSEWHERE = {"tutorial.md"}  # tests/test_tutorial.py
BLOCK = re.compile(r"(?:<!-- (needs|shown by): ([^>]+) -->\n)?```(sh|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    page: str
    text: str
    mark: str  # "", "needs" or "shown by"
    what: str
    output: str = ""  # what the page shows of it


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page's blocks; in a block that shows output too, a command follows a `$`."""
    for mark, message, language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        body = body.replace("\\\n", " ")
        parts = [part.partition("\n") for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
        if language == "sh":
            parts = [(line, "", "") for line in body.splitlines()]
        for text, _, output in parts:
            if re.search(r"(?:^|\| |&& )tuneloop ", text):
                yield Command(page.name, text, mark, message.strip(), output)


COMMANDS = [command for page in PAGES for command in commands(page)]


def parsed(text: str) -> None:
    """Read a command line as the program does, without running it. Raises what typer raises for a wrong word or option."""
    for part in re.split(r" (?:\||&&) ", text):
        sentence = shlex.split(part.partition(" < ")[0], comments=True)
        if sentence[:1] != ["tuneloop"]:
            continue
        group, sentence = typer.main.get_command(app), sentence[1:]
        context = group.make_context("tuneloop", list(sentence))
        name, command, rest = group.resolve_command(context, [*sentence])  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            name, command, rest = command.resolve_command(context, [*rest])
        command.make_context(name, [*rest], parent=context)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_words_and_options_of_a_command_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parsed(command.text)


def test_a_command_that_does_not_end_is_marked() -> None:
    endless = re.compile(r"tuneloop (serve|top|mcp|route serve|ui(?!.*--export)|review(?!.*--(no-serve|export)))\b")
    for command in COMMANDS:
        assert command.mark or not endless.search(command.text), f"{command.page}: {command.text}"


def test_what_is_marked_names_tests_that_use_the_command() -> None:
    assert len([command for command in COMMANDS if not command.mark]) > 50
    for command in COMMANDS:
        if command.mark == "shown by":
            text = "".join((ROOT / part).read_text(encoding="utf-8") for part in command.what.split(", "))
            for verb in re.findall(r"(?:^|&& )tuneloop ([a-z]+)", command.text):
                assert re.search(rf"[\"' ]{verb}\b|\b{verb}\(", text), f"{command.page}: {verb} in {command.what}"


def write_data(folder: Path) -> None:
    """Small files of examples, under the names that pages use."""
    lines = (ROOT / "examples" / "tickets" / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"text": row["text"], "queue": row["queue"]} for row in map(json.loads, lines) if len(row["text"]) < 260]
    text = "".join(json.dumps(row) + "\n" for row in rows[:72])
    for name in ("tickets.jsonl", "my.jsonl", "production.jsonl"):
        (folder / name).write_text(text, encoding="utf-8")
    for name, columns in (("tickets.csv", ["text", "queue"]), ("new.csv", ["text"])):
        with (folder / name).open("w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, columns, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows[: 72 if "queue" in columns else 3])
    pairs = [{"prompt": row["text"], "chosen": row["queue"], "rejected": "I can't say."} for row in rows[:40]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    for name in ("examples", "recipes"):
        (folder / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def world(
    cli_environment: dict[str, str], small_packaged: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with data, data sets, runs that were evaluated, and an artifact."""

    def write(folder: Path) -> None:
        write_data(folder)
        steps = [
            "init tickets.jsonl --yes",
            "run recipe.yaml output_dir=runs/demo train.max_minutes=0.02 evaluate.limit=6 baselines.few_shot=2",
            "export runs/demo --out artifacts/ID",
            "prepare pairs.jsonl --name pairs",
        ]
        environment = {**cli_environment, **small_packaged}
        program = [sys.executable, "-c", SEVERAL, json.dumps([step.split() for step in steps])]
        done = subprocess.run(
            program, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, done.stderr
        for name in ("tickets", "tickets-v1", "tickets-v2", "support"):
            shutil.copytree(folder / "runs" / "demo" / "dataset", folder / "datasets" / name)
        shutil.copytree(folder / "runs" / "demo", folder / "runs" / "tickets")

    return made_once(tmp_path_factory, "documented-commands", write)


def limited(text: list[str]) -> list[str]:
    """A command that trains, held to a second of training and a few rows."""
    if text[0] not in ("run", "train", "sweep") or "--plan" in text or "--preflight" in text:
        return text
    limit = [] if any("max_minutes=" in word for word in text) else ["train.max_minutes=0.02"]
    return [*text, *limit, *(["evaluate.limit=4", "baselines.few_shot=1"] if text[0] == "run" else [])]


@pytest.mark.slow
@pytest.mark.skipif("TUNELOOP_PAGES" not in os.environ, reason="ten minutes: make test-pages runs it")
@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(
    page: Path, world: Path, tmp_path: Path, cli: Callable[..., Any], small_packaged: dict[str, str]
) -> None:
    executed = [command for command in commands(page) if not command.mark]
    if page.name in ELSEWHERE or not executed:
        return
    here = tmp_path / "here"
    shutil.copytree(world, here, symlinks=True)
    for command in executed:
        before, _, text = command.text.rpartition(" | ")
        sentence = shlex.split(
            text.replace("runs/ID", "runs/demo").replace("DATASET", "datasets/tickets"), comments=True
        )
        if sentence[1] == "init":
            (here / "recipe.yaml").unlink(missing_ok=True)  # it replaces none
        given = subprocess.run(["bash", "-c", before], cwd=here, capture_output=True, text=True, check=True).stdout
        done = cli(*limited(sentence[1:]), cwd=here, env=small_packaged, input=given)
        assert done.returncode in (0, 1, 3), f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        for shown in command.output.split("...\n") if page.name in COMPUTED else ():
            assert " ".join(shown.split()) in " ".join(done.stdout.split()), f"{text} prints something else now"
