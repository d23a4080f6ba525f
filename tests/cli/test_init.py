"""`tuneloop init`: what it guesses is taken with a yes, and its proposals can be pasted into a shell."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import openpyxl
import pytest
import yaml

from tuneloop.cli.main import main

MAILS = [
    {"mail": f"Order {i} for 'Kunze & Söhne' is {3 + i} days late.", "card": {"order": i, "customer's name": "Kunze", "days": 3 + i}}
    for i in range(30)
]  # fmt: skip


@pytest.fixture
def mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("my mails.jsonl").write_text("\n".join(map(json.dumps, MAILS)), encoding="utf-8")
    return "my mails.jsonl"


def proposal(err: str, command: str) -> list[str]:
    """The arguments of the command that an error proposes, as a shell would read it."""
    line = next(line for line in err.splitlines() if f"tuneloop {command} " in line)
    return shlex.split(line[line.index("tuneloop ") :])[1:]


def test_without_a_terminal_nothing_is_written_and_the_proposed_command_works(
    mails: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", mails]) == 2 and not Path("recipe.yaml").exists()
    err = capsys.readouterr().err
    assert "'card' looks like the answer" in err and len(err.strip().splitlines()) <= 3
    assert main(proposal(err, "init")) == 0
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert (data["input"], data["output"]) == ("{mail}", "{card}")
    assert "order, customer's name, days" in data["instruction"]


def test_yes_takes_the_guess(mails: str) -> None:
    assert main(["init", mails, "--yes", "data.instruction=Read the order."]) == 0
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert data["output"] == "{card}" and data["instruction"] == "Read the order."


@pytest.mark.parametrize(("typed", "written"), [("y", True), ("n", False), ("", False)])
def test_at_a_terminal_it_asks(
    mails: str, typed: str, written: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tuneloop.cli.init._at_a_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: typed == "y")
    assert main(["init", mails]) == (0 if written else 2)
    assert Path("recipe.yaml").exists() is written
    assert "data.output='{card}'" in capsys.readouterr().err


def test_yes_takes_a_guessed_label_too(mails: str) -> None:
    rows = [{"said": f"Wake me at {i}, please", "kind": ["alarm", "music"][i % 2], "nr": i} for i in range(30)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", "rows.jsonl", "--yes"]) == 0
    data = yaml.safe_load(Path("recipe.yaml").read_text(encoding="utf-8"))["data"]
    assert (data["text"], data["label"]) == ("said", "kind")


def test_prepare_refuses_to_ignore_the_answer_and_its_proposal_keeps_it(
    mails: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", mails, "--out", "d"]) == 2
    assert main(proposal(capsys.readouterr().err, "prepare")) == 0
    rows: list[dict[str, Any]] = [
        json.loads(line)
        for split in ("train", "val", "test")
        for line in Path(f"d/{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    cards = [card["card"] for card in MAILS]
    assert len(rows) == 30 and all(json.loads(row["messages"][-1]["content"]) in cards for row in rows)


def test_a_guessed_label_needs_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"note": f"the lamp {i} is broken", "team": ["north", "south"][i % 2]} for i in range(30)]
    Path("notes.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert main(["init", "notes.jsonl", "--json"]) == 2 and not Path("recipe.yaml").exists()
    command = json.loads(capsys.readouterr().out)["error"]["next"]
    assert main([*shlex.split(command)[1:]]) == 0
    data = yaml.safe_load(Path("recipe.yaml").read_text())["data"]
    assert (data["text"], data["label"]) == ("note", "team")


def test_a_sheet_of_a_spreadsheet_is_named_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    book = openpyxl.Workbook()
    for name in ("March", "April"):
        sheet = book.create_sheet(name)
        sheet.append(["Message", "Category"])
        for i in range(30):
            sheet.append([f"the lamp {i} is broken", ["north", "south"][i % 2]])
    book.save("tickets.xlsx")
    assert main(["init", "tickets.xlsx"]) == 2 and "'tickets.xlsx#March'" in capsys.readouterr().err
    assert main(["init", "tickets.xlsx#March"]) == 0
    assert yaml.safe_load(Path("recipe.yaml").read_text())["data"]["sources"] == ["tickets.xlsx#March"]
